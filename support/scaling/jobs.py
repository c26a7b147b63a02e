"""Many runs on Ray, each in a process, which is started again if it fails.

A job has a `name`, a `command`, an `output` (the file for what it prints), a `state`
(waiting, running, finished, failed or stopped), `attempts` and a `note`. Its methods
`look()` and `finished` tell how far it is.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

from support.system import limits, signals
from support.system.command_line import UserError

REFRESH = 2  # seconds between looks at the runs
ANSWER = 30  # seconds within which a cluster has to answer
HEADER = '--- on '  # begins the line above an attempt's output
# How dreamer.py begins the lines that say why it ended, and what it saved then.
SAID = re.compile('dreamer: (error|stopped): ')
SAVED = re.compile('dreamer: saved')
# Environment variables for numbers of threads: TensorFlow's, and Mesa's, which renders
# where no GPU does.
THREADS = 'TF_NUM_INTRAOP_THREADS', 'LP_NUM_THREADS'


# One run, in a Ray worker.


def run_job(command, output, threads):
    """Start a run and wait for its end; return its exit code.

    If Ray cancels the task, the run gets SIGTERM, and this waits until it has saved. If
    Ray kills this process, for lack of memory, the run is killed too. Then the next
    attempt finds the logdir free.

    Args:
      command: words.
      output: path of the file for what it prints.
      threads: for each of `THREADS`, unless the user has set another number.
    """
    # Ray cancels by SIGINT, which programs in the background ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The run gets these signals too, and saves.
    signals.leave_to_others(signals.TELLING)
    env = dict(os.environ)
    for name in THREADS:
        env.setdefault(name, str(threads))
    process = None
    try:
        with open(output, 'ab') as file:
            words = ' '.join(command)
            file.write(f'{HEADER}{socket.gethostname()}: {words}\n'.encode())
            file.flush()
            # In a new session, which a terminal's Ctrl-C does not reach.
            process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=signals.die_with_parent,
            )
        # Ray interrupts Python code, but no system call that waits.
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
    """Start Ray here, or join the cluster at `--address`; return the module.

    Raises UserError if Ray is missing, the cluster does not answer, or no machine is
    large enough for a run.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')
    try:
        import ray
    except ImportError:
        raise UserError(
            'Ray is not installed; install it with: pip install -r '
            'requirements-sweep.txt'
        ) from None
    # A new cluster, even if another one runs on this machine.
    where = dict(
        address='local',
        num_cpus=limits.cores(),
        object_store_memory=100 << 20,
        include_dashboard=False,
    )
    if args.address:
        check_address(args.address)
        where = dict(address=args.address)
    try:
        ray.init(log_to_driver=False, logging_level='ERROR', **where)
    except (OSError, RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(
            f'Ray does not start{" at" * bool(args.address)} '
            f'{args.address or "here"}: {line}'
        ) from None
    try:
        _share(ray, args)
    except UserError:
        ray.shutdown()
        raise
    return ray


def _share(ray, args):
    """Settle what a run gets; raise UserError if that cannot be."""
    nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
    if not args.address:
        # Ray does not see the memory limits of nested control groups.
        for node in nodes:
            node['memory'] = min(node['memory'], limits.memory())
    if args.gpus_per_run is None:
        args.gpus_per_run = float(any(node.get('GPU') for node in nodes))
    asked = (
        f'--cpus_per_run {args.cpus_per_run:g} and --gpus_per_run {args.gpus_per_run:g}'
    )
    if not args.cpus_per_run and not args.gpus_per_run:
        raise UserError(
            f'{asked} would start all runs at the same time; one of them '
            'must be above 0'
        )
    try:
        make_task(ray, args)
    except ValueError as error:
        raise UserError(f'{asked} is not possible: {error}') from None
    args.replay_memory = share_memory(nodes, args)
    if not args.replay_memory:
        cpus, gpus = (
            max(node.get(kind, 0) for node in nodes) for kind in ('CPU', 'GPU')
        )
        raise UserError(
            f'no machine has {asked}; the largest have {cpus:g} CPUs and {gpus:g} GPUs'
        )


def share_memory(nodes, args):
    """Return the bytes of replay that a run may hold in memory: an equal part of half
    of its machine's memory. 0 if no machine is large enough for a run.

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


def check_address(address):
    """Raise UserError unless a cluster answers at `address`.

    Another process asks: if nothing answers, Ray waits for minutes and then ends the
    process.
    """
    join = 'import sys, ray; ray.init(sys.argv[1], log_to_driver=False)'
    try:
        subprocess.run(
            [sys.executable, '-c', join, address],
            check=True,
            capture_output=True,
            timeout=ANSWER,
        )
        return
    except subprocess.TimeoutExpired:
        cause = f'no answer in {ANSWER} seconds, or it is not Ray'
    except subprocess.CalledProcessError as error:
        text = error.stderr.decode(errors='replace').strip()
        cause = text.splitlines()[-1]
        if 'AuthenticationError' in text:
            cause = 'it wants a token: set RAY_AUTH_MODE=token'
    raise UserError(
        f'nothing answers at --address {address} ({cause}); possible: HOST:PORT of a '
        'running cluster (ray start --head), auto'
    )


def make_task(ray, args):
    """Return `run_job` as a task of Ray's, with the resources of a run."""
    return ray.remote(
        num_cpus=args.cpus_per_run, num_gpus=args.gpus_per_run, max_retries=0
    )(run_job)


class Sweep:
    """Keep Ray busy with jobs until all have ended.

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
        """Run all jobs; call `show` with them every few seconds."""
        for number in signals.ASKING + signals.TELLING:
            if signal.getsignal(number) != signal.SIG_IGN or number in signals.ASKING:
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
        # First, because of a flag given twice the last one counts, which is the user's.
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
        """Set the state of a job whose attempt has ended, or start the next attempt."""
        try:
            code = self._ray.get(reference)
            job.note = cause_of(code, job.output)
        except self._ray.exceptions.RayError as error:
            first = str(error).split('\n')[0]
            code, job.note = None, f'{type(error).__name__}: {first}'
        if code == 0 and job.finished:
            job.state, job.note = 'finished', ''
        elif self._stop and job.state == 'waiting':
            job.note = ''  # It has not begun.
        elif self._stop:
            job.state, job.note = 'stopped', job.note if code else ''
        elif code == 2 or job.attempts > self._args.retries:
            job.state = 'failed'  # Bad input stays bad.
        else:
            self._submit(job)

    def _look(self):
        for job in self._pending.values():
            if job.state == 'waiting' and _size(job.output) > self._sizes[job.name]:
                job.state = 'running'
            job.look()

    def _request_stop(self, number, frame):
        if number in signals.ASKING:
            signals.end_by(number)
        if self._stop:
            return
        self._stop = True
        print(
            'sweep: stopping: the runs save first, again to quit at once',
            file=sys.stderr,
        )


def _size(path):
    return path.stat().st_size if path.exists() else 0


def cause_of(code, output):
    """Return why an attempt ended with `code`, in one line.

    Args:
      code: exit code, or minus the signal's number.
      output: path of the file with what this and earlier attempts printed.
    """
    if code < 0:
        return f'killed by {signal.Signals(-code).name}'
    if code == 0:
        return 'ended before it had finished'
    text = output.read_text(errors='replace') if output.exists() else ''
    attempt = text.rpartition(HEADER)[2].splitlines()[1:]
    lines = [line for line in attempt if line.strip() and not SAVED.match(line)]
    said = [i for i, line in enumerate(lines) if SAID.match(line)]
    if not said:
        return f'exit code {code}: {lines[-1] if lines else "without a word"}'
    # Below an environment's error is a traceback, whose last line names the error.
    first, last = lines[said[-1]], lines[-1].strip()
    return f'{first} {last}' if first.endswith(':') and last != first else first
