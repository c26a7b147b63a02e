"""Scores of local runs and published ones: reading, averaging, comparing.

Evaluations are averaged in bins of environment steps within each run first, so that
a run that evaluates often does not outweigh another; then mean and population standard
deviation are taken over runs. Published results are in `results/published/`.

Shapes: P points of a run, S runs (seeds), K bins.
"""

import csv
import dataclasses
import json
import math
import os
import pathlib

import numpy as np

SCORES = pathlib.Path(__file__).resolve().parents[2] / 'results' / 'published'

# What a run and plotting.py leave in it: many files, and no further runs.
FOLDERS_OF_A_RUN = {'checkpoints', 'dumps', 'episodes', 'plots', 'videos'}

# Columns of the tables in scores/, named METHOD_STEPS..., and their labels.
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
    """`planet_5e6` as `PlaNet (5e6)`: the score is of that many steps."""
    return f'{BASELINES[column]} ({column.split("_")[1]})'


# What has to be known wherever a score is held against the released curves.
WARNING = (
    'The released Dreamer curves are of an earlier setting of the hyperparameters than '
    'the released code, which their author calls better in general and slower on '
    'pendulum_swingup. Users of that code could not reproduce pendulum_swingup and '
    'cartpole_swingup_sparse (github.com/danijar/dreamer, issues 54 and 55).'
)

# Published spreads within which a score counts as the published one.
INSIDE = 2

# Resamples of the bootstrap; more than steadies an interval's second decimal.
RESAMPLES = 2000


class ScoreError(ValueError):
    """Nothing can be compared; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Points:
    """One run's points: `steps` [P] environment steps, `values` [P] finite."""

    task: str
    method: str
    seed: str
    folder: pathlib.Path
    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """Runs of one task and method in common bins.

    `steps` [K] centres of bins [environment steps]; `table` [S, K] each run's mean in
    a bin, NaN where it has no point.
    """

    steps: np.ndarray
    table: np.ndarray

    @property
    def mean(self):
        """Over the runs that have the bin, [K]."""
        return np.nanmean(self.table, 0)

    @property
    def std(self):
        """Population standard deviation over the runs that have the bin, [K]."""
        return np.nanstd(self.table, 0)

    @property
    def seeds(self):
        """Runs that have the bin, [K]."""
        return np.isfinite(self.table).sum(0)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; None where there is no such number.

    `scores` [S] are the runs' means in the bin around `steps`; `published` and
    `published_std` are taken at the same number of steps.
    """

    task: str
    method: str
    steps: int
    scores: np.ndarray
    published: float | None
    published_std: float | None

    @property
    def score(self):
        """Mean over seeds."""
        return float(self.scores.mean())

    @property
    def std(self):
        """Population standard deviation over seeds, None for a single one."""
        return float(self.scores.std()) if len(self.scores) > 1 else None

    @property
    def difference(self):
        """(own - published) / published spread."""
        if self.published is None or not self.published_std:
            return None
        return (self.score - self.published) / self.published_std

    @property
    def verdict(self):
        """Whether the score is 'inside' `INSIDE` published spreads, 'above' or
        'below'.
        """
        if self.difference is None:
            return None
        if abs(self.difference) <= INSIDE:
            return 'inside'
        return 'above' if self.difference > 0 else 'below'


@dataclasses.dataclass(frozen=True)
class ReadOff:
    """A value of a figure of the paper: `score` of `method` on `task` at `x`, which is
    the value of a flag in figure 4 and environment steps elsewhere.

    `error` is that of reading, None where it is unknown or the value is printed.
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
        """Where it is from, for a legend."""
        return self.source.removesuffix(', hidden')


