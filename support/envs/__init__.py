"""The environments: what a task is, whatever simulates it; one file a suite.

`wrappers.make` builds them by name and adds what they have in common. Each has
actions of its own (Box or Discrete) and shows itself through `render`, an image
uint8 [H, W, 3], and through `state`, a vector float32 [state_size], where it has one;
the observations that it returns stay empty. One step is one simulator step, except
in DeepMind Lab, which repeats actions itself.

Simulators are imported inside their classes: a task needs no other task's packages.
"""

import difflib
import traceback

import numpy as np
from gymnasium.spaces import Box


def did_you_mean(name, names, suite):
    """Return the part of an error message that names tasks like `name`, if any."""
    spelled = {n.lower(): f'{suite}_{n}' for n in names}
    near = difflib.get_close_matches(name.lower(), spelled)
    return f' (did you mean {" or ".join(map(spelled.get, near))}?)' if near else ''


def action_box(low, high):
    """Return the float32 Box of actions between `low` and `high` [A].

    Bounds from 1e10 on are none: MuJoCo writes them for an actuator without limits,
    others the largest float.
    """
    low = np.where(low > -1e10, low, -np.inf)
    high = np.where(high < 1e10, high, np.inf)
    return Box(low.astype(np.float32), high.astype(np.float32))


class UnsupportedEnv(ValueError):
    """An environment gives what the agent cannot take; the message is one line."""


def one_line(error):
    """Return someone else's error in one line, with its kind: many say little more. Of
    one that says nothing, such as a bare assertion, the line where it was raised.
    """
    text = str(error)
    if not text.strip() and error.__traceback__:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f'line {place.lineno} of {place.filename}: {place.line}'
    return ' '.join(f'{type(error).__name__}: {text}'.split())
