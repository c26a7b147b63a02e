"""Many runs on Ray: tasks x methods x seeds, on one machine or on a cluster.

    python sweep.py --tasks dmc20 --methods dreamer planet no_value --seeds 5 \\
        --root DIR [--address HOST:PORT] [--dry_run] [-- further dreamer.py flags]

Every run is `python dreamer.py --logdir ROOT/task/method/seed ...` in a process of its
own, started by a Ray task; Ray says when and on which machine. On a cluster, this
folder, its Python and the root must have the same path everywhere. A failed run is
started again and resumes from its own logdir. The same command again goes on with what
is not finished. What the runs print is in ROOT/output.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import configs
from acting import workers
from scores import comparison
from storage import output

DREAMER = pathlib.Path(__file__).resolve().parent / 'dreamer.py'

GROUPS = {
    'dmc20': lambda scores: list(scores.curves),
    'atari': lambda scores: [x for x in scores.finals if x.startswith('atari_')],
    'dummy': lambda scores: ['dummy_continuous', 'dummy_discrete'],
}

# Hours for 1e6 environment steps on a V100, at the paper's settings (paper, section 6).
# There is no figure for `no_value`, which counts as Dreamer.
HOURS = {'dreamer': 3, 'no_value': 3, 'planet': 11}

OWN_FLAGS = ('--logdir', '--task', '--method', '--seed', '--representation')
REFRESH = 2  # seconds between looks at the runs
REPORT = 60  # seconds between reports where there is no terminal
TAIL = 1 << 16  # bytes of a metrics file that are read
# What opens a connection of Ray's protocol, gRPC, and is answered likewise: a preface,
# and a frame of 9 bytes whose fourth, 4, says that it holds settings, here none.
HTTP2_HELLO = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0'


class SweepError(ValueError):
    """Nothing can be started; the message is one line for the user."""


@dataclasses.dataclass
class Job:
    """One run: its configuration, its command line, and how it stands.

    `state` is waiting, running, finished, failed or stopped; `step` [environment
    steps] and `score`, the last test return, are read from its metrics.
    """

    name: str
    config: configs.Config
    command: list
    output: pathlib.Path
    state: str = 'waiting'
    attempts: int = 0
    step: int = 0
    score: float | None = None
    note: str = ''

    def look(self):
        """Read how far the run is; False if its logdir says nothing about it."""
        folder = pathlib.Path(self.config.logdir)
        if not (folder / 'config.json').exists():
            return False
        self.step, self.score = read_progress(folder / 'metrics.jsonl')
        return True

    @property
    def finished(self):
        """Whether the training has reached the steps that are asked for."""
        return self.look() and self.step >= self.config.steps

    @property
    def hours(self):
        """What is left, in GPU hours of the paper's V100."""
        left = max(0, self.config.steps - self.step)
        return left / 1e6 * HOURS[self.config.method]


def read_progress(path):
    """The last step [environment steps] at which a run has trained and logged its
    losses, 0 if there is none, and its last test return, or None."""
    step, score = 0, None
    try:
        with path.open('rb') as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return step, score
    for line in lines:
        try:
            row = json.loads(line)
            if 'gradient_step' in row:
                step = int(row['step'])
            score = row.get('test/return', score)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # Damaged, or cut off by the tail's start or by a crash.
    return step, score


# The plan.


def expand_tasks(words):
    """Names of tasks for groups and names, each once."""
    scores = comparison.Published()
    tasks = []
    for word in words:
        if word in GROUPS:
            tasks += GROUPS[word](scores)
        elif '_' in word and word.split('_')[0] in configs.SUITES:
            tasks.append(word)
        else:
            raise SweepError(
                f"unknown task or group '{word}'; groups: {', '.join(GROUPS)}; tasks "
                f'are named SUITE_NAME with suites: {", ".join(configs.SUITES)}'
            )
    return list(dict.fromkeys(tasks))


def method_flags(name):
    """Flags for `METHOD` or `METHOD_REPRESENTATION`, as plotting.py names them."""
    for method, representation in itertools.product(
        HOURS, ('reconstruction', 'contrastive', 'reward')
    ):
        if name in (method, f'{method}_{representation}'):
            return ['--method', method, '--representation', representation]
    raise SweepError(
        f"unknown method '{name}'; possible: {', '.join(HOURS)}, each "
        'also with _contrastive or _reward'
    )


