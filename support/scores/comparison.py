"""What is compared: local runs, files of curves, and the published results.

Published results are in `results/published/`. `protocol.py` makes scores and curves of
runs.

Shapes: P points of a run.
"""

import csv
import dataclasses
import gzip
import json
import os
import pathlib

import numpy as np

from support.storage import metrics
from support.system.command_line import UserError

SCORES = pathlib.Path(__file__).resolve().parents[2] / 'results' / 'published'

# What a run and plotting.py leave in it: many files, and no further runs.
FOLDERS_OF_A_RUN = {'checkpoints', 'dumps', 'episodes', 'plots', 'videos'}

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
class Points:
    """One run's points: `steps` [P] environment steps, ascending, `values` [P] finite.

    `method` is the name of the folder. `algorithm` is what was run, as published
    results are named; it is empty if that is unknown.
    """

    task: str
    method: str
    seed: str
    folder: pathlib.Path
    steps: np.ndarray
    values: np.ndarray
    algorithm: str = ''


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


# Reading.


def name_run(folder, root):
    """Return (task, method, seed) of a run in `folder` below `root`, and its algorithm.

    Raises UserError if neither the path nor `config.json` names them.
    """
    config = {}
    if (folder / 'config.json').exists():
        try:
            config = dict(json.loads((folder / 'config.json').read_text())['config'])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError('its config.json is damaged') from None
    parts = folder.relative_to(root).parts
    algorithm = str(config.get('method', 'dreamer'))
    representation = config.get('representation', 'reconstruction')
    if representation != 'reconstruction':
        algorithm = f'{algorithm}_{representation}'
    if len(parts) == 3:
        name = str(config.get('task', parts[0])), parts[1], parts[2]
        return name, algorithm if 'method' in config else parts[1]
    if 'task' not in config or 'seed' not in config:
        raise UserError(
            'it is not at task/method/seed and has no config.json with task and seed'
        )
    return (str(config['task']), algorithm, str(config['seed'])), algorithm


def run_folders(root, notes, seen):
    """Yield `root` and the folders below it that have a `metrics.jsonl`. There may be
    runs below a run.

    Symbolic links are followed last. No folder is visited twice.

    Args:
      root: `pathlib.Path`.
      notes: list, which gets a line for every run without that file.
      seen: set of the folders that were visited, which grows.
    """
    tops = [root]
    for top in tops:
        for name, folders, files in os.walk(top):
            folder = pathlib.Path(name)
            if folder.resolve() in seen:
                folders.clear()
                continue
            seen.add(folder.resolve())
            folders.sort()
            if metrics.NAME in files:
                folders[:] = [x for x in folders if x not in FOLDERS_OF_A_RUN]
                yield folder
            elif 'config.json' in files or not (folders or files):
                notes.append(f'left out {folder}: it has no metrics.jsonl')
            tops += [path for x in folders if (path := folder / x).is_symlink()]


def find_runs(roots, key, tasks=None):
    """Return all runs below the folders `roots` that have a point of `key`, sorted by
    task, method and seed, and notes: a line for everything that was left out, skipped
    or unexpected. `tasks`, if given, leaves out all other tasks.
    """
    runs, notes, seen = {}, [], set()
    for root in roots:
        # One root may lie in another.
        for folder in run_folders(root, notes, seen):
            try:
                name, algorithm = name_run(folder, root)
                if tasks and name[0] not in tasks:
                    continue
                if name in runs:
                    raise UserError(
                        f'same task, method and seed as {runs[name].folder}'
                    )
                runs[name] = load_run(folder, name, key, notes, algorithm)
            except (UserError, OSError) as error:
                notes.append(f'left out {folder}: {error}')
                continue
            if len(folder.relative_to(root).parts) == 3 and (
                folder.parent.parent.name != name[0]
            ):
                notes.append(f'{folder} counts as {name[0]}, by its config.json')
    return [runs[name] for name in sorted(runs)], notes


def load_run(folder, name, key, notes, algorithm=''):
    """Return the `Points` of the run `name` (task, method, seed); note what is skipped.

    Raises UserError if it has no point of `key`.
    """
    steps, values, counts = metrics.read_points(folder, key)
    if counts['damaged']:
        notes.append(
            f'skipped {counts["damaged"]} damaged or unfinished line(s) in {folder}'
        )
    if counts['nonfinite']:
        notes.append(
            f'skipped {counts["nonfinite"]} value(s) of {key} that are not '
            f'finite numbers in {folder}'
        )
    if not len(steps):
        raise UserError(f'it has no {key}')
    order = np.argsort(steps, kind='stable')
    return Points(*name, folder, steps[order], values[order], algorithm)


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
