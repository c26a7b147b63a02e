"""Draws local runs beside the published results: two figures and the tables.

    python plotting.py --logdir ./logs [--out DIR] [--tasks NAME ...] [--bin 1e4] ...

Below `--logdir` every folder with a `metrics.jsonl` is a run. A folder three levels
down is `task/method/seed`; any other one, the logdir itself included, is named by its
`config.json`. Where both name a task, `config.json` is believed.

What is read and how it is averaged: see `comparison.py`.
"""

import contextlib
import csv
import io
import itertools
import math
import sys

import matplotlib

matplotlib.use('Agg')  # Machines that train have no display.

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402
from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: E402

import configs  # noqa: E402
from scores import comparison  # noqa: E402
from scores.comparison import BASELINES, ScoreError  # noqa: E402
from storage import atomic, output  # noqa: E402

# One colour a method, in every figure, whether local or published (Okabe and Ito's
# palette, which stays apart for colour-blind readers; greys are for what only others
# have run). Methods that are not here take the spare ones in alphabetical order.
COLORS = {
    'dreamer': '#0072B2',
    'planet': '#009E73',
    'no_value': '#E69F00',
    'dreamer_contrastive': '#CC79A7',
    'dreamer_reward': '#D55E00',
    'd4pg': '#333333',
    'a3c': '#999999',
    'dqn': '#BBBBBB',
    'c51': '#888888',
    'rainbow': '#555555',
    'iqn': '#222222',
    'impala': '#333333',
}
SPARE_COLORS = (
    '#7F3C8D',
    '#8C564B',
    '#B5BD00',
    '#56B4E9',
    '#F0A3A3',
    '#4B4BC8',
    '#004D40',
    '#E6007E',
    '#8CD17D',
    '#5D001E',
    '#B8A1F0',
    '#806000',
)
# Of final scores that are drawn as lines; alternating within each suite.
LINE_STYLES = (':', '-.', (0, (5, 1)), (0, (1, 3)))

# Drawing.


def method_colors(methods):
    """A colour for each of `methods`, the same in every figure."""
    spare = itertools.cycle(SPARE_COLORS)
    return COLORS | {
        method: next(spare) for method in sorted(set(methods)) if method not in COLORS
    }


def task_title(task):
    """`dmc_walker_walk` as `Walker Walk`."""
    return (
        task.removeprefix('dmc_')
        .removeprefix('atari_')
        .removeprefix('dmlab_')
        .replace('_', ' ')
        .title()
    )


