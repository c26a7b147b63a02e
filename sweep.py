r"""Many runs on Ray: tasks x methods x seeds, on one machine or on a cluster.

    python sweep.py --tasks dmc20 --methods dreamer planet no_value --seeds 5 \
        --root DIR [--address HOST:PORT] [--dry_run] [-- further dreamer.py flags]
    python sweep.py --figure 7 --root DIR   # the runs of a figure of the paper

Every run is a process `python dreamer.py --logdir ROOT/task/method/seed ...`, which a
Ray task starts. Ray decides when, and on which machine. On a cluster, this folder, its
Python and the root must have the same path on all machines.

A run that fails is started again and resumes from its logdir. The same command, given
again, resumes what has not finished. The output of the runs is in ROOT/output.
"""

import dataclasses
import heapq
import itertools
import pathlib
import signal
import statistics
import sys
import time

if sys.flags.safe_path:  # Python has not looked for modules beside this file.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import configs
from support.run import advice, config_file
from support.scaling.jobs import Sweep, connect
from support.scores import comparison, figures
from support.storage import finished, metrics
from support.system import command_line, signals, streams, temporary
from support.system.command_line import UserError

DREAMER = pathlib.Path(__file__).resolve().parent / 'dreamer.py'

GROUPS = {
    'dmc20': lambda: figures.CONTROL_SUITE,
    'atari': lambda: [
        task for task in comparison.Published().finals if task.startswith('atari_')
    ],
    'dummy': lambda: ['dummy_continuous', 'dummy_discrete'],
}

# Hours for 1e6 environment steps on a V100, at the paper's settings (paper, section 6).
# The paper has none for `no_value`, for which those of Dreamer are taken.
HOURS = {'dreamer': 3, 'no_value': 3, 'planet': 11}

OWN_FLAGS = ('--logdir', '--task', '--method', '--seed', '--representation')
REPORT = 60  # seconds between reports where there is no terminal
TAIL = 1 << 16  # bytes of a metrics file that are read
INTERVALS = 10  # log intervals over which a run's speed is measured


@dataclasses.dataclass
class Job:
    """One run: its configuration, its command line, and its progress.

    `state` is waiting, running, finished, failed or stopped. The run's metrics have
    `step` [environment steps], `score`, the last test return, and `speed` [environment
    steps a second].
    """

    name: str
    config: configs.Config
    command: list
    output: pathlib.Path
    state: str = 'waiting'
    attempts: int = 0
    step: int = 0
    score: float | None = None
    speed: float | None = None
    note: str = ''

    def look(self):
        """Read the progress of the run; return False if it has not begun."""
        folder = pathlib.Path(self.config.logdir)
        if not config_file.exists(folder):
            return False
        self.step, self.score, self.speed = read_progress(folder)
        return True

    @property
    def finished(self):
        """Whether the run has stated that it finished, after as many steps as asked."""
        stated = finished.step_of(pathlib.Path(self.config.logdir))
        return self.look() and stated >= self.config.steps

    @property
    def left(self):
        """Environment steps that are left."""
        return max(0, self.config.steps - self.step)

    @property
    def seconds(self):
        """Seconds until a run that runs will end; None if nobody knows."""
        if self.state == 'running' and self.speed:
            return self.left / self.speed
        return None

    @property
    def hours(self):
        """Hours that are left on the paper's V100; None for smaller networks."""
        if self.config.cnn_depth < configs.Config.cnn_depth:
            return None
        return self.left / 1e6 * HOURS[self.config.method]


def read_progress(folder):
    """Return how far a run is.

    Returns:
      step: the last one at which losses were logged [environment steps]; 0 before.
      score: the last test return; None before.
      speed: over the last log intervals [environment steps a second]; None before.
    """
    step, score, speeds = 0, None, []
    try:
        for row in metrics.read(folder, TAIL):
            if row and 'gradient_step' in row:
                step = int(row['step'])
            if row and metrics.is_number(row.get('test/return')):
                score = row['test/return']
            if row and metrics.is_number(row.get('fps')) and row['fps'] > 0:
                speeds.append(row['fps'])
    except OSError:
        pass  # It has not begun.
    # The first interval has the prefill, which is faster.
    speeds = speeds[1:][-INTERVALS:]
    return step, score, statistics.harmonic_mean(speeds) if speeds else None


# The plan.


def expand_tasks(words):
    """Return the names of tasks that groups and names stand for, each once."""
    tasks = []
    for word in words:
        if word in GROUPS:
            tasks += GROUPS[word]()
        elif '_' in word and word.split('_')[0] in configs.SUITE_PRESETS:
            tasks.append(word)
        else:
            raise UserError(
                f"unknown task or group '{word}'; groups: {', '.join(GROUPS)}; tasks "
                f'are named SUITE_NAME with suites: {", ".join(configs.SUITE_PRESETS)}'
            )
    return list(dict.fromkeys(tasks))


