"""Draw local runs beside the published results: two figures and the tables.

    python plotting.py --logdir ./logs [--out DIR] [--tasks NAME ...] [--bin 1e4] ...
    python plotting.py --logdir ./logs --figure 7   # as in the paper
    python plotting.py --logdir ./logs --json ours.json --compare theirs.json

Below `--logdir` every folder with a `metrics.jsonl` is a run. The path of a folder
three levels down is `task/method/seed`. `config.json` names the run in any other
folder, and in the logdir itself. If both name a task, that of `config.json` counts.

`support/scores/comparison.py` reads the runs. `protocol.py` beside it averages them.
"""

import contextlib
import dataclasses
import pathlib
import signal
import sys

if sys.flags.safe_path:  # Python has not looked for modules beside this file.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from support.storage import finished
from support.system import atomic, command_line, signals, streams, temporary

if __name__ == '__main__':
    streams.protect()
    signals.end_by(signal.SIGTERM)
    temporary.provide('plotting')

from support.scores import comparison, figures, protocol, tables
from support.scores.runs import find_runs
from support.system.command_line import UserError


def write_files(out, files):
    """Write `files` {name: bytes} into the folder `out`, each whole or not at all.

    Raises OSError, with none of them left half-written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for name, data in files.items():
            stack.enter_context(atomic.writing(out / name)).write(data)


# The command line.


def add_runs(parser):
    """Add the flags that choose what is drawn, and where it goes."""
    parser.add_argument(
        '--logdir',
        nargs='+',
        required=True,
        type=command_line.home_path,
        metavar='DIR',
        help='trees of task/method/seed/metrics.jsonl, '
        'or folders of runs, which their config.json names',
    )
    parser.add_argument(
        '--out',
        type=command_line.home_path,
        metavar='DIR',
        help='where figures and tables go (default: plots in the first logdir)',
    )
    parser.add_argument(
        '--figure',
        type=command_line.number(int, 1),
        metavar='N',
        help='draw that figure of the paper: '
        f'{", ".join(map(str, figures.FIGURES))}; --tasks and --xmax change it',
    )
    parser.add_argument(
        '--tasks',
        nargs='+',
        metavar='NAME',
        help='only these, in this order; paper: the 20 of the paper, runs or none '
        '(default: all that have runs)',
    )


def add_curves(parser):
    """Add the flags for files of curves, as other authors publish theirs."""
    parser.add_argument(
        '--json',
        type=command_line.home_path,
        metavar='FILE',
        help='also write the runs as a list of objects with task, method, seed, xs '
        'and ys, as the authors publish theirs',
    )
    parser.add_argument(
        '--compare',
        nargs='+',
        default=[],
        type=command_line.home_path,
        metavar='FILE',
        help='draw the curves of such files, also with gzip, beside the runs',
    )


def add_averages(parser):
    """Add the flags on how runs are averaged and shown."""
    parser.add_argument(
        '--key',
        default='test/return',
        help='metric (default: test/return); published results are drawn beside '
        'returns only',
    )
    parser.add_argument(
        '--bin',
        type=command_line.number(float, 1),
        metavar='STEPS',
        help='width of bins [environment steps] (default: by the length of runs; '
        'a single run is smoothed instead)',
    )
    parser.add_argument(
        '--steps',
        type=command_line.number(float, 1),
        help='score runs around so many environment steps (default: at their ends)',
    )
    parser.add_argument(
        '--xmax',
        type=command_line.number(float, 1),
        metavar='STEPS',
        help='end of the horizontal axis (default: of the longest run)',
    )


def parse(argv=None):
    """Parse a command line; raise UserError on bad words."""
    parser = command_line.Parser(
        prog='plotting.py', description='Draw local runs beside the published results.'
    )
    add_runs(parser)
    add_curves(parser)
    add_averages(parser)
    args = parser.parse_args(argv)
    for folder in args.logdir:
        if not folder.is_dir():
            raise UserError(f'--logdir {folder} is not a folder')
    if args.figure is not None:
        args.figure = figures.find(args.figure)
        if not args.key.endswith('return'):
            raise UserError(
                f'--figure shows no {args.key}; possible: test/return, train/return'
            )
        if args.compare:
            raise UserError('--figure and --compare exclude each other')
    args.out = args.out or args.logdir[0] / 'plots'
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f'--out {args.out} is not a folder')
    if args.json and args.json.is_dir():
        raise UserError(f'--json {args.json} is a folder')
    return args


@dataclasses.dataclass
class Results:
    """Runs, averaged.

    `tasks` are the panels, and `runs` the local runs. `groups` {(task, method): runs},
    `curves` {(task, method): protocol.Curve} and `rows`, a list of `protocol.Row`,
    cover the runs of `--compare` too. `notes` are lines on what was left out.
    """

    tasks: list
    runs: list
    groups: dict
    curves: dict
    rows: list
    notes: list


def is_short(figure, runs):
    """Return whether `runs` end before the middle of the axis of `figure`. They then
    have an axis and bins of their own, because those of the figure would hide them.
    """
    return bool(runs) and max(run.steps.max() for run in runs) < figure.steps / 2


def gather(args, published):
    """Read and average the runs that the command line names.

    Raises UserError if there is nothing to draw.
    """
    paper = args.tasks == ['paper']
    tasks = list(figures.CONTROL_SUITE) if paper else args.tasks
    if args.figure:
        tasks = tasks or list(args.figure.tasks)
    runs, notes = find_runs(args.logdir, args.key, tasks)
    if args.figure:
        others = {run.method for run in runs} - {*args.figure.methods}
        notes += [f'not in the figure: {", ".join(sorted(others))}'] * bool(others)
        runs = [run for run in runs if run.method not in others]
    if not runs and not paper and not args.figure:
        hint = f'; {len(notes)} left out or skipped, first: {notes[0]}' if notes else ''
        raise UserError(
            f'no {args.key} in any metrics.jsonl under '
            f'{", ".join(map(str, args.logdir))}{hint}'
        )
    there = {run.task for run in runs}
    tasks = list(dict.fromkeys(tasks or sorted(there)))
    notes += _missing(tasks, there, published)
    groups = protocol.group(runs + read_others(args.compare, tasks, notes))
    width = args.bin
    if args.figure and not is_short(args.figure, runs):
        width = width or args.figure.bin
    curves = {name: protocol.make_curve(x, width) for name, x in groups.items()}
    rows = protocol.make_rows(groups, published, args.steps, notes)
    count = protocol.count_verdicts(rows)
    notes += [count] if count else []
    notes += _silent(runs)
    notes.append(f'read {len(runs)} run(s) of {len(there)} task(s)')
    return Results(tasks, runs, groups, curves, rows, notes)


def read_others(files, tasks, notes):
    """Return the runs on `tasks` in `files` of curves; note the others."""
    result = []
    for path in files:
        found = comparison.read_curves(path, notes)
        result += [run for run in found if run.task in tasks]
        others = sorted({run.task for run in found} - set(tasks))
        notes += [f'not drawn of {path}: {", ".join(others)}'] * bool(others)
    return sorted(result, key=lambda run: (run.task, run.method, run.seed))


def _silent(runs):
    """Return a note if there are runs that have not stated that they finished."""
    silent = [run.folder for run in runs if finished.step_of(run.folder) < 0]
    return [
        f'{len(silent)} of {len(runs)} run(s) do not state that they have finished, '
        f'first: {folder}'
        for folder in silent[:1]
    ]


def make_files(args, published):
    """Return all figures and tables as {name: bytes}, and the `Results` in them.

    Raises UserError if there is nothing to draw.
    """
    if not args.key.endswith('return'):
        published = None
    from support.scores import drawing  # Here: matplotlib takes a second to import.

    found = gather(args, published)
    tasks, rows, curves = found.tasks, found.rows, found.curves
    try:
        aggregates = protocol.aggregate(rows) if published else []
    except (ImportError, TypeError) as error:
        aggregates = []
        found.notes.append(
            f'left out the aggregates: rliable does not import ({error})'
        )
    colors = drawing.method_colors(method for _, method in curves)
    files = {
        'scores.csv': tables.scores_csv(rows).encode(),
        'scores.md': tables.scores_markdown(
            rows, tasks, published, aggregates, args.key
        ).encode(),
    }
    for name, figure in (
        (
            'curves',
            drawing.draw_curves(tasks, curves, published, colors, args.key, args.xmax),
        ),
        ('final', drawing.draw_finals(tasks, rows, published, colors)),
    ):
        files |= {f'{name}.{x}': data for x, data in drawing.render(figure).items()}
    return files, found


def make_figure(args, published):
    """Return a figure of the paper and its tables, as `make_files` does. Without runs
    the figure shows what is published.
    """
    from support.scores import drawing

    paper = args.figure
    found = gather(args, published)
    colors = drawing.method_colors(paper.methods)
    tasks, rows, notes = found.tasks, found.rows, found.notes
    short = is_short(paper, found.runs)
    if paper.kind == 'curves':
        longest = max((run.steps.max() for run in found.runs), default=0)
        xmax = args.xmax or (longest if short else paper.steps)
        figure = drawing.draw_curves(
            tasks, found.curves, published, colors, args.key, xmax, paper
        )
    else:
        draw = dict(settings=drawing.draw_settings, bars=drawing.draw_bars)[paper.kind]
        figure = draw(paper, tasks, rows, published, colors)
    name = f'figure_{paper.number}'
    files = {
        f'{name}.csv': tables.scores_csv(rows).encode(),
        f'{name}.md': tables.figure_markdown(
            paper, tasks, rows, found.groups, published, args.key
        ).encode(),
    }
    files |= {f'{name}.{x}': data for x, data in drawing.render(figure).items()}
    if short:
        notes.append(
            f'no run has half of the {paper.steps:,} steps of the paper: axis and bins '
            f'are those of the runs (as in the paper: --xmax {paper.steps} '
            f'--bin {paper.bin})'
        )
    notes += [f'unknown: {paper.unknown}'] * bool(paper.unknown)
    return files, found


def _missing(tasks, there, published):
    """Return notes on tasks without runs, or without published results."""
    names = {
        'runs of': [x for x in tasks if x not in there],
        'published results for': [
            x for x in tasks if published and x not in published.finals
        ],
    }
    return [f'no {what} {", ".join(tasks)}' for what, tasks in names.items() if tasks]


def main(argv=None):
    """Run the command line; return the exit code."""
    try:
        args = parse(argv)
        make = make_figure if args.figure else make_files
        files, found = make(args, comparison.Published())
        write_files(args.out, files)
        if args.json:
            write_files(
                args.json.parent,
                {args.json.name: comparison.curves_json(found.runs).encode()},
            )
    except (UserError, OSError) as error:
        command_line.print_error(error, 'plotting')
        return 2
    for note in found.notes:
        print(note)
    print(f'wrote {", ".join(files)} to {args.out}')
    if args.json:
        print(f'wrote {len(found.runs)} run(s) to {args.json}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