def make_grid(count, height, width=2.6, columns=5, **kwargs):
    """A figure with `count` panels, five in a row as in the paper, and their axes."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    # The legend needs room, also above a single panel.
    figure = Figure(
        (max(width * columns + 0.5, 6.5), height * lines + 1.2), layout='constrained'
    )
    axes = figure.subplots(lines, columns, squeeze=False, **kwargs).flatten()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def draw_curves(tasks, curves, published, colors, key='test/return', xmax=None):
    """Learning curves: a panel for each of `tasks`, local ones solid with the spread
    over seeds as a band, the released ones dashed, final scores as lines.
    """
    figure, panels = make_grid(len(tasks), 2.0)
    handles = {}
    for ax, task in zip(panels, tasks):
        if published:
            _draw_published(ax, task, published, colors, handles)
        for method in sorted(m for t, m in curves if t == task):
            curve, color = curves[task, method], colors[method]
            marker = '.' if len(curve.steps) <= 25 else None
            (handles[f'{method}, own'],) = ax.plot(
                curve.steps, curve.mean, color=color, marker=marker, lw=1.8, zorder=3
            )
            ax.fill_between(
                curve.steps,
                curve.mean - curve.std,
                curve.mean + curve.std,
                color=color,
                alpha=0.25,
                lw=0,
            )
        ax.set_title(task_title(task), fontsize=10)
        # Tasks of a suite share their axis: their lengths are to be compared.
        ends = [
            curve.steps[-1]
            for (name, _), curve in curves.items()
            if name.split('_')[0] == task.split('_')[0]
        ]
        ax.set_xlim(0, (xmax or max(ends, default=5e6) or 1) * 1.02)
        if task.startswith('dmc_') and key.endswith('return'):
            ax.set_ylim(-20, 1040)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(EngFormatter(sep=''))
        _plain(ax)
    figure.supxlabel('environment steps', fontsize=10)
    figure.supylabel(key, fontsize=10)
    _legend(figure, handles)
    return figure


def _draw_published(ax, task, published, colors, handles):
    if task in published.curves:
        steps, mean, std, _ = published.curves[task]
        color = colors['dreamer']
        (handles['Dreamer, released curves'],) = ax.plot(
            steps, mean, color=color, ls='--', lw=1.2
        )
        ax.fill_between(steps, mean - std, mean + std, color=color, alpha=0.1, lw=0)
    for column, value in published.finals.get(task, {}).items():
        if column != 'dreamer_5e6':
            handles[baseline_label(column)] = ax.axhline(
                value,
                color=colors[column.split('_')[0]],
                lw=1,
                ls=LINE_STYLES[list(BASELINES).index(column) % 4],
            )


def baseline_label(column):
    """`planet_5e6` as `PlaNet (5e6)`: the score is of that many steps."""
    return f'{BASELINES[column]} ({column.split("_")[1]})'


def _plain(ax):
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.25, lw=0.5)
    ax.tick_params(labelsize=8)


def _legend(figure, handles):
    if handles:
        handles = dict(sorted(handles.items(), key=lambda x: not x[0].endswith('own')))
        columns = max(1, int(figure.get_figwidth() // 2))
        # Below the panels it would lie on the label of the axis.
        figure.legend(
            handles.values(),
            handles.keys(),
            loc='outside upper center',
            ncols=columns,
            fontsize=8,
            frameon=False,
        )


def draw_finals(tasks, rows, published, colors):
    """Final scores: a panel for each of `tasks`, a bar for each method. Published ones
    are pale and hatched, and measured at the steps that their labels say.
    """
    bars = {task: _bars(task, rows, published) for task in tasks}
    order = (
        [f'{method}, own' for method in sorted({row.method for row in rows})]
        + ['Dreamer, same steps']
        + [baseline_label(column) for column in BASELINES]
    )
    labels = [x for x in order if any(x in shown for shown in bars.values())]
    figure, panels = make_grid(len(tasks), 0.5 + 0.19 * len(labels), sharey=True)
    for ax, task in zip(panels, tasks):
        for label, (method, mean, std, own) in bars[task].items():
            y = labels.index(label)
            style = {} if own else dict(alpha=0.4, hatch='////', ec='white')
            ax.barh(
                y,
                mean,
                color=colors[method],
                lw=0,
                xerr=std,
                error_kw=dict(lw=1, ecolor='#222222'),
                **style,
            )
            ax.annotate(
                format_score(mean),
                (max(mean + (std or 0), 0), y),
                (3, 0),
                textcoords='offset points',
                va='center',
                fontsize=7,
            )
        ax.set_title(task_title(task), fontsize=10)
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        _plain(ax)
        low, high = (0, 1000) if task.startswith('dmc_') else ax.get_xlim()
        ax.set_xlim(low, high + 0.28 * (high - low))  # Room for the numbers.
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.grid(False)
    figure.supxlabel('score', fontsize=10)
    _legend(
        figure,
        {
            'own runs': Patch(fc='#666666'),
            'published': Patch(fc='#666666', alpha=0.4, hatch='////', ec='white'),
            'spread over seeds': Line2D([], [], color='#222222', lw=1),
        },
    )
    return figure


def _bars(task, rows, published):
    """{label: (method, mean, std, own)} of one panel."""
    bars = {}
    for row in (row for row in rows if row.task == task):
        bars[f'{row.method}, own'] = row.method, row.score, row.std, True
        if row.published is not None and row.method == 'dreamer':
            bars['Dreamer, same steps'] = (
                'dreamer',
                row.published,
                row.published_std,
                False,
            )
    for column, value in (published.finals.get(task, {}) if published else {}).items():
        bars[baseline_label(column)] = column.split('_')[0], value, None, False
    return bars


# Writing.


def format_score(value, digits=None):
    """A score with the decimals that its size asks for, or with `digits`."""
    if value is None:
        return '-'
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f'{value:.{digits}f}'


def _markdown(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines) + '\n'


def _spread(mean, std):
    text = format_score(mean)
    return text if std is None else f'{text} ± {format_score(std)}'


def scores_markdown(rows, tasks, published, aggregates, key, widths):
    """The tables as Markdown: own scores, published final ones, aggregates."""
    bins = ', '.join(sorted({f'{width:,.0f}' for width in widths.values()}))
    parts = [
        '# Scores\n',
        f'Own: `{key}`, averaged in the bin around the given environment steps (bins '
        f'of {bins or "-"}) and then over seeds, ± population standard deviation. '
        'Published: the released Dreamer curves at the same steps (PlaNet: the '
        "paper's final score). Difference: (own - published) / published spread; "
        f'verdict: inside {comparison.INSIDE} spreads, above or below.\n',
        _markdown(
            'task method seeds steps own published difference verdict'.split(),
            [
                [
                    row.task,
                    row.method,
                    len(row.scores),
                    f'{row.steps:,}',
                    _spread(row.score, row.std),
                    _spread(row.published, row.published_std),
                    '-' if row.difference is None else f'{row.difference:+.1f}',
                    row.verdict or '-',
                ]
                for row in rows
            ],
        ),
    ]
    count = comparison.count_verdicts(rows)
    if count:
        parts.append(f'{count}.\n')
    if published:
        parts += _finals_markdown(tasks, published)
    if aggregates:
        parts += [
            '## Aggregates\n',
            'Control Suite, score / 1000; in brackets the 95 % interval of a bootstrap '
            'over runs, stratified by task.\n',
            _markdown(
                ['method', 'tasks', 'seeds', 'interquartile mean', 'mean'],
                [
                    [
                        x['method'],
                        x['tasks'],
                        x['seeds'],
                        _interval(*x['iqm']),
                        _interval(*x['mean']),
                    ]
                    for x in aggregates
                ],
            ),
        ]
    return '\n'.join(parts)


def _finals_markdown(tasks, published):
    tables = {
        task: published.finals[task] for task in tasks if task in published.finals
    }
    columns = [x for x in BASELINES if any(x in table for table in tables.values())]
    if not columns:
        return []
    lines = [
        [task, *(format_score(table.get(x)) for x in columns)]
        for task, table in tables.items()
    ]
    if any(task.startswith('dmc_') for task in tables):
        means = published.means()
        lines.append(
            ['mean of all dmc tasks', *(format_score(means.get(x), 2) for x in columns)]
        )
    return [
        '## Published final scores\n',
        'After the steps in brackets; comparable with own scores after as many.\n',
        _markdown(['task', *map(baseline_label, columns)], lines),
    ]


def _interval(value, low, high):
    ends = '' if low is None else f' ({low:.3f} to {high:.3f})'
    return f'{value:.3f}{ends}'


def scores_csv(rows):
    """The table of own scores as CSV; an empty cell is a number that there is not."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(
        [
            'task',
            'method',
            'seeds',
            'steps',
            'score',
            'score_std',
            'published',
            'published_std',
            'difference',
            'verdict',
        ]
    )
    for row in rows:
        numbers = (row.score, row.std, row.published, row.published_std, row.difference)
        writer.writerow(
            [
                row.task,
                row.method,
                len(row.scores),
                row.steps,
                *('' if x is None else f'{x:.4f}' for x in numbers),
                row.verdict or '',
            ]
        )
    return file.getvalue()


