"""The statement of a run that it has finished: `finished.json` in its folder.

It is written last, after the last evaluation and checkpoint, and taken back when the
run goes on, for instance with more `--steps`.
"""

import json

from support.system import atomic


def state(logdir, step):
    """State that the run in `logdir` has finished with `step` [environment steps].

    Raises:
      OSError: it could not be written.
    """
    atomic.write(logdir / 'finished.json', f'{json.dumps({"step": step})}\n'.encode())


def withdraw(logdir):
    """Take the statement back, if there is one."""
    (logdir / 'finished.json').unlink(missing_ok=True)


def step_of(logdir):
    """Return the environment steps with which a run has finished; -1 if it has not."""
    try:
        return int(json.loads((logdir / 'finished.json').read_text())['step'])
    except (OSError, ValueError, KeyError, TypeError):
        return -1  # None, or damaged.
