"""Simulators in processes of their own.

TensorFlow and Mesa's software renderer crash in one process, so the simulators run
beside the training process, also when there is only one of them. A worker process
is this file run as a script: it imports neither TensorFlow nor the caller's main
script, so it starts fast and stays small, and its crash is not the run's.

    workers = make_workers('dmc_walker_walk', 4, {'action_repeat': 2})
    for worker in workers:
        worker.start_reset(seed)
    observations = [worker.result()[0] for worker in workers]

Parent and child talk over a socket of their own, whose end also ends the child; images
travel through memory that both have mapped.
"""

import contextlib
import ctypes
import functools
import mmap
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection, Pipe

import numpy as np

import wrappers

# With these errors an environment refuses to be made. Their messages, of one line,
# are meant for the user, and arrive without the child's traceback.
_REFUSALS = {'ValueError': ValueError, 'RuntimeError': RuntimeError}

# Simulators take their time to be imported, under load and on network drives too.
STARTUP = 300  # seconds at least

# An environment may have to end what it has started, but may hang there as well.
CLOSING = 10  # seconds at most


class WorkerError(RuntimeError):
    """An environment raised an error, or its process died or gave no answer."""


class Worker:
    """An environment in a process of its own.

    Every `start_reset` or `start_step` is followed by one `result`. The two are apart
    so that several workers can compute at the same time.

    Args:
      task: Name of the task, as `wrappers.make` takes it.
      kwargs: Further arguments of `wrappers.make`.
      env: Environment variables of the child, on top of this process's own.
      timeout: Longest time in seconds that an answer may take; until the environment is
        made, `STARTUP` where that is longer.
      wait: Whether to wait until the environment is made; if not, call `ready`.

    Attributes:
      observation_space, action_space: The environment's; known once it is made.

    Raises:
      ValueError, RuntimeError: If the environment refuses to be made, for instance
        an unknown task.
      WorkerError: If it fails in any other way.
    """

    def __init__(self, task, kwargs=None, *, env=None, timeout=300, wait=True):
        self._task = task
        self._kwargs = kwargs or {}
        self._env = dict(env or {})
        self._timeout = timeout
        self._start()
        if wait:
            self.ready()

    @property
    def pid(self):
        """The child's process id."""
        return self._process.pid

    def ready(self):
        """Waits until the environment is made. Closes the worker if that fails."""
        try:
            self.observation_space, self.action_space = self._receive(
                max(self._timeout, STARTUP)
            )
        except BaseException:
            self.close()
            raise

    def start_reset(self, seed=None):
        """Starts a new episode; its result is `(obs, info)`."""
        self._send('reset', seed)

    def start_step(self, action):
        """Starts an agent step; its result is Gymnasium's 5-tuple."""
        self._send('step', action)

    def result(self):
        """Waits for the result of what was started last.

        Raises:
          WorkerError: If the environment raised an error (the message holds its
            traceback), or if its process died or gave no answer in time.
        """
        answer = self._receive(self._timeout)
        return {'image': self._image.copy()}, *answer

    def _receive(self, timeout):
        try:
            if not self._answers.poll(1000 * timeout):
                # Its late answer would be taken for that to a later question.
                self._kill()
                raise WorkerError(
                    f'The simulator process of {self._task} gave no answer within '
                    f'{timeout} s and was stopped.'
                )
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(self._cause_of_death()) from error
        if kind == 'result':
            return value
        if kind in _REFUSALS:
            raise _REFUSALS[kind](value)
        raise WorkerError(f'The environment of {self._task} failed:\n{value}')

    def restart(self):
        """Puts a fresh process in place of the present one, dead or alive.

        The new environment begins with a reset.
        """
        self.close()
        self._start()
        self.ready()

    def hang_up(self):
        """Lets the child close its environment and end, without waiting for it."""
        self._connection.close()
        self._deadline = self._deadline or time.monotonic() + CLOSING

    def close(self):
        """Closes the environment, ends the process and waits for its end, which takes
        `CLOSING` seconds at most; can be called more than once."""
        self.hang_up()
        try:
            self._process.wait(max(0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()

    def _kill(self):
        """Kills the process, and what its environment has started: that would go on
        without anyone who could end it."""
        started = _descendants(self.pid)
        self._process.kill()
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self):
        self._connection, theirs = Pipe()
        self._deadline = None
        # Connection.poll makes a selector every time, which takes as long as the rest.
        self._answers = select.poll()
        self._answers.register(self._connection.fileno(), select.POLLIN)
        height, width = self._kwargs.get('size', (64, 64))
        shared = _make_shared(height * width * 3)
        self._image = _map(shared.fileno()).reshape(height, width, 3)
        descriptors = theirs.fileno(), shared.fileno()
        # As a script and not with `-m`, which would look for modules in the caller's
        # working directory first.
        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *map(str, descriptors)],
            env={**os.environ, **self._env},
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
        )
        theirs.close()
        shared.close()
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
            return f'The simulator process of {self._task} closed its connection.'
        how = f'ended with exit code {code}'
        if code < 0:
            how = f'was killed by {signal.Signals(-code).name}'
        return f'The simulator process of {self._task} {how}.'


