"""Functions that XLA compiles where it can."""

import re
import sys

import tensorflow as tf

_warned = set()


class Fallback:
    """A function that XLA compiles; if XLA fails, it runs without XLA.

    Args:
      make: takes whether XLA shall compile; returns the function.
      compiled: whether XLA shall compile at first.
      what: the function's name in the warning, which is printed once for each name.
    """

    def __init__(self, make, compiled, what):
        self._make, self._what = make, what
        self._function, self._untried = make(compiled), compiled

    def __call__(self, *args):
        """Call the function; XLA compiles it at the first call."""
        try:
            result = self._function(*args)
        except tf.errors.OpError as error:
            if not self._untried:
                raise
            warn(self._what, error)
            self._untried, self._function = False, self._make(False)
            return self._function(*args)
        self._untried = False
        return result


def warn(what, error):
    """Print, once for each `what`, that XLA cannot compile it."""
    if what not in _warned:
        _warned.add(what)
        print(
            f'dreamer: warning: XLA cannot compile {what} ({cause(error)}); the run '
            'continues without XLA',
            file=sys.stderr,
        )


def cause(error):
    """Return the line of a TensorFlow error that names the cause. Lines with places in
    the graph may precede it, and lines of advice may follow.
    """
    lines = str(error.message).splitlines()
    roots = [line for line in lines if re.match(r'\s+\(0\) ', line)]
    skipped = 'Graph execution error', 'Detected at', 'Stack trace', '<stack', ' ', '\t'
    plain = [line for line in lines if line.strip() and not line.startswith(skipped)]
    line = (roots or plain or lines or [''])[0]
    # Places in the graph, and functions with all their attributes.
    noise = r'( compatible with node )?\{\{.*?\}\} ?| __inference_\S*\[.*?\]'
    line = re.sub(rf'^\s+\(0\) |{noise}| ?\[Op:.*', '', line)
    return f'{type(error).__name__}: {" ".join(line.split())}'
