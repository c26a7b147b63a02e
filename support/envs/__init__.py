"""The environments, with one file for each suite.

`wrappers.make` builds them by name and adds the parts that they share. Actions are a
Box or Discrete. `render` returns the image, uint8 [H, W, 3]. `state` returns the state,
if there is one, float32 [state_size]. `reset` and `step` return empty observations. A
step is one simulator step, except in DeepMind Lab, whose simulator repeats actions.

Only the class of a suite imports its simulator: no task needs another task's packages.
"""

import difflib
import traceback

import numpy as np
from gymnasium.spaces import Box


def did_you_mean(name, names, suite):
    """Return a hint for an error message that names similar tasks; '' without any."""
    spelled = {n.lower(): f'{suite}_{n}' for n in names}
    near = difflib.get_close_matches(name.lower(), spelled)
    return f' (did you mean {" or ".join(map(spelled.get, near))}?)' if near else ''


def action_box(low, high):
    """Return the float32 Box of actions between `low` and `high` [A].

    Bounds of 1e10 and more mean no limit: MuJoCo gives these to actuators without
    limits, and other simulators the largest float.
    """
    low = np.where(low > -1e10, low, -np.inf)
    high = np.where(high < 1e10, high, np.inf)
    return Box(low.astype(np.float32), high.astype(np.float32))


class UnsupportedEnv(ValueError):
    """An environment gives data that the agent cannot use. The message is one line."""


def one_line(error):
    """Return an error of other people's code in one line that begins with its kind. For
    an error without a message, such as a bare assertion, give the line that raised it.
    """
    text = str(error)
    if not text.strip() and error.__traceback__:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f'line {place.lineno} of {place.filename}: {place.line}'
    return ' '.join(f'{type(error).__name__}: {text}'.split())
