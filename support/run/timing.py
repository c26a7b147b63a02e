"""How many seconds a run spends in each of its phases."""

import contextlib
import functools
import time

PHASES = 'collect', 'train', 'evaluate', 'save', 'log'


class Stopwatch:
    """Count the seconds of phases. Those of a phase within another, such as a save
    between two steps of collecting, do not count for the outer one.
    """

    def __init__(self):
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._names = []
        self._since = time.monotonic()

    @contextlib.contextmanager
    def phase(self, name):
        """Count the block as one of `PHASES`."""
        self._count()
        self._names.append(name)
        try:
            yield
        finally:
            self._count()
            self._names.pop()

    def lap(self):
        """Return the seconds of each phase since the last call, as metrics."""
        self._count()
        lap = {f'time_{name}': seconds for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return lap

    def _count(self):
        now = time.monotonic()
        if self._names:
            self._seconds[self._names[-1]] += now - self._since
        self._since = now


def timed(name):
    """Decorate a method of an object with a `stopwatch`: it is such a phase."""

    def decorate(method):
        @functools.wraps(method)
        def timed_method(self, *args, **kwargs):
            with self.stopwatch.phase(name):
                return method(self, *args, **kwargs)

        return timed_method

    return decorate