class Published:
    """The tables of `results/published/`.

    `finals`: {task: {column: score}}; `curves`: {task: array [4, points]} of step,
    mean, std and seeds of the released Dreamer curves; `read_off`: list of `ReadOff`.
    Raises ScoreError if a table is missing or unreadable.
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
            raise ScoreError(f'unreadable tables in {folder}: {error}') from None
        self.curves = {task: np.array(rows).T for task, rows in points.items()}

    def at(self, task, method, step):
        """Mean and spread of a published method at `step` environment steps.

        The released curves are interpolated linearly; after their last point it holds
        for one more of their intervals, so that 5e6 steps find it. PlaNet has its
        final score only, without a spread, for 4.9e6 steps and more. Others: None.
        """
        if method == 'dreamer' and task in self.curves:
            steps, mean, std, _ = self.curves[task]
            if steps[0] <= step <= 2 * steps[-1] - steps[-2]:
                return (
                    float(np.interp(step, steps, mean)),
                    float(np.interp(step, steps, std)),
                )
        if method == 'planet' and step >= 4.9e6:
            return self.finals.get(task, {}).get('planet_5e6'), None
        return None, None

    def of_figure(self, number, task):
        """What was read off a figure of the paper for `task`."""
        return [x for x in self.read_off if (x.figure, x.task) == (number, task)]

    def means(self, suite='dmc'):
        """Mean of each column over the tasks of `suite` that have it, if most have."""
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


def read_points(path, key):
    """Points of one metrics file.

    Args:
      path: `metrics.jsonl`; lines may be damaged and the last one unfinished.
      key: name of the metric.

    Returns steps [P], values [P], and a dict of counts: `damaged` lines that are no
    JSON object with a usable `step`, and `nonfinite` ones whose value is null, NaN or
    no number. Raises OSError if the file cannot be read.
    """
    steps, values, counts = [], [], dict(damaged=0, nonfinite=0)
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = row['step']
            if not _is_number(step) or step < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            counts['damaged'] += 1
            continue
        if key in row and not _is_number(row[key]):
            counts['nonfinite'] += 1
        elif key in row:
            steps.append(float(step))
            values.append(float(row[key]))
    return np.array(steps), np.array(values), counts


def _is_number(value):
    # JSON's whole numbers have no bounds; ours are damage long before a float's end.
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 1e15
    )


def name_run(folder, root):
    """Task, method and seed of the run in `folder` below `root`, as strings.

    Raises ScoreError if neither the path nor `config.json` names them.
    """
    config = {}
    if (folder / 'config.json').exists():
        try:
            config = dict(json.loads((folder / 'config.json').read_text())['config'])
        except (OSError, ValueError, KeyError, TypeError):
            raise ScoreError('its config.json is damaged') from None
    parts = folder.relative_to(root).parts
    if len(parts) == 3:
        return str(config.get('task', parts[0])), parts[1], parts[2]
    if 'task' not in config or 'seed' not in config:
        raise ScoreError(
            'it is not at task/method/seed and has no config.json with task and seed'
        )
    method = config.get('method', 'dreamer')
    representation = config.get('representation', 'reconstruction')
    if representation != 'reconstruction':
        method = f'{method}_{representation}'
    return str(config['task']), str(method), str(config['seed'])


def run_folders(root, notes, seen):
    """Folders below `root`, and itself, with a `metrics.jsonl`; those without one are
    noted. There may be runs below a run.

    Symbolic links are followed, after what is here without them; no folder is looked
    at twice: what was is in the set `seen`, which grows.
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
            if 'metrics.jsonl' in files:
                folders[:] = [x for x in folders if x not in FOLDERS_OF_A_RUN]
                yield folder
            elif 'config.json' in files or not (folders or files):
                notes.append(f'left out {folder}: it has no metrics.jsonl')
            tops += [path for x in folders if (path := folder / x).is_symlink()]


def find_runs(roots, key, tasks=None):
    """All runs below the folders `roots` that have a point of `key`.

    Returns runs, sorted by task, method and seed, and notes: a line for each thing
    that was left out, skipped or unexpected. `tasks` keeps those tasks only.
    """
    runs, notes, seen = {}, [], set()
    for root in roots:
        # One root may lie in another.
        for folder in run_folders(root, notes, seen):
            try:
                name = name_run(folder, root)
                if tasks and name[0] not in tasks:
                    continue
                if name in runs:
                    raise ScoreError(
                        f'same task, method and seed as {runs[name].folder}'
                    )
                runs[name] = load_run(folder, name, key, notes)
            except (ScoreError, OSError) as error:
                notes.append(f'left out {folder}: {error}')
                continue
            if len(folder.relative_to(root).parts) == 3 and (
                folder.parent.parent.name != name[0]
            ):
                notes.append(f'{folder} counts as {name[0]}, by its config.json')
    return [runs[name] for name in sorted(runs)], notes


def load_run(folder, name, key, notes):
    """The Points in `folder` with `name` (task, method, seed); skips are noted.

    Raises ScoreError if it has no point of `key`.
    """
    steps, values, counts = read_points(folder / 'metrics.jsonl', key)
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
        raise ScoreError(f'it has no {key}')
    return Points(*name, folder, steps, values)


# Averaging.


def bin_means(steps, values, width):
    """Means of one run's points in bins.

    Bin k holds the steps in [(k - 1/2) width, (k + 1/2) width): evaluations that are
    due at a multiple of the width fall into its middle, late or not.

    Returns k [K] ascending and the means [K] of `values`.
    """
    index = np.floor(steps / width + 0.5).astype(int)
    bins, inverse = np.unique(index, return_inverse=True)
    return bins, np.bincount(inverse, values) / np.bincount(inverse)