def write_files(out, files):
    """Write `files` {name: bytes} into the folder `out`, each whole or not at all.

    Raises OSError, with none of them left half-written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for name, data in files.items():
            stack.enter_context(atomic.writing(out / name)).write(data)


def render(figure):
    """A figure as {suffix: bytes}, the same bytes for the same figure."""
    files = {}
    for kind, metadata in (('png', {}), ('pdf', {'CreationDate': None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)
        files[kind] = file.getvalue()
    return files


# The command line.


def parse(argv=None):
    """The command line's words as a namespace; ConfigError on bad ones."""
    parser = configs.Parser(
        prog='plotting.py', description='Draw local runs beside the published results.'
    )
    parser.add_argument(
        '--logdir',
        nargs='+',
        required=True,
        type=configs.home_path,
        metavar='DIR',
        help='trees of task/method/seed/metrics.jsonl, '
        'or folders of runs, which their config.json names',
    )
    parser.add_argument(
        '--out',
        type=configs.home_path,
        metavar='DIR',
        help='where figures and tables go (default: plots in the first logdir)',
    )
    parser.add_argument(
        '--tasks',
        nargs='+',
        metavar='NAME',
        help='only these, in '
        'this order; paper: the 20 of the paper, runs or none '
        '(default: all that have runs)',
    )
    parser.add_argument(
        '--key',
        default='test/return',
        help='metric (default: test/return); published results are '
        'drawn beside returns only',
    )
    parser.add_argument(
        '--bin',
        type=configs.number(float, 1),
        metavar='STEPS',
        help='width of bins [environment steps] (default: by the length of runs)',
    )
    parser.add_argument(
        '--steps',
        type=configs.number(float, 1),
        help='score runs at so many '
        'environment steps (default: the last that most have)',
    )
    parser.add_argument(
        '--xmax',
        type=configs.number(float, 1),
        metavar='STEPS',
        help='end of the horizontal axis (default: of the longest run)',
    )
    args = parser.parse_args(argv)
    for folder in args.logdir:
        if not folder.is_dir():
            raise configs.ConfigError(f'--logdir {folder} is not a folder')
    args.out = args.out or args.logdir[0] / 'plots'
    if args.out.exists() and not args.out.is_dir():
        raise configs.ConfigError(f'--out {args.out} is not a folder')
    return args


