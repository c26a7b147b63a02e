"""Simulators in worker processes: the child's side. The parent's is in workers.py."""

import contextlib
import math
import mmap
import os
import sys
import traceback
from multiprocessing.connection import Connection

import numpy as np

import wrappers
from support.envs import UnsupportedEnv, one_line, rendering
from support.system import streams


def main():
    """Make and serve the environment that the parent asks for."""
    streams.protect()
    connection = Connection(int(sys.argv[1]))
    try:
        _serve(connection, int(sys.argv[2]))
    except (EOFError, OSError):
        pass  # The parent has closed this worker, or is gone.


class SharedObservation:
    """The arrays of an observation, in memory that parent and child share.

    Args:
      descriptor: of a file in memory, of at least `shared_bytes(space)`.
      space: Dict of Box, of what is observed.
    """

    def __init__(self, descriptor, space):
        memory = np.frombuffer(mmap.mmap(descriptor, shared_bytes(space)), np.uint8)
        self._arrays, end = {}, 0
        for name, box in space.items():
            start, end = end, end + _box_bytes(box)
            array = memory[start:end].view(box.dtype)
            self._arrays[name] = array.reshape(box.shape)

    def write(self, observation):
        """Store an observation for the other process."""
        for name, array in self._arrays.items():
            array[...] = observation[name]

    def read(self):
        """Return a copy of the observation that was written last."""
        return {name: array.copy() for name, array in self._arrays.items()}


def shared_bytes(space):
    """Return the bytes of an observation of a Dict space."""
    return sum(map(_box_bytes, space.values()))


def _box_bytes(box):
    return math.prod(box.shape) * box.dtype.itemsize


@contextlib.contextmanager
def _without_model_warnings():
    """Silence MuJoCo's warnings while its model is loaded, unless `--verbose` is on.

    Users cannot change these models. Warnings of the simulation are still printed.

    Yields:
      function that must be called with the module `mujoco` once it is imported.
    """
    if 'DREAMER_VERBOSE' in os.environ:
        yield lambda mujoco: None
        return
    try:
        yield lambda mujoco: mujoco.set_mju_user_warning(lambda message: None)
    finally:
        mujoco = sys.modules.get('mujoco')
        # The Control Suite has set a function of its own, which logs them.
        if mujoco and 'dm_control.mujoco' not in sys.modules:
            mujoco.set_mju_user_warning(None)


def _serve(connection, descriptor):
    """Make the environment and answer the parent until it closes the connection.

    Observations go into the file of `descriptor`, all else through the connection.
    """
    _, (task, kwargs) = connection.recv()

    def ask():
        connection.send(('renderer', None))
        return connection.recv()[1]

    try:
        with _without_model_warnings() as then:
            rendering.choose_on_import(ask, then)
            env = wrappers.make(task, **kwargs)
    except (ValueError, RuntimeError) as error:
        kind = 'ValueError' if isinstance(error, ValueError) else 'RuntimeError'
        connection.send((kind, str(error)))
        return
    except Exception as error:
        connection.send(('error', explain(error)))
        return
    try:
        os.ftruncate(descriptor, shared_bytes(env.observation_space))
        shared = SharedObservation(descriptor, env.observation_space)
        connection.send(('result', (env.observation_space, env.action_space)))
        _answer(env, connection, shared)
    finally:
        close(env, task)


def _answer(env, connection, shared):
    """Reset and step the environment as the parent asks, without end."""
    commands = {'reset': lambda seed: env.reset(seed=seed), 'step': env.step}
    while True:
        command, argument = connection.recv()
        try:
            observation, *rest = commands[command](argument)
            shared.write(observation)
            answer = 'result', rest
        except Exception as error:
            answer = 'error', explain(error)
        connection.send(answer)


def explain(error):
    """Return what went wrong in an environment: a traceback, or a known cause."""
    if isinstance(error, UnsupportedEnv):
        return f' {error}'
    text = f'\n{traceback.format_exc()}'
    # Some readers show the last line alone, which must not be empty of words.
    return text if str(error).strip() else f'{text}{one_line(error)}\n'


def close(env, task):
    """Close an environment. As its work is done, errors become warnings."""
    try:
        env.close()
    except Exception as error:
        with contextlib.suppress(OSError):
            print(
                f'dreamer: warning: the environment of {task} did not close: '
                f'{one_line(error)}',
                file=sys.stderr,
                flush=True,
            )
