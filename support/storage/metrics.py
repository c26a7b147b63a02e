"""The file `metrics.jsonl` of a run: a JSON object a line, each with its `step`.

A run appends lines. A resumed run first cuts the file back to its checkpoint. Other
programs may read the file at any time. They may find an incomplete last line, and
damaged lines after a loss of power.

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
    """The metrics file of a run that is training.

    Lines after the run's checkpoint move to `metrics_undone.jsonl`, because the run
    takes their steps again.

    Args:
      logdir: folder of the run, a `pathlib.Path`; it exists.
      size: bytes of the file at the checkpoint; 0 without a checkpoint.

    All methods raise OSError if something cannot be written.
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
            # The next line must not continue a line that was cut off.
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
          the values as written, with None for NaN and infinities (null in JSON).
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
        """Wait until the file is on the disk; return its size in bytes. A checkpoint
        stores this size. If it survives a loss of power, the lines must, too.
        """
        if self._path.exists():
            with self._path.open('rb') as file:
                os.fsync(file.fileno())
        return self.size


def read(logdir, tail=None):
    """Yield a dict for each line; None for a damaged line, without a usable step.

    Args:
      logdir: folder of a run, a `pathlib.Path`.
      tail: number of last bytes to read; None reads all. A first line that is cut off
        counts as damaged.

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
    """Read a metric over environment steps.

    Args:
      logdir: folder of a run, a `pathlib.Path`.
      key: name of the metric.

    Returns:
      steps [P], values [P], and a dict of counts: `damaged` lines, and `nonfinite`
      values (null, NaN or no number). The points contain neither.

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
    # JSON's whole numbers have no bounds, and no run measures larger ones than this.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 1e15
    )
