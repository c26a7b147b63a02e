"""What local runs are compared with: the published results, which are in
`results/published/`, and files of curves by others.
"""

import csv
import dataclasses
import gzip
import json
import pathlib

import numpy as np

from support.scores.runs import Points
from support.storage import metrics
from support.system.command_line import UserError

SCORES = pathlib.Path(__file__).resolve().parents[2] / 'results' / 'published'

# Columns of the published tables, named METHOD_STEPS..., and their labels.
BASELINES = {
    'a3c_1e8_state': 'A3C, states',
    'd4pg_1e8_pixels': 'D4PG',
    'planet_5e6': 'PlaNet',
    'dreamer_5e6': 'Dreamer, paper',
    'dqn_2e8': 'DQN',
    'c51_2e8': 'C51',
    'rainbow_2e8': 'Rainbow',
    'iqn_2e8': 'IQN',
    'impala_1e9': 'IMPALA',
    'slac_3e6': 'SLAC',
}


def baseline_label(column):
    """Return `PlaNet (5e6)` for `planet_5e6`, a score after that many steps."""
    return f'{BASELINES[column]} ({column.split("_")[1]})'


# For readers of every comparison with the released curves.
WARNING = (
    'The released Dreamer curves are of an earlier setting of the hyperparameters than '
    'the released code, which their author calls better in general and slower on '
    'pendulum_swingup. Users of that code could not reproduce pendulum_swingup and '
    'cartpole_swingup_sparse (github.com/danijar/dreamer, issues 54 and 55).'
)


@dataclasses.dataclass(frozen=True)
class ReadOff:
    """A value that was read off a figure of the paper: `score` of `method` on `task` at
    `x`. In figure 4, `x` is the value of a flag; elsewhere it is environment steps.

    `error` is the error of reading, None if it is unknown or the value is printed.
    """

    figure: int
    task: str
    method: str
    x: int
    score: float
    error: float | None
    source: str

    @property
    def label(self):
        """The source, for a legend."""
        return self.source.removesuffix(', hidden')


class Published:
    """The tables of `results/published/`.

    `finals` is {task: {column: score}}. `curves` is {task: array [4, points]} with
    step, mean, std and seeds of the released Dreamer curves. `read_off` is a list of
    `ReadOff`. Raises UserError if a table is missing or unreadable.
    """

    def __init__(self, folder=SCORES):
        self.finals, points = {}, {}
        try:
            for name in ('dmc.csv', 'atari.csv', 'dmlab.csv'):
                for row in _read_csv(folder / name):
                    task = row.pop('task')
                    self.finals[task] = {x: float(row[x]) for x in row if row[x]}
            for row in _read_csv(folder / 'dmc_dreamer_curves.csv'):
                points.setdefault(row.pop('task'), []).append(
                    [float(x) for x in row.values()]
                )
            self.read_off = [
                ReadOff(
                    int(row['figure']),
                    row['task'],
                    row['method'],
                    int(row['x']),
                    float(row['value']),
                    float(row['error']) if row['error'] else None,
                    row['source'],
                )
                for row in _read_csv(folder / 'paper_figures.csv')
            ]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f'unreadable tables in {folder}: {error}') from None
        self.curves = {task: np.array(rows).T for task, rows in points.items()}

    def steps(self, task, algorithm):
        """Return the environment steps of published results of `algorithm`, ascending.
        Of PlaNet only the final score was published.
        """
        if algorithm == 'dreamer' and task in self.curves:
            return [int(x) for x in self.curves[task][0]]
        if algorithm == 'planet' and 'planet_5e6' in self.finals.get(task, {}):
            return [5_000_000]
        return []

    def at(self, task, algorithm, step):
        """Return the published mean and spread at one of `steps(task, algorithm)`, and
        (None, None) at any other step. The spread of PlaNet is None.
        """
        steps = self.steps(task, algorithm)
        if step not in steps:
            return None, None
        if algorithm == 'planet':
            return self.finals[task]['planet_5e6'], None
        _, mean, std, _ = self.curves[task][:, steps.index(step)]
        return float(mean), float(std)

    def of_figure(self, number, task):
        """Return what was read off a figure of the paper for `task`."""
        return [x for x in self.read_off if (x.figure, x.task) == (number, task)]

    def means(self, suite='dmc'):
        """Return the mean of each column over the tasks of `suite`, if most have it."""
        tables = [x for task, x in self.finals.items() if task.startswith(f'{suite}_')]
        columns = [
            c
            for c in BASELINES
            if 2 * sum(c in table for table in tables) > len(tables)
        ]
        return {
            column: float(
                np.mean([table[column] for table in tables if column in table])
            )
            for column in columns
        }


def _read_csv(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


# Files of curves, as the authors of several agents publish theirs.


def curves_json(runs):
    """Return `runs` as JSON: a list of objects with task, method, seed, xs and ys."""
    objects = [
        dict(
            task=run.task,
            method=run.method,
            seed=int(run.seed) if run.seed.isdecimal() else run.seed,
            xs=[int(x) for x in run.steps],
            ys=run.values.tolist(),
        )
        for run in runs
    ]
    return json.dumps(objects) + '\n'


def read_curves(path, notes):
    """Return the runs in a file of curves, plain or with gzip, as `Points` sorted by
    task, method and seed. The name of the file is added to those of the methods. Values
    that are no finite numbers are skipped, with a note.

    Raises UserError if the file is not of that form.
    """
    try:
        data = path.read_bytes()
        objects = json.loads(gzip.decompress(data) if path.suffix == '.gz' else data)
        found = [_read_object(x) for x in objects]
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f'{path} is not a list of objects with task, method, seed, xs and ys '
            f'({error!r})'
        ) from None
    label, runs, skipped = path.name.partition('.')[0], {}, 0
    for task, method, seed, steps, values in found:
        usable = [(x, y) for x, y in zip(steps, values) if y is not None]
        skipped += len(steps) - len(usable)
        name = task, f'{method} ({label})', seed
        if name in runs:
            raise UserError(f'{path} has {task}, {method}, seed {seed} twice')
        if usable:
            steps, values = np.array(sorted(usable, key=lambda x: x[0]), float).T
            runs[name] = Points(*name, path, steps, values)
    if skipped:
        notes.append(f'skipped {skipped} value(s) in {path} that are no finite numbers')
    return [runs[name] for name in sorted(runs)]


def _read_object(curve):
    """Return task, method, seed, steps and values; None for values not finite."""
    steps, values = curve['xs'], curve['ys']
    if len(steps) != len(values):
        raise ValueError(f'{len(steps)} xs and {len(values)} ys')
    if not all(metrics.is_number(x) and x >= 0 for x in steps):
        raise ValueError('xs must be environment steps')
    names = (str(curve[x]) for x in ('task', 'method', 'seed'))
    return *names, steps, [y if metrics.is_number(y) else None for y in values]
