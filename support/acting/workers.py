"""Simulators in worker processes: the parent's side. The child's is in simulator.py.

TensorFlow and Mesa's software renderer crash in one process. So every simulator has a
process of its own, also if there is only one. That process imports neither TensorFlow
nor the caller's main script: it starts fast and stays small. If it crashes, the run
continues with a fresh one.

    workers = make_workers('dmc_walker_walk', 4, {'action_repeat': 2})
    for worker in workers:
        worker.start_reset(seed)
    observations = [worker.result()[0] for worker in workers]

Parent and child talk over a socket. If it closes, the child ends. Observations travel
through memory that both processes have mapped.
"""

import contextlib
import functools
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Pipe

import wrappers
from support.acting import simulator
from support.envs import rendering
from support.system import signals

# By these errors an environment refuses to be made. Their messages are one line for the
# user, without the child's traceback.
_REFUSALS = {'ValueError': ValueError, 'RuntimeError': RuntimeError}

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = (
    'import sys; sys.path.insert(0, sys.argv.pop(1)); '
    'from support.system import signals; signals.begin_worker(); '
    'from support.acting import simulator; simulator.main()'
)

# Importing a simulator can take minutes under load or on a network drive.
STARTUP = 300  # seconds at least

# An environment needs time to close, but may hang.
CLOSING = 10  # seconds at most


class WorkerError(RuntimeError):
    """An environment raised an error, or its process died or gave no answer."""


class Stepped:
    """Gymnasium's two calls, for callers that have nothing to do meanwhile."""

    def reset(self, seed=None):
        """Start a new episode; return `(obs, info)`."""
        self.start_reset(seed)
        return self.result()

    def step(self, action):
        """Take an agent step; return Gymnasium's 5-tuple."""
        self.start_step(action)
        return self.result()