def _make_shared(size):
    """Returns a file in memory. Without a name, it is gone with the last process that
    has it open, whatever ends them."""
    if hasattr(os, 'memfd_create'):
        file = open(os.memfd_create('image'), 'r+b')
    else:
        file = tempfile.TemporaryFile()
    file.truncate(size)
    return file


def _map(descriptor):
    """Returns the bytes of an open file, shared with all that map it."""
    return np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)


def _descendants(pid):
    """Returns the ids of the processes that a process has started, and those have
    started; none where the system does not tell."""
    found = []
    for path in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *_descendants(child)]
    return found


class LocalWorker:
    """The interface of `Worker` for an environment in this very process.

    For debugging, and for environments that need no process of their own. MuJoCo
    without a GPU is not one of them where TensorFlow is loaded.

    Args:
      task: Name of the task, as `wrappers.make` takes it.
      kwargs: Further arguments of `wrappers.make`.

    Raises:
      ValueError, RuntimeError: If the environment refuses to be made.
    """

    def __init__(self, task, kwargs=None):
        self._task = task
        self._kwargs = kwargs or {}
        self._start()

    def start_reset(self, seed=None):
        """Starts a new episode; its result is `(obs, info)`."""
        self._pending = functools.partial(self._env.reset, seed=seed)

    def start_step(self, action):
        """Starts an agent step; its result is Gymnasium's 5-tuple."""
        self._pending = functools.partial(self._env.step, action)

    def result(self):
        """Computes the result of what was started last.

        Raises:
          WorkerError: If the environment raised an error.
        """
        try:
            return self._pending()
        except Exception as error:
            raise WorkerError(
                f'The environment of {self._task} failed:\n{traceback.format_exc()}'
            ) from error

    def restart(self):
        """Makes the environment anew; it begins with a reset."""
        self.close()
        self._start()

    def hang_up(self):
        """Does nothing: in this process there is nobody to do it meanwhile."""

    def close(self):
        """Closes the environment; can be called more than once."""
        env, self._env = self._env, None
        if env:
            _close(env, self._task)

    def _start(self):
        self._env = None
        self._env = wrappers.make(self._task, **self._kwargs)
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
    """Starts several environments of one task, all at the same time.

    Args:
      task, kwargs: The arguments of `wrappers.make`.
      count: Number of environments.
      parallel: 'process' for processes of their own, 'none' for this process.
      devices: Indices of the GPUs that MuJoCo shall render on, dealt out in turn,
        unless the user has set MUJOCO_EGL_DEVICE_ID.
      timeout: Seconds after which a silent environment counts as dead.
      evaluation: How many of them, the last ones, are made for evaluation.

    Returns:
      A list of `Worker` or `LocalWorker`.

    Raises:
      ValueError: If the task, or the kind of parallelism, is unknown.
      RuntimeError: If nothing renders here (see `wrappers.choose_renderer`).
      WorkerError: If one fails in any other way. No process is left behind.
    """
    if parallel not in ('process', 'none'):
        raise ValueError(
            f"Unknown kind of parallelism '{parallel}': use 'process' or 'none'."
        )
    settings = [
        {**(kwargs or {}), 'training': index < count - evaluation}
        for index in range(count)
    ]
    env = {}
    if wrappers.needs_renderer(task):
        env['MUJOCO_GL'] = wrappers.choose_renderer()
    if parallel == 'none':
        os.environ.update(env)  # The chosen renderer is the user's, where one is set.
        return [LocalWorker(task, kwargs) for kwargs in settings]
    deal = devices and 'MUJOCO_EGL_DEVICE_ID' not in os.environ
    workers = []
    try:
        for index, kwargs in enumerate(settings):
            if deal:
                env['MUJOCO_EGL_DEVICE_ID'] = str(devices[index % len(devices)])
            workers.append(Worker(task, kwargs, env=env, timeout=timeout, wait=False))
        for worker in workers:
            worker.ready()
    except BaseException:
        close_workers(workers)
        raise
    return workers


