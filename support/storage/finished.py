"""The file `finished.json`, by which a run states that it has finished.

The run writes the file last, after the final evaluation and checkpoint. It removes the
file when it resumes, for instance with more `--steps`.
"""

import json

from support.system import atomic


def state(logdir, step):
    """State that the run in `logdir` has finished after `step` environment steps.

    Raises:
      OSError: the file could not be written.
    """
    atomic.write(logdir / 'finished.json', f'{json.dumps({"step": step})}\n'.encode())


def withdraw(logdir):
    """Remove the file, if there is one."""
    (logdir / 'finished.json').unlink(missing_ok=True)


def step_of(logdir):
    """Return the environment steps of a finished run; -1 if it has not finished."""
    try:
        return int(json.loads((logdir / 'finished.json').read_text())['step'])
    except (OSError, ValueError, KeyError, TypeError):
        return -1  # There is no file, or it is damaged.