def make_jobs(args, extra):
    """All runs, the first seed of everything first.

    Args:
      args: of `parse`.
      extra: further flags for dreamer.py.

    Raises SweepError or configs.ConfigError on flags that cannot run, and where a
    logdir belongs to another configuration.
    """
    for word in extra:
        if word.split('=')[0] in OWN_FLAGS:
            raise SweepError(f'{word} is set by the sweep itself, for each run')
    jobs = []
    tasks, methods = expand_tasks(args.tasks), list(dict.fromkeys(args.methods))
    for seed, task, method in itertools.product(range(args.seeds), tasks, methods):
        # A Gymnasium name may hold a slash; folders are task/method/seed.
        name = f'{task.replace("/", "-")}/{method}/{seed}'
        logdir = args.root.resolve() / name
        flags = [
            '--logdir',
            str(logdir),
            '--task',
            task,
            *method_flags(method),
            '--seed',
            str(seed),
            *extra,
        ]
        # Warnings are the run's own to give.
        with contextlib.redirect_stderr(io.StringIO()):
            config = configs.parse(flags)
            # Whether its actions are discrete, a task does not tell by its name.
            of_discrete = configs.parse(flags, discrete=True)
        if configs.differences(of_discrete, logdir / 'config.json'):
            configs.refuse_changes(config, logdir, '--root')
        output = args.root.resolve() / 'output' / (name.replace('/', '.') + '.txt')
        jobs.append(Job(name, config, [sys.executable, str(DREAMER), *flags], output))
        if jobs[-1].finished:
            jobs[-1].state = 'finished'
    return jobs


def describe(jobs, rows=True):
    """The plan as lines of text, each run's first if `rows`."""
    lines = (
        [
            f'{job.name}: {job.state}, {job.step:,} of {job.config.steps:,} steps, '
            f'{job.hours:.1f} GPU hours left'
            for job in jobs
        ]
        if rows
        else []
    )
    left = [job for job in jobs if job.state != 'finished']
    steps = sum(job.config.steps - job.step for job in left)
    return [
        *lines,
        (
            f'{len(jobs)} runs, {len(jobs) - len(left)} finished; {steps:,} '
            'environment steps left: about '
            f'{sum(job.hours for job in left):,.1f} GPU hours'
        ),
        'The estimate is for the settings and the GPU of the paper, which reports for '
        '1e6 environment steps on a V100 3 hours (Dreamer) and 11 hours (PlaNet).',
    ]


# One run, in a Ray worker.


def run_job(command, output, threads):
    """Start a run and wait for its end; returns its exit code.

    When Ray cancels the task, the run gets SIGTERM, and its saving is waited for. When
    Ray kills this process, for lack of memory, the run is killed too, so that its next
    attempt finds its logdir free.

    Args:
      command: words.
      output: path of the file that takes what it prints.
      threads: that TensorFlow computes with, unless the user has set them.
    """
    # Ray cancels by an interrupt, which programs in the background ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    env = dict(os.environ)
    env.setdefault('TF_NUM_INTRAOP_THREADS', str(threads))
    process = None
    try:
        with open(output, 'ab') as file:
            file.write(f'--- on {socket.gethostname()}: {" ".join(command)}\n'.encode())
            file.flush()
            # In a session of its own, where a terminal's Ctrl-C does not reach it.
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=workers.die_with_parent,
            )
        # Ray interrupts Python code, not a system call that waits.
        while process.poll() is None:
            time.sleep(0.2)
    except BaseException:
        if process:
            process.terminate()
        while process and process.poll() is None:
            with contextlib.suppress(BaseException):  # Ray may ask more than once,
                process.wait()  # and a second SIGTERM would not let the run save.
    return process.returncode if process else -signal.SIGTERM


# All runs.


