"""What runs in a worker process: one environment, at its parent's command.

The parent's side is workers.py.
"""

import contextlib
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
    """Serve the environment that the parent process asks for."""
    streams.protect()
    connection = Connection(int(sys.argv[1]))
    try:
        _serve(connection, map_image(int(sys.argv[2])))
    except (EOFError, OSError):
        pass  # The parent has closed this worker, or is gone.


def map_image(descriptor):
    """Return the bytes of an open file, shared with all that map it."""
    return np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)


@contextlib.contextmanager
def _without_model_warnings():
    """Keep MuJoCo from its remarks on a model that others have written, unless
    `--verbose` is on; a simulation that goes wrong later is still reported.

    Yields what is to be done with MuJoCo once it is imported.
    """
    if 'DREAMER_VERBOSE' in os.environ:
        yield lambda mujoco: None
        return
    try:
        yield lambda mujoco: mujoco.set_mju_user_warning(lambda message: None)
    finally:
        if mujoco := sys.modules.get('mujoco'):
            mujoco.set_mju_user_warning(None)


def _serve(connection, image):
    """Answer the parent's questions until there are no more; observed images go into
    the array `image`, everything else through the connection.
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
        connection.send(('result', (env.observation_space, env.action_space)))
        _answer(env, connection, image)
    finally:
        close(env, task)


def _answer(env, connection, image):
    """Reset and step the environment as the parent asks; never return."""
    commands = {'reset': lambda seed: env.reset(seed=seed), 'step': env.step}
    while True:
        command, argument = connection.recv()
        try:
            observation, *rest = commands[command](argument)
            image[:] = observation['image'].ravel()
            answer = 'result', rest
        except Exception as error:
            answer = 'error', explain(error)
        connection.send(answer)


def explain(error):
    """Return what went wrong in an environment: a traceback, unless we know."""
    if isinstance(error, UnsupportedEnv):
        return f' {error}'
    text = f'\n{traceback.format_exc()}'
    # Some show its last line alone.
    return text if str(error).strip() else f'{text}{one_line(error)}\n'


def close(env, task):
    """Close an environment. Its work is done: an error is no more than a warning."""
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