def make_curve(runs, width):
    """Runs of one task and method as a Curve with bins of `width` steps."""
    binned = [bin_means(run.steps, run.values, width) for run in runs]
    bins = np.unique(np.concatenate([bins for bins, _ in binned]))
    table = np.full((len(runs), len(bins)), np.nan)
    for row, (index, means) in zip(table, binned):
        row[np.searchsorted(bins, index)] = means
    return Curve(bins * width, table)


def bin_width(runs):
    """A round width [environment steps] for runs of one task.

    A fiftieth of the longest run, but not less than the usual distance between
    points; rounded up to 1, 2 or 5 times a power of ten.
    """
    longest = max(run.steps.max() for run in runs)
    gaps = np.concatenate([np.diff(np.unique(run.steps)) for run in runs])
    width = max(longest / 50, np.median(gaps) if len(gaps) else 0, 1)
    # Evaluations are a little late; that must not double the width.
    unit = 10 ** math.floor(math.log10(width))
    return int(next(x * unit for x in (1, 2, 5, 10) if x * unit >= 0.95 * width))


def final_bin(curve, step, width):
    """Index of the bin whose means are the runs' scores.

    The one around `step` if that is given, else the last of those that most runs
    have: where all are equally long, the last. None if no run has it.
    """
    if step is not None:
        hits = np.flatnonzero(curve.steps == math.floor(step / width + 0.5) * width)
        return int(hits[0]) if len(hits) else None
    return int(np.flatnonzero(curve.seeds == curve.seeds.max())[-1])


def make_rows(curves, widths, published, step=None, notes=None):
    """The table's rows for `curves` {(task, method): Curve}."""
    rows, notes = [], [] if notes is None else notes
    for (task, method), curve in curves.items():
        k = final_bin(curve, step, widths[task])
        if k is None:
            notes.append(f'no score of {method} on {task} at {step:.0f} steps')
            continue
        column = curve.table[:, k]
        steps, last = int(curve.steps[k]), int(curve.steps[-1])
        if len(column) > curve.seeds[k] or (step is None and steps < last):
            notes.append(
                f'{method} on {task}: scores are those of {curve.seeds[k]} of '
                f'{len(column)} runs at {steps} steps; the longest has {last}'
            )
        mean, std = published.at(task, method, steps) if published else (None, None)
        rows.append(Row(task, method, steps, column[np.isfinite(column)], mean, std))
    return rows


def count_verdicts(rows):
    """How many of `rows` lie inside, above and below the published scores, as a
    sentence; empty where none can be compared.
    """
    verdicts = [row.verdict for row in rows if row.verdict]
    if not verdicts:
        return ''
    inside, above, below = map(verdicts.count, ('inside', 'above', 'below'))
    return (
        f'{inside} of {len(verdicts)} task(s) inside {INSIDE} published spreads, '
        f'{above} above, {below} below'
    )


def aggregate(rows):
    """Interquartile mean and mean over all runs of a method, on the Control Suite.

    Scores are divided by 1000, the best return there. Every task counts with the same
    number of runs, the smallest that a task of the method has.

    Returns a list of dicts method, tasks, seeds, and iqm and mean, each as (value,
    low, high), for the methods with two runs or more; the ends are None where a task
    has only one, as then there is nothing to draw from.
    """
    result = []
    for method in sorted({row.method for row in rows}):
        scores = [
            row.scores
            for row in rows
            if row.method == method and row.task.startswith('dmc_')
        ]
        if len(scores) > 1 or scores and len(scores[0]) > 1:
            seeds = min(map(len, scores))
            iqm, mean = _estimates(np.stack([x[:seeds] for x in scores], 1) / 1000)
            result.append(
                dict(method=method, tasks=len(scores), seeds=seeds, iqm=iqm, mean=mean)
            )
    return result


def _estimates(scores):
    """Interquartile mean and mean of `scores` [S, tasks], each with the ends of its
    95 % interval, from a bootstrap over runs stratified by task (Agarwal et al.,
    NeurIPS 2021).
    """
    # It takes seconds to import, and fails to with another pandas than the tested.
    from rliable import library, metrics

    def statistics(x):
        return np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x)])

    ends = np.full((2, 2), None)
    if len(scores) > 1:
        # The library draws from the global generator, whatever it is given.
        state = np.random.get_state()
        np.random.seed(0)
        try:
            ends = library.get_interval_estimates(
                {'': scores}, statistics, reps=RESAMPLES
            )[1]['']
        finally:
            np.random.set_state(state)
    return [(float(value), *ends[:, i]) for i, value in enumerate(statistics(scores))]