def close_workers(workers):
    """Closes all of them at the same time, see `Worker.close`."""
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.close()


class Collector:
    """Steps environments together and cuts what happens into episodes.

    With two groups, the environments of one compute their next step while the policy
    chooses for the other, and while the agent learns, with actions from before that.
    An environment that fails is restarted, and its unfinished episode is dropped.

    Args:
      envs: workers, see workers.py.
      seed: episodes are seeded from it, the environment's and the episode's index.
      groups: number of groups, taken in turn.

    Attributes:
      groups: the environments' indices, a list for each group.
      started: index of each environment's next episode; set it to go on from there.
      dropped: episodes that were dropped.
    """

    FAILURES = 5  # In a row, without a finished episode, that end the run.

    def __init__(self, envs, seed, groups=1):
        self._envs = envs
        self._seed = seed
        self._episodes = [None] * len(envs)
        self._sent = [None] * len(envs)  # Actions whose results have not been seen.
        self._steps = [0] * len(envs)
        self._failures = [0] * len(envs)
        self._failure = None
        self._turn = 0
        self.groups = [
            part.tolist() for part in np.array_split(np.arange(len(envs)), groups)
        ]
        self.started = [0] * len(envs)
        self.dropped = 0

    @property
    def unfinished(self):
        """Episodes of which a step was seen, but not their end: simulator steps so far
        by (environment, episode index)."""
        return {
            (i, self.started[i] - 1): self._steps[i]
            for i, rows in enumerate(self._episodes)
            if len(rows or ()) > 1
        }

    @property
    def to_start(self):
        """What `started` would be without the episodes that have begun, but of which no
        step was seen; it may be longer than the environments are many."""
        indices = list(self.started)
        for i, rows in enumerate(self._episodes):
            indices[i] -= rows is not None and len(rows) < 2
        return indices

    def step(self, policy):
        """One agent step in every environment of a group.

        Args:
          policy: (image [E, 64, 64, 3], is_first [E]) to action [E, A], where E counts
            the environments of a group; a list of these, if there are several.

        Returns:
          simulator steps that were seen to be taken, all environments together; the
          episodes that ended, dicts of arrays with T = agent steps + 1 rows, and
          `origin` [3]: environment, episode index and simulator steps.

        Raises:
          WorkerError: If an environment has failed `FAILURES` times in a row; what the
            others had finished by then was returned before.
        """
        if self._failure:
            raise self._failure
        self._start(
            self.groups[self._turn], policy if callable(policy) else policy[self._turn]
        )
        self._turn = (self._turn + 1) % len(self.groups)
        return self._finish(self.groups[self._turn])

    def _start(self, group, policy):
        """Lets the environments of a group begin their next step."""
        while idle := [i for i in group if self._episodes[i] is None]:
            self._reset(idle)
        rows = [self._episodes[i] for i in group]
        image = np.stack([episode[-1]['image'] for episode in rows])
        is_first = np.array([len(episode) == 1 for episode in rows])
        actions = np.asarray(policy(image, is_first), np.float32)
        for i, action in zip(group, actions, strict=True):
            self._guard(i, self._send, i, action)

    def _send(self, i, action):
        self._envs[i].start_step(action)
        self._sent[i] = action

    def _finish(self, group):
        """Takes up what the steps have led to that a group has begun."""
        before, finished, ended = sum(self._steps), [], []
        for i in group:
            try:
                if self._sent[i] is not None and self._guard(i, self._observe, i):
                    finished.append(i)
            except WorkerError as error:
                self._failure = error  # After what the others have finished.
        steps = sum(self._steps) - before
        for i in finished:
            rows, self._episodes[i] = self._episodes[i], None
            origin = np.array([i, self.started[i] - 1, self._steps[i]])
            ended.append(
                dict(
                    {key: np.stack([row[key] for row in rows]) for key in rows[0]},
                    origin=origin,
                )
            )
            self._failures[i] = 0
        return steps, ended

    def _observe(self, i):
        """Appends what the step led to; returns whether the episode has ended."""
        action, self._sent[i] = self._sent[i], None
        observation, reward, terminated, truncated, info = self._envs[i].result()
        self._steps[i] += info['simulator_steps']
        if not np.isfinite(reward):
            raise WorkerError(f'The environment gave the reward {reward}.')
        self._episodes[i].append(
            dict(
                image=observation['image'],
                action=action,
                reward=np.float32(reward),
                discount=np.float32(not terminated),
            )
        )
        return terminated or truncated

    def _reset(self, indices):
        for i in indices:
            entropy = (self._seed, i, self.started[i])
            seed = np.random.SeedSequence(entropy).generate_state(1)[0]
            self.started[i] += 1
            self._steps[i] = 0
            self._episodes[i] = []
            self._guard(i, self._envs[i].start_reset, int(seed))
        for i in indices:
            if self._episodes[i] is not None:
                self._guard(i, self._begin, i)

    def _begin(self, i):
        observation, _ = self._envs[i].result()
        self._episodes[i].append(
            dict(
                image=observation['image'],
                action=np.zeros(self._envs[i].action_space.shape, np.float32),
                reward=np.float32(0),
                discount=np.float32(1),
            )
        )

    def _guard(self, i, call, *args):
        """Returns what `call` does; if the environment fails, drops its episode and
        restarts it instead."""
        try:
            return call(*args)
        except WorkerError as error:
            self.dropped += bool(self._episodes[i])
            self._episodes[i] = None
            self._failures[i] += 1
            count = self._failures[i]
            if count >= self.FAILURES:
                raise WorkerError(
                    f'Environment {i} failed {count} times in a row; the last time:\n'
                    f'{error}'
                ) from None
            print(
                f'dreamer: warning: environment {i} failed and is restarted ({count} '
                f'in a row): {error}',
                file=sys.stderr,
                flush=True,
            )
            # A restart that fails is the next failure.
            self._guard(i, self._restart, i)

    def _restart(self, i):
        try:
            self._envs[i].restart()
        except Exception as error:
            raise WorkerError(f'It could not be restarted: {error}') from error