def connect(args):
    """Start Ray here, or join the cluster at `--address`; returns the module.

    Raises SweepError if Ray is missing, the cluster does not answer, or no machine is
    large enough for a run.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')
    try:
        import ray
    except ImportError:
        raise SweepError(
            'Ray is not installed; install it with: pip install -r '
            'requirements-sweep.txt'
        ) from None
    where = dict(
        num_cpus=os.cpu_count(), object_store_memory=100 << 20, include_dashboard=False
    )
    if args.address:
        _check_address(args.address)
        where = dict(address=args.address)
    try:
        ray.init(log_to_driver=False, logging_level='ERROR', **where)
    except (OSError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise SweepError(
            f'Ray does not start{" at" * bool(args.address)} '
            f'{args.address or "here"}: {line}'
        ) from None
    try:
        _share(ray, args)
    except SweepError:
        ray.shutdown()
        raise
    return ray


def _share(ray, args):
    """Settle what a run gets; raises SweepError if that cannot be."""
    nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
    if args.gpus_per_run is None:
        args.gpus_per_run = float(any(node.get('GPU') for node in nodes))
    asked = (
        f'--cpus_per_run {args.cpus_per_run:g} and --gpus_per_run {args.gpus_per_run:g}'
    )
    if not args.cpus_per_run and not args.gpus_per_run:
        raise SweepError(
            f'{asked} would start all runs at the same time; one of them '
            'must be above 0'
        )
    try:
        make_task(ray, args)
    except ValueError as error:
        raise SweepError(f'{asked} is not possible: {error}') from None
    args.replay_memory = share_memory(nodes, args)
    if not args.replay_memory:
        cpus, gpus = (
            max(node.get(kind, 0) for node in nodes) for kind in ('CPU', 'GPU')
        )
        raise SweepError(
            f'no machine has {asked}; the largest have {cpus:g} CPUs and {gpus:g} GPUs'
        )


def share_memory(nodes, args):
    """What a run may hold of its replay, in bytes: an equal part of half of its
    machine's memory. 0 if no machine is large enough for a run.

    Args:
      nodes: resources of each machine, as Ray names them.
      args: of `parse`.
    """
    shares = []
    for node in nodes:
        wanted = dict(CPU=args.cpus_per_run, GPU=args.gpus_per_run)
        runs = min(
            (node.get(kind, 0) // amount for kind, amount in wanted.items() if amount),
            default=1,
        )
        if runs:
            shares.append(int(node['memory'] / 2 / runs))
    return min(shares, default=0)


def _check_address(address):
    """Ray itself waits long, and says much, where nothing answers."""
    match = re.fullmatch(r'(?:ray://)?([^:/]+):(\d+)', address)
    if not match:
        if address in ('auto', 'local'):
            return
        raise SweepError(f"--address is '{address}'; possible: HOST:PORT, auto")
    try:
        with socket.create_connection((match[1], int(match[2])), 10) as connection:
            connection.sendall(HTTP2_HELLO)
            if connection.recv(9)[3:4] != b'\4':
                raise OSError('it is not Ray')
    except (OSError, OverflowError) as error:
        raise SweepError(
            f'nothing answers at --address {address} ({error}); is the '
            'cluster running (ray start --head)?'
        ) from None


def make_task(ray, args):
    """`run_job` as a task of Ray's, with what a run needs."""
    return ray.remote(
        num_cpus=args.cpus_per_run, num_gpus=args.gpus_per_run, max_retries=0
    )(run_job)