def check_flags(flags_of, extra):
    """Raise UserError if a flag is set twice: by the sweep, a method or the user.

    Args:
      flags_of: {name of a method: its flags}.
      extra: words behind `--`.
    """
    asked = {word.split('=')[0] for word in extra}
    for name, flags in flags_of.items():
        varied = figures.split(name)[1] and flags[-2]
        if varied in OWN_FLAGS:
            raise UserError(f'{name}: {varied} is set by the sweep itself')
        for word in asked & {*OWN_FLAGS, varied}:
            raise UserError(f'{word} is set by the sweep itself, for each run')


def make_jobs(args, extra):
    """Make all runs of a sweep: of the first seed first.

    Args:
      args: of `parse`.
      extra: further words for dreamer.py.

    Raises:
      UserError: the flags cannot run, or a logdir belongs to another configuration.
    """
    common = args.figure.flags if args.figure else []
    flags_of = {name: figures.flags_of(name) for name in args.methods}
    check_flags(flags_of, extra)
    return [
        make_job(args.root.resolve(), task, method, seed, [*common, *flags, *extra])
        for seed, task, (method, flags) in itertools.product(
            range(args.seeds), expand_tasks(args.tasks), flags_of.items()
        )
    ]


def make_job(root, task, method, seed, flags):
    """Make one run of a sweep.

    Args:
      root: `pathlib.Path` of the folder of all runs.
      task, method, seed: of the run; they name its folder.
      flags: further words for dreamer.py.

    Raises:
      UserError: the flags cannot run, or the logdir belongs to another configuration.
    """
    # A Gymnasium name may hold a slash; folders are task/method/seed.
    name = f'{task.replace("/", "-")}/{method}/{seed}'
    logdir = root / name
    flags = ['--logdir', str(logdir), '--task', task, '--seed', str(seed), *flags]
    config = configs.parse(flags)
    # The name of a task need not tell whether its actions are discrete.
    if config_file.differences(config_file.settle(flags, config, True), logdir):
        config_file.refuse_changes(
            config_file.settle(flags, config, False), logdir, '--root'
        )
    output = root / 'output' / (name.replace('/', '.') + '.txt')
    job = Job(name, config, [sys.executable, str(DREAMER), *flags], output)
    if job.finished:
        job.state = 'finished'
    return job


def describe(jobs, rows=True):
    """Return the plan as lines of text; with `rows`, a line for every run first."""
    lines = []
    for job in jobs if rows else []:
        line = f'{job.name}: {job.state}, {job.step:,} of {job.config.steps:,} steps'
        lines.append(
            line if job.hours is None else f'{line}, {job.hours:.1f} GPU hours left'
        )
    left = [job for job in jobs if job.state != 'finished']
    lines.append(
        f'{len(jobs)} run{"s" * (len(jobs) > 1)}, {len(jobs) - len(left)} finished; '
        f'{sum(job.left for job in left):,} environment steps left'
    )
    hours = [job.hours for job in left]
    if hours and None not in hours:
        lines[-1] += f': about {sum(hours):,.1f} GPU hours'
        lines.append(
            'The estimate is for the settings and the GPU of the paper, which reports '
            'for 1e6 environment steps on a V100 3 hours (Dreamer) and 11 hours '
            '(PlaNet).'
        )
    return lines


# Progress.


def counts(jobs):
    """Return the number of runs in each state, as text."""
    states = [job.state for job in jobs]
    return ', '.join(f'{states.count(x)} {x}' for x in dict.fromkeys(states))


def outlook(jobs):
    """Return `counts`, and the time left if all that run have a speed.

    A waiting run takes the first place that becomes free, at the mean speed.
    """
    running = [job for job in jobs if job.state == 'running']
    ends = [job.seconds for job in running]
    if not ends or None in ends:
        return counts(jobs)
    heapq.heapify(ends)
    speed = statistics.mean(job.speed for job in running)
    for job in jobs:
        if job.state == 'waiting':
            heapq.heapreplace(ends, ends[0] + job.left / speed)
    return f'{counts(jobs)}, about {advice.duration(max(ends))} left'


def _progress(job):
    """Steps, return, time left, attempts and note of a run, as text."""
    score = '' if job.score is None else f'{job.score:.1f}'
    return (
        f'{job.step:,} of {job.config.steps:,}',
        score,
        '' if job.seconds is None else advice.duration(job.seconds),
        str(job.attempts),
        job.note,
    )


def live_table(jobs):
    """Return a table for a terminal of the runs that run, or have failed."""
    from rich.table import Table

    table = Table(
        *'run state steps return left attempts note'.split(), title=outlook(jobs)
    )
    for job in jobs:
        if job.state in ('running', 'failed') or job.note:
            table.add_row(job.name, job.state, *_progress(job))
    return table


class Lines:
    """Plain lines where there is no terminal: changes of state, and regular reports."""

    def __init__(self):
        self._last = {}
        self._due = time.monotonic() + REPORT

    def __call__(self, jobs):
        report, now = time.monotonic() >= self._due, time.strftime('%H:%M:%S')
        for job in jobs:
            key = job.state, job.attempts
            if self._last.get(job.name) != key or report and job.state == 'running':
                steps, score, left, attempts, note = _progress(job)
                print(
                    f'{now} {job.name}: {job.state}, {steps} steps, return '
                    f'{score or "-"}, {f"{left} left, " * bool(left)}attempt '
                    f'{attempts}{", " * bool(note)}{note}',
                    flush=True,
                )
            self._last[job.name] = key
        if report:
            print(f'{now} {outlook(jobs)}', flush=True)
            self._due = time.monotonic() + REPORT