def die_with_parent():
    """Lets the system kill this process when its parent ends, however that comes."""
    if sys.platform == 'linux':
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def leave_signals_to_parent():
    """Lets the signals that reach every process of a group do nothing in this one: the
    parent decides what they mean.

    What an environment starts dies of them as usual. Programs begin without this
    process's handlers, but would go on to ignore what it ignores; forks have the
    handlers taken back.
    """

    def nothing(*_):
        pass

    usual = {}
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        # Whoever had it ignored (nohup, say) meant all that is started, too.
        if signal.getsignal(number) != signal.SIG_IGN:
            usual[number] = signal.signal(number, nothing)
            # Simulators need not know how to go on with an interrupted system call.
            signal.siginterrupt(number, False)

    def restore():
        for number, handler in usual.items():
            if signal.getsignal(number) is nothing:
                signal.signal(number, handler)

    os.register_at_fork(after_in_child=restore)


def main():
    """Serves the environment that the parent process asks for."""
    # A simulator that hangs would not see that its killed parent is gone.
    die_with_parent()
    leave_signals_to_parent()
    connection = Connection(int(sys.argv[1]))
    try:
        _serve(connection, _map(int(sys.argv[2])))
    except (EOFError, OSError):
        pass  # The parent has closed this worker, or is gone.


@contextlib.contextmanager
def _without_model_warnings(task):
    """Keeps MuJoCo from its remarks on a model that others have written, unless
    `--verbose` is on; a simulation that goes wrong later is still reported."""
    if 'DREAMER_VERBOSE' in os.environ or not wrappers.needs_renderer(task):
        yield
        return
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(None)


def _serve(connection, image):
    """Answers the parent's questions until there are no more; observed images go into
    the array `image`, everything else through the connection."""
    _, (task, kwargs) = connection.recv()
    try:
        with _without_model_warnings(task):
            env = wrappers.make(task, **kwargs)
    except (ValueError, RuntimeError) as error:
        kind = 'ValueError' if isinstance(error, ValueError) else 'RuntimeError'
        connection.send((kind, str(error)))
        return
    except Exception:
        connection.send(('error', traceback.format_exc()))
        return
    try:
        connection.send(('result', (env.observation_space, env.action_space)))
        _answer(env, connection, image)
    finally:
        _close(env, task)


def _answer(env, connection, image):
    """Resets and steps the environment as the parent asks; returns never."""
    commands = {'reset': lambda seed: env.reset(seed=seed), 'step': env.step}
    while True:
        command, argument = connection.recv()
        try:
            observation, *rest = commands[command](argument)
            image[:] = observation['image'].ravel()
            answer = 'result', rest
        except Exception:
            answer = 'error', traceback.format_exc()
        connection.send(answer)


def _close(env, task):
    """Closes an environment. Its work is done: an error is no more than a warning."""
    try:
        env.close()
    except Exception as error:
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        with contextlib.suppress(OSError):
            print(
                f'dreamer: warning: the environment of {task} did not close: {text}',
                file=sys.stderr,
                flush=True,
            )


if __name__ == '__main__':
    main()