class Sweep:
    """Keeps Ray busy with jobs until all have ended.

    Args:
      ray: the connected module.
      jobs: list of `Job`.
      args: of `parse`.
    """

    def __init__(self, ray, jobs, args):
        self._ray, self._jobs, self._args = ray, jobs, args
        self._submit_to_ray = make_task(ray, args).remote
        self._pending = {}
        self._sizes = {}
        self._stop = False

    def work(self, show):
        """Run everything; `show` is called with the jobs every few seconds."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request_stop)
        for job in self._jobs:
            if job.state != 'finished':
                self._submit(job)
        cancelled = False
        while self._pending:
            done, _ = self._ray.wait(list(self._pending), timeout=REFRESH)
            for reference in done:
                self._settle(self._pending.pop(reference), reference)
            if self._stop and not cancelled:
                cancelled = True
                for reference in self._pending:
                    self._ray.cancel(reference)
            self._look()
            show(self._jobs)

    def _submit(self, job):
        job.output.parent.mkdir(parents=True, exist_ok=True)
        job.state, job.attempts = 'waiting', job.attempts + 1
        self._sizes[job.name] = _size(job.output)
        # First, so that a flag of the user's has the last word.
        command = [
            *job.command[:2],
            '--replay_memory',
            str(self._args.replay_memory),
            *job.command[2:],
        ]
        reference = self._submit_to_ray(
            command, str(job.output), max(1, int(self._args.cpus_per_run))
        )
        self._pending[reference] = job

    def _settle(self, job, reference):
        """Decide what the end of an attempt means."""
        try:
            code = self._ray.get(reference)
            job.note = f'exit code {code}'
        except self._ray.exceptions.RayError as error:
            code, job.note = None, type(error).__name__
        if code == 0 and job.finished:
            job.state, job.note = 'finished', ''
        elif self._stop and job.state == 'waiting':
            job.note = ''  # It has not begun.
        elif self._stop:
            job.state = 'stopped'
        elif code == 2:
            # Bad input stays bad.
            job.state, job.note = 'failed', _last_line(job.output)
        elif job.attempts <= self._args.retries:
            self._submit(job)
        else:
            job.state, job.note = 'failed', f'{job.note}: {_last_line(job.output)}'

    def _look(self):
        for job in self._pending.values():
            if job.state == 'waiting' and _size(job.output) > self._sizes[job.name]:
                job.state = 'running'
            job.look()

    def _request_stop(self, number, frame):
        self._stop = True
        signal.signal(number, signal.SIG_DFL)
        print(
            'sweep: stopping: the runs save first, again to quit at once',
            file=sys.stderr,
        )


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _last_line(path):
    lines = path.read_text(errors='replace').split('\n') if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), '')


# Progress.


def counts(jobs):
    """How many are in which state, as text."""
    states = [job.state for job in jobs]
    return ', '.join(f'{states.count(x)} {x}' for x in dict.fromkeys(states))


def _progress(job):
    score = '' if job.score is None else f'{job.score:.1f}'
    return f'{job.step:,} of {job.config.steps:,}', score, str(job.attempts), job.note


def live_table(jobs):
    """The runs that are under way or in trouble, as a table for a terminal."""
    from rich.table import Table

    table = Table(*'run state steps return attempts note'.split(), title=counts(jobs))
    for job in jobs:
        if job.state in ('running', 'failed') or job.note:
            table.add_row(job.name, job.state, *_progress(job))
    return table


class Lines:
    """Plain lines, for files: changes of state, and now and then all that runs."""

    def __init__(self):
        self._last = {}
        self._due = time.time() + REPORT

    def __call__(self, jobs):
        report, now = time.time() >= self._due, time.strftime('%H:%M:%S')
        for job in jobs:
            key = job.state, job.attempts
            if self._last.get(job.name) != key or report and job.state == 'running':
                steps, score, attempts, note = _progress(job)
                print(
                    f'{now} {job.name}: {job.state}, {steps} steps, return '
                    f'{score or "-"}, attempt {attempts}'
                    f'{", " * bool(note)}{note}',
                    flush=True,
                )
            self._last[job.name] = key
        if report:
            print(f'{now} {counts(jobs)}', flush=True)
            self._due = time.time() + REPORT


def run_all(ray, jobs, args):
    """Work through `jobs` with a display that fits what stdout is."""
    sweep = Sweep(ray, jobs, args)
    if not sys.stdout.isatty():
        sweep.work(Lines())
        return
    from rich.live import Live

    with Live(live_table(jobs), auto_refresh=False) as live:
        sweep.work(lambda jobs: live.update(live_table(jobs), refresh=True))


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise SweepError(message)


def _number(kind, minimum):
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not minimum <= value < math.inf:
            raise argparse.ArgumentTypeError(
                f"'{text}' is not a {'whole ' * (kind is int)}number of at least "
                f'{minimum}'
            )
        return value

    return read


def parse(argv):
    """The command line's words before `--`; raises SweepError on bad ones."""
    parser = _Parser(
        prog='sweep.py',
        allow_abbrev=False,
        description='Many runs on Ray. Words after -- go to dreamer.py.',
    )
    parser.add_argument(
        '--tasks',
        nargs='+',
        required=True,
        metavar='NAME',
        help=f'tasks, or groups of them: {", ".join(GROUPS)}',
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        default=['dreamer'],
        metavar='NAME',
        help=f'{", ".join(HOURS)}, each also with _contrastive or '
        '_reward (default: dreamer)',
    )
    parser.add_argument(
        '--seeds',
        type=_number(int, 1),
        default=1,
        metavar='N',
        help='runs with the seeds 0 to N - 1 (default: 1)',
    )
    parser.add_argument(
        '--root',
        type=lambda text: pathlib.Path(configs.home(text)),
        required=True,
        metavar='DIR',
        help='holds task/method/seed, as plotting.py reads it',
    )
    parser.add_argument(
        '--address',
        metavar='HOST:PORT',
        help='of a running Ray '
        'cluster, or auto (default: Ray is started on this machine)',
    )
    parser.add_argument(
        '--gpus_per_run',
        type=_number(float, 0),
        metavar='X',
        help='may be a fraction, so that runs share a GPU (default: 1 '
        'where there are GPUs)',
    )
    parser.add_argument(
        '--cpus_per_run',
        type=_number(float, 0),
        default=1.0,
        metavar='X',
        help='cores (default: 1)',
    )
    parser.add_argument(
        '--retries',
        type=_number(int, 0),
        default=3,
        metavar='N',
        help='how often a failed run is started again (default: 3)',
    )
    parser.add_argument(
        '--dry_run',
        action='store_true',
        help='print the plan and an estimate of GPU hours, no more',
    )
    args = parser.parse_args(argv)
    if args.root.exists() and not args.root.is_dir():
        raise SweepError(f'--root {args.root} is not a folder')
    return args


def main(argv=None):
    """The command line; returns the exit code: 0 where all runs have finished, 1 where
    some have not, 2 for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index('--') if '--' in argv else len(argv)
    try:
        args = parse(argv[:end])
        jobs = make_jobs(args, argv[end + 1 :])
        if args.dry_run:
            print('\n'.join(describe(jobs)))
            return 0
        left = any(job.state != 'finished' for job in jobs)
        ray = connect(args) if left else None
    except (SweepError, configs.ConfigError, comparison.ScoreError, OSError) as error:
        print('sweep: error:', re.sub(r'\s+', ' ', str(error)), file=sys.stderr)
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
    output.guard()
    sys.exit(main())