class Worker(Stepped):
    """An environment in a worker process.

    Call `result` once after each `start_reset` or `start_step`. Start several workers
    before the first `result`, and they compute at the same time.

    Args:
      task: name of the task, as `wrappers.make` takes it.
      kwargs: further arguments of `wrappers.make`.
      env: environment variables of the child, besides those of this process. A renderer
        is chosen if the environment turns out to need MuJoCo's.
      timeout: longest time in seconds that an answer may take. Making the environment
        may take `STARTUP` seconds in any case.
      wait: whether to wait until the environment is made; if not, call `ready`.

    Attributes:
      observation_space, action_space: the environment's; known once it is made.
      timeout: as the argument, for the answers to come.

    Raises:
      ValueError, RuntimeError: if the environment refuses to be made, for instance
        an unknown task.
      WorkerError: if it fails in any other way.
    """

    def __init__(self, task, kwargs=None, *, env=None, timeout=300, wait=True):
        self._task = task
        self._kwargs = kwargs or {}
        self._env = dict(env or {})
        self.timeout = timeout
        self._renderer = _find_renderer(task, self._env, self._kwargs)
        self._start()
        if wait:
            self.ready()

    @property
    def pid(self):
        """The child's process id."""
        return self._process.pid

    def ready(self):
        """Wait until the environment is made. If that fails, close the worker."""
        try:
            self.observation_space, self.action_space = self._receive(
                max(self.timeout, STARTUP)
            )
            self._observation = simulator.SharedObservation(
                self._memory.fileno(), self.observation_space
            )
        except BaseException as error:
            self.close()
            raise self._renderer.explain(error) from None

    def start_reset(self, seed=None):
        """Start a new episode; its result is `(obs, info)`."""
        self._send('reset', seed)

    def start_step(self, action):
        """Start an agent step; its result is Gymnasium's 5-tuple."""
        self._send('step', action)

    def result(self):
        """Wait for the result of what was started last.

        Raises:
          WorkerError: if the environment raised an error (the message holds its
            traceback), or if its process died or gave no answer in time.
        """
        answer = self._receive(self.timeout)
        return self._observation.read(), *answer

    def _receive(self, timeout):
        try:
            if not self._await_answer(timeout):
                # A late answer would be taken for the answer to the next question.
                self._kill()
                raise WorkerError(
                    f'The simulator process of {self._task} gave no answer within '
                    f'{timeout} s and was stopped'
                )
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(self._cause_of_death()) from error
        if kind == 'renderer':
            self._send('renderer', self._renderer())
            return self._receive(timeout)
        if kind == 'result':
            return value
        if kind in _REFUSALS:
            raise _REFUSALS[kind](value)
        raise WorkerError(f'The environment of {self._task} failed:{value}')

    def _await_answer(self, timeout):
        """Return whether an answer comes in time.

        The time is waited in pieces, so that a pause of both processes, such as a
        computer's sleep, counts as one piece at most.
        """
        while timeout > 0:
            piece = min(timeout, 1)
            if self._answers.poll(1000 * piece):
                return True
            timeout -= piece
        return False

    def restart(self):
        """Replace the process, dead or alive. The new environment needs a reset."""
        self.close()
        self._start()
        self.ready()

    def hang_up(self):
        """Tell the child to close its environment and end; do not wait for it."""
        self._connection.close()
        self._memory.close()
        self._deadline = self._deadline or time.monotonic() + CLOSING

    def close(self):
        """Close the environment and end the process, within `CLOSING` seconds.

        It can be called more than once.
        """
        self.hang_up()
        try:
            self._process.wait(max(0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._end_session()

    def _kill(self):
        """Kill the process and all processes that its environment has started."""
        started = signals.descendants(self.pid)
        self._process.kill()
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end_session()

    def _end_session(self):
        """Kill the processes that a dead child has left behind.

        This happens once: later another process may have the child's number.
        """
        if self._has_session:
            self._has_session = False
            signals.end_session(self.pid)

    def _start(self):
        self._connection, theirs = Pipe()
        self._deadline = None
        # Faster than Connection.poll, which makes a selector every time.
        self._answers = select.poll()
        self._answers.register(self._connection.fileno(), select.POLLIN)
        self._memory = _open_memory()
        descriptors = theirs.fileno(), self._memory.fileno()
        # Without `-P` Python would look for modules in the caller's folder first.
        self._process = subprocess.Popen(
            [sys.executable, '-P', '-c', SCRIPT, str(ROOT), *map(str, descriptors)],
            env={**os.environ, **self._env},
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            # What the child starts is in this session too, and can be ended with it.
            start_new_session=True,
        )
        self._has_session = True
        theirs.close()
        self._send('make', (self._task, self._kwargs))

    def _send(self, command, argument):
        try:
            self._connection.send((command, argument))
        except OSError as error:
            raise WorkerError(self._cause_of_death()) from error

    def _cause_of_death(self):
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return f'The simulator process of {self._task} closed its connection'
        self._end_session()
        how = f'ended with exit code {code}'
        if code < 0:
            how = f'was killed by {signal.Signals(-code).name}'
        return f'The simulator process of {self._task} {how}'


def _open_memory():
    """Return a file in memory. It has no name, so that it is gone with the last process
    that has it open.
    """
    if hasattr(os, 'memfd_create'):
        return open(os.memfd_create('observation'), 'r+b')
    return tempfile.TemporaryFile()


def _find_renderer(task, env, kwargs):
    names = kwargs.keys() & {'observes', 'film'}
    return rendering.TaskRenderer(task, env, **{name: kwargs[name] for name in names})


class LocalWorker(Stepped):
    """The interface of `Worker` for an environment in this process.

    It is for debugging, and for environments that run safely beside TensorFlow. MuJoCo
    does not, without a GPU.

    Args:
      task: name of the task, as `wrappers.make` takes it.
      kwargs: further arguments of `wrappers.make`.
      env: environment variables for MuJoCo's renderer, where it is needed.

    Raises:
      ValueError, RuntimeError: if the environment refuses to be made.
    """

    def __init__(self, task, kwargs=None, env=None):
        self._task = task
        self._kwargs = kwargs or {}
        self._renderer = _find_renderer(task, env or {}, self._kwargs)
        self._start()

    def start_reset(self, seed=None):
        """Start a new episode; its result is `(obs, info)`."""
        self._pending = functools.partial(self._env.reset, seed=seed)

    def start_step(self, action):
        """Start an agent step; its result is Gymnasium's 5-tuple."""
        self._pending = functools.partial(self._env.step, action)

    def result(self):
        """Compute the result of what was started last.

        Raises:
          WorkerError: if the environment raised an error.
        """
        try:
            return self._pending()
        except Exception as error:
            raise WorkerError(
                f'The environment of {self._task} failed:{simulator.explain(error)}'
            ) from error

    def restart(self):
        """Make a new environment, which needs a reset."""
        self.close()
        self._start()

    def hang_up(self):
        """Do nothing; `close` does all."""

    def close(self):
        """Close the environment; can be called more than once."""
        env, self._env = self._env, None
        if env:
            simulator.close(env, self._task)

    def _start(self):
        self._env = None
        if self._task.startswith(('dmc_', 'gym_')):
            rendering.choose_on_import(self._renderer)
        try:
            self._env = wrappers.make(self._task, **self._kwargs)
        except RuntimeError as error:
            raise self._renderer.explain(error) from error
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space


def make_workers(
    task,
    count,
    kwargs=None,
    parallel='process',
    devices=None,
    timeout=300,
    evaluation=0,
):
    """Start several environments of one task, all at the same time.

    Args:
      task, kwargs: the arguments of `wrappers.make`.
      count: number of environments.
      parallel: 'process' for processes of their own, 'none' for this process.
      devices: indices of the GPUs that MuJoCo shall render on, in turn, unless the
        user has set MUJOCO_EGL_DEVICE_ID.
      timeout: seconds after which a silent environment counts as dead.
      evaluation: how many of them, the last ones, are made for evaluation.

    Returns:
      a list of `Worker` or `LocalWorker`.

    Raises:
      ValueError: if the task, or the kind of parallelism, is unknown.
      RuntimeError: if nothing renders here (see `rendering.choose_renderer`).
      WorkerError: if one fails in any other way. No process is left behind.
    """
    if parallel not in ('process', 'none'):
        raise ValueError(
            f"Unknown kind of parallelism '{parallel}': use 'process' or 'none'"
        )
    settings = _settings(kwargs or {}, count, evaluation)
    deal = devices and rendering.DEVICE not in os.environ
    env = {rendering.DEVICE: str(devices[0])} if deal else {}
    if parallel == 'none':
        return [LocalWorker(task, kwargs, env) for kwargs in settings]
    workers = []
    try:
        for index, kwargs in enumerate(settings):
            if deal:
                env[rendering.DEVICE] = str(devices[index % len(devices)])
            workers.append(Worker(task, kwargs, env=env, timeout=timeout, wait=False))
        for worker in workers:
            worker.ready()
    except BaseException:
        close_workers(workers)
        raise
    return workers


def _settings(kwargs, count, evaluation):
    """Return the arguments of `wrappers.make` for each of `count` environments."""
    training = count - evaluation
    return [
        {
            **kwargs,
            'training': index < training,
            'film': index >= training and kwargs.get('film', False),
            'quiet': index > 0,  # All would give the same warnings.
        }
        for index in range(count)
    ]


def close_workers(workers):
    """Close all workers at the same time; see `Worker.close`."""
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.close()


def state_size(env):
    """Return how many numbers an environment gives of its state; 0 without a vector."""
    space = env.observation_space
    return space['state'].shape[0] if 'state' in space.spaces else 0


def make_envs(config, training, evaluation, devices):
    """Start the workers of a run, those for training first.

    Args:
      config: `configs.Config`.
      training, evaluation: how many workers.
      devices: of `make_workers`.

    Raises:
      ValueError, RuntimeError: the task cannot be made.
    """
    kwargs = {
        name: value for name, value in vars(config).items() if name in wrappers.SETTINGS
    }
    kwargs.update(observes=config.observes, film=config.eval_video)
    return make_workers(
        config.task,
        training + evaluation,
        kwargs,
        config.parallel,
        devices,
        config.worker_timeout,
        evaluation,
    )
