"""The file `metrics.jsonl` of a run: a JSON object a line, each with its `step`.

A run appends to it, and cuts it back to its checkpoint when it is resumed. Others may
read it at any time. They may find damaged lines, as after a loss of power, and a last
line that is not complete.

Shapes: P points of a run.
"""

import json
import math
import os

import numpy as np

from support.system import faults

NAME = 'metrics.jsonl'
UNDONE = 'metrics_undone.jsonl'


class File:
    """The file of a run that goes on.

    Lines that were written after the run's checkpoint tell of steps that are about to
    be taken again. They move to `metrics_undone.jsonl`.

    Args:
      logdir: folder of the run, a `pathlib.Path`; it exists.
      size: bytes that the file had at the checkpoint; 0 without one.

    All methods raise OSError if something could not be written.
    """

    def __init__(self, logdir, size=0):
        self._path = logdir / NAME
        if self.size > size:
            with self._path.open('rb') as file:
                file.seek(size)
                undone = file.read()
            with (logdir / UNDONE).open('ab') as file:
                file.write(undone if undone.endswith(b'\n') else undone + b'\n')
            os.truncate(self._path, size)
        if self.size and not self._path.read_bytes().endswith(b'\n'):
            # A line that was cut off must not swallow the next one.
            with self._path.open('a') as file:
                file.write('\n')

    @property
    def size(self):
        """Bytes of the file."""
        return self._path.stat().st_size if self._path.exists() else 0

    def append(self, step, values):
        """Append a line.

        Args:
          step: environment steps taken.
          values: {name: number}.

        Returns:
          the values as they were written: JSON has null in the place of NaN and
          infinities, which is None here.
        """
        values = {
            key: float(value) if math.isfinite(value) else None
            for key, value in values.items()
        }
        with self._path.open('a') as file:
            file.write(json.dumps({'step': int(step), **values}) + '\n')
        faults.reach('metrics')
        return values

    def sync(self):
        """Wait until the file is on the disk, and return its size in bytes. A
        checkpoint must not outlive lines that it counts on when the power fails.
        """
        if self._path.exists():
            with self._path.open('rb') as file:
                os.fsync(file.fileno())
        return self.size


def read(logdir, tail=None):
    """Yield the object of each line, as a dict, and None for a damaged line: one that
    is no object with a usable step.

    Args:
      logdir: folder of a run, a `pathlib.Path`.
      tail: read at most so many bytes, from the end of the file; None reads all. The
        first line may then be cut off, and counts as damaged.

    Raises:
      OSError: the file cannot be read.
    """
    with (logdir / NAME).open('rb') as file:
        if tail is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - tail))
        lines = file.read().splitlines()
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            usable = is_number(row['step']) and row['step'] >= 0
        except (ValueError, KeyError, TypeError, RecursionError):
            usable = False
        yield row if usable else None


def read_points(logdir, key):
    """Return a metric over environment steps.

    Args:
      logdir: folder of a run, a `pathlib.Path`.
      key: name of the metric.

    Returns:
      steps [P], values [P], and counts: `damaged` lines, and `nonfinite` values, which
      are null, NaN or no number. Neither are among the points.

    Raises:
      OSError: the file cannot be read.
    """
    steps, values, counts = [], [], dict(damaged=0, nonfinite=0)
    for row in read(logdir):
        if row is None:
            counts['damaged'] += 1
        elif key in row and not is_number(row[key]):
            counts['nonfinite'] += 1
        elif key in row:
            steps.append(float(row['step']))
            values.append(float(row[key]))
    return np.array(steps), np.array(values), counts


def is_number(value):
    """Return whether a value of JSON is a number that a run can have measured."""
    # JSON's whole numbers have no bounds; ours are damage long before a float's end.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 1e15
    )