def make_files(args, published):
    """All figures and tables as {name: bytes}, and notes on what is not in them.

    Raises ScoreError if there is nothing to draw.
    """
    paper = list(published.curves) if args.tasks == ['paper'] else []
    runs, notes = comparison.find_runs(args.logdir, args.key, paper or args.tasks)
    if not runs and not paper:
        hint = f'; {len(notes)} left out or skipped, first: {notes[0]}' if notes else ''
        raise ScoreError(
            f'no {args.key} in any metrics.jsonl under '
            f'{", ".join(map(str, args.logdir))}{hint}'
        )
    if not args.key.endswith('return'):
        published = None
    own = {run.task for run in runs}
    tasks = paper or list(dict.fromkeys(args.tasks or sorted(own)))
    notes += _missing(tasks, own, published)
    widths = {
        task: args.bin or comparison.bin_width([x for x in runs if x.task == task])
        for task in own
    }
    curves = {
        name: comparison.make_curve(list(group), widths[name[0]])
        for name, group in itertools.groupby(runs, lambda x: (x.task, x.method))
    }
    rows = comparison.make_rows(curves, widths, published, args.steps, notes)
    count = comparison.count_verdicts(rows)
    notes += [count] if count else []
    try:
        aggregates = comparison.aggregate(rows) if published else []
    except (ImportError, TypeError) as error:
        aggregates = []
        notes.append(f'left out the aggregates: rliable does not import ({error})')
    colors = method_colors(run.method for run in runs)
    files = {
        'scores.csv': scores_csv(rows).encode(),
        'scores.md': scores_markdown(
            rows, tasks, published, aggregates, args.key, widths
        ).encode(),
    }
    for name, figure in (
        ('curves', draw_curves(tasks, curves, published, colors, args.key, args.xmax)),
        ('final', draw_finals(tasks, rows, published, colors)),
    ):
        files |= {f'{name}.{kind}': data for kind, data in render(figure).items()}
    notes.append(f'read {len(runs)} run(s) of {len(own)} task(s)')
    return files, notes


def _missing(tasks, own, published):
    names = {
        'runs of': [x for x in tasks if x not in own],
        'published results for': [
            x for x in tasks if published and x not in published.finals
        ],
    }
    return [f'no {what} {", ".join(tasks)}' for what, tasks in names.items() if tasks]


def main(argv=None):
    """The command line; returns the exit code."""
    try:
        args = parse(argv)
        files, notes = make_files(args, comparison.Published())
        write_files(args.out, files)
    except (configs.ConfigError, ScoreError, OSError) as error:
        configs.print_error(error, 'plotting')
        return 2
    for note in notes:
        print(note)
    print(f'wrote {", ".join(files)} to {args.out}')
    return 0


if __name__ == '__main__':
    output.guard()
    sys.exit(main())