def run_all(ray, jobs, args):
    """Run the jobs, and show them by a table on a terminal and by lines elsewhere."""
    sweep = Sweep(ray, jobs, args)
    if not sys.stdout.isatty():
        sweep.work(Lines())
        return
    from rich.live import Live

    with Live(live_table(jobs), auto_refresh=False) as live:
        sweep.work(lambda jobs: live.update(live_table(jobs), refresh=True))


# The command line.


def add_runs(parser):
    """Add the flags that choose the runs."""
    parser.add_argument(
        '--figure',
        type=command_line.number(int, 1),
        metavar='N',
        help='the runs of a figure of the paper; the other flags, and words after --, '
        f'change them: {", ".join(map(str, figures.FIGURES))}',
    )
    parser.add_argument(
        '--tasks',
        nargs='+',
        metavar='NAME',
        help=f'tasks, or groups of them: {", ".join(GROUPS)}',
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        metavar='NAME',
        help=f'{", ".join(HOURS)}, each also with _contrastive or _reward, and with '
        'a flag and its value, such as dreamer-horizon-10 (default: dreamer)',
    )
    parser.add_argument(
        '--seeds',
        type=command_line.number(int, 1),
        metavar='N',
        help='runs with the seeds 0 to N - 1 (default: 1, or as many as the figure '
        'has)',
    )
    parser.add_argument(
        '--root',
        type=command_line.home_path,
        required=True,
        metavar='DIR',
        help='holds task/method/seed, as plotting.py reads it',
    )


def add_ray(parser):
    """Add the flags on where the runs are run, and how often they are retried."""
    parser.add_argument(
        '--address',
        metavar='HOST:PORT',
        help='of a running Ray '
        'cluster, or auto (default: Ray is started on this machine)',
    )
    parser.add_argument(
        '--gpus_per_run',
        type=command_line.number(float, 0),
        metavar='X',
        help='may be a fraction, so that runs share a GPU (default: 1 '
        'where there are GPUs)',
    )
    parser.add_argument(
        '--cpus_per_run',
        type=command_line.number(float, 0),
        default=1.0,
        metavar='X',
        help='cores (default: 1)',
    )
    parser.add_argument(
        '--retries',
        type=command_line.number(int, 0),
        default=3,
        metavar='N',
        help='how often a failed run is started again (default: 3)',
    )
    parser.add_argument(
        '--dry_run',
        action='store_true',
        help='print the plan and an estimate of GPU hours, no more',
    )


def parse(argv):
    """Parse a command line up to `--`; raise UserError on bad words."""
    parser = command_line.Parser(
        prog='sweep.py',
        description='Many runs on Ray. Words after -- go to dreamer.py.',
    )
    add_runs(parser)
    add_ray(parser)
    args = parser.parse_args(argv)
    if args.figure is not None:
        args.figure = figures.find(args.figure)
        for name in ('tasks', 'methods', 'seeds'):
            setattr(args, name, getattr(args, name) or getattr(args.figure, name))
    if not args.tasks:
        raise UserError('nothing to run; possible: --tasks NAME ... or --figure N')
    args.methods, args.seeds = args.methods or ['dreamer'], args.seeds or 1
    if args.root.exists() and not args.root.is_dir():
        raise UserError(f'--root {args.root} is not a folder')
    return args


def check_text(words):
    """Raise UserError if Ray, which takes UTF-8 alone, cannot take one of `words`."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f'{word} is not UTF-8, which Ray needs; choose another name'
            ) from None


def main(argv=None):
    """Run the command line; return the exit code: 0 if all runs have finished, 1 if
    some have not, 2 for bad input.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index('--') if '--' in argv else len(argv)
    try:
        args = parse(argv[:end])
        check_text([f'--root {args.root.resolve()}', *argv])
        jobs = make_jobs(args, argv[end + 1 :])
        if args.figure and args.figure.unknown:
            print(f'figure {args.figure.number}: {args.figure.unknown}', flush=True)
        if args.dry_run:
            print('\n'.join(describe(jobs)))
            return 0
        left = any(job.state != 'finished' for job in jobs)
        ray = connect(args) if left else None
    except (UserError, OSError) as error:
        command_line.print_error(error, 'sweep')
        return 2
    print('\n'.join(describe(jobs, rows=False)), flush=True)
    if ray:
        try:
            run_all(ray, jobs, args)
        finally:
            ray.shutdown()
        print(counts(jobs))
    return int(any(job.state != 'finished' for job in jobs))


if __name__ == '__main__':
    streams.protect()
    signals.end_by(signal.SIGTERM)
    temporary.provide('sweep')
    sys.exit(main())
