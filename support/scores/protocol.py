"""The protocol: how evaluations become scores and curves. Every table follows it.

- The score of a run is the mean of its last five evaluations. The score of a method on
  a task is the mean over its runs, with the population standard deviation as spread.
- Published values count only at the steps where they were published. There a run counts
  with the five evaluations around the step. The difference is in published spreads,
  and a verdict needs three runs.
- Curves of several runs are means over runs, in bins of environment steps. The curve of
  a single run is the running mean of five evaluations.

Nothing is interpolated, and nothing depends on the other methods and tasks.

Shapes: P evaluations of a run, S runs (seeds), K places on a curve.
"""

import dataclasses
import itertools
import math

import numpy as np

# Evaluations that a score averages: each is often a single episode.
EVALUATIONS = 5

# A verdict on fewer runs would be about the seed.
VERDICT_SEEDS = 3

# Published spreads within which a score counts as the published one.
INSIDE = 2

# Resamples of the bootstrap; more than steadies an interval's second decimal.
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Curve:
    """Runs of one task and method at common places.

    `steps` [K] environment steps; `table` [S, K] the runs' values there, NaN where one
    has none; `raw` [K] are the evaluations of a single run, which `table` smooths, and
    None where runs are averaged in bins.
    """

    steps: np.ndarray
    table: np.ndarray
    raw: np.ndarray | None = None

    @property
    def mean(self):
        """Over the runs that have the place, [K]."""
        return np.nanmean(self.table, 0)

    @property
    def std(self):
        """Population standard deviation over the runs that have the place, [K]."""
        return np.nanstd(self.table, 0)

    @property
    def seeds(self):
        """Runs that have the place, [K]."""
        return np.isfinite(self.table).sum(0)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; None where there is no such number.

    `ends` [S] are the last evaluations in `scores` [S] [environment steps]. `at` is the
    step where `published` and `published_std` were published, and `there` [S] are the
    runs' values around it.
    """

    task: str
    method: str
    ends: np.ndarray
    scores: np.ndarray
    at: int | None = None
    there: np.ndarray | None = None
    published: float | None = None
    published_std: float | None = None

    @property
    def score(self):
        """Mean over seeds."""
        return float(self.scores.mean())

    @property
    def std(self):
        """Population standard deviation over seeds, None for a single one."""
        return spread(self.scores)

    @property
    def ours(self):
        """Mean over seeds around the published step, and the spread."""
        if self.there is None:
            return None, None
        return float(self.there.mean()), spread(self.there)

    @property
    def difference(self):
        """(ours - published) / published spread."""
        if self.there is None or not self.published_std:
            return None
        return (self.ours[0] - self.published) / self.published_std

    @property
    def verdict(self):
        """'inside' `INSIDE` published spreads, 'above' or 'below'; None with too few
        seeds.
        """
        if self.difference is None or len(self.there) < VERDICT_SEEDS:
            return None
        if abs(self.difference) <= INSIDE:
            return 'inside'
        return 'above' if self.difference > 0 else 'below'


def spread(values):
    """Return the population standard deviation over seeds; None for a single one."""
    return float(values.std()) if len(values) > 1 else None


# Scores.


def evaluations_around(steps, step=None):
    """Return which evaluations of a run count at `step`: a slice of `steps` [P], which
    ascend.

    Five count: the last one up to `step`, two before it and two after it, or the last
    five if fewer than two come after it. Without a `step`, the last five count, or all
    if there are fewer. The result is None if the run has no evaluation at or after
    `step`, fewer than three up to it, or fewer than five in all.
    """
    count = len(steps)
    if step is None:
        return slice(max(count - EVALUATIONS, 0), count)
    before = np.searchsorted(steps, step, 'right')
    half = EVALUATIONS // 2
    if before <= half or count < EVALUATIONS or steps[-1] < step:
        return None
    start = min(before - 1 - half, count - EVALUATIONS)
    return slice(start, start + EVALUATIONS)


def score_at(run, step=None):
    """Return the mean of the evaluations of `run`, a `Points`, that count at
    `step`, and the last of their steps; (None, None) if none count.
    """
    which = evaluations_around(run.steps, step)
    if which is None:
        return None, None
    return float(run.values[which].mean()), int(run.steps[which][-1])


def scores_at(runs, step):
    """Return the scores [S] of all `runs` around `step`; None if a run has none."""
    values = [score_at(run, step)[0] for run in runs]
    return None if None in values else np.array(values)


def make_row(task, method, runs, published=None, step=None, notes=None):
    """Return the `Row` of the `runs` of a method on a task; None if no run has a score.

    Args:
      published: `comparison.Published`, or None for no comparison.
      step: score the runs around so many environment steps instead of at their ends.
      notes: list, which gets a line for everything that a reader has to know.
    """
    notes = [] if notes is None else notes
    found = [score_at(run, step) for run in runs]
    scored = [run for run, (score, _) in zip(runs, found) if score is not None]
    if len(scored) < len(runs):
        notes.append(
            f'{method} on {task}: {len(runs) - len(scored)} of {len(runs)} run(s) have '
            f'no {EVALUATIONS} evaluations around {step:.0f} steps and are left out'
        )
    if not scored:
        return None
    scores, ends = zip(*(pair for pair in found if pair[0] is not None))
    fewest = min(len(run.steps) for run in scored)
    if fewest < EVALUATIONS:
        notes.append(f'{method} on {task}: a score of {fewest} evaluation(s) only')
    if min(ends) < max(ends) and step is None:
        notes.append(
            f'{method} on {task}: runs end at different steps, '
            f'{min(ends)} to {max(ends)}'
        )
    row = Row(task, method, np.array(ends), np.array(scores))
    places = published.steps(task, scored[0].algorithm) if published else []
    for at in reversed([x for x in places if step in (None, x)]):
        there = scores_at(scored, at)
        if there is not None:
            values = published.at(task, scored[0].algorithm, at)
            return dataclasses.replace(
                row, at=at, there=there, published=values[0], published_std=values[1]
            )
    return row


def make_rows(groups, published=None, step=None, notes=None):
    """Return the rows of the table for `groups` {(task, method): runs}."""
    rows = [
        make_row(task, method, runs, published, step, notes)
        for (task, method), runs in groups.items()
    ]
    return [row for row in rows if row]


def count_verdicts(rows):
    """Return how many of `rows` lie inside, above and below the published scores, as a
    sentence; an empty one if there is no verdict.
    """
    verdicts = [row.verdict for row in rows if row.verdict]
    if not verdicts:
        return ''
    inside, above, below = map(verdicts.count, ('inside', 'above', 'below'))
    return (
        f'{inside} of {len(verdicts)} score(s) inside {INSIDE} published spreads, '
        f'{above} above, {below} below'
    )


# Curves.


def group(runs):
    """Return sorted `runs` as {(task, method): list}."""
    return {
        name: list(found)
        for name, found in itertools.groupby(runs, lambda run: (run.task, run.method))
    }


def smooth(values):
    """Return the running mean of `values` [P] over five: each with two before and two
    after it, fewer at the ends.
    """
    half = EVALUATIONS // 2
    return np.array(
        [values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))]
    )


def make_curve(runs, width=None):
    """Runs of one task and method as a Curve: in bins of `width` steps, or without one
    a single run smoothed, and several in bins of `bin_width`.
    """
    if width is None and len(runs) == 1:
        (run,) = runs
        return Curve(run.steps, smooth(run.values)[None], run.values)
    width = width or bin_width(runs)
    binned = [bin_means(run.steps, run.values, width) for run in runs]
    bins = np.unique(np.concatenate([bins for bins, _ in binned]))
    table = np.full((len(runs), len(bins)), np.nan)
    for row, (index, means) in zip(table, binned):
        row[np.searchsorted(bins, index)] = means
    return Curve(bins * width, table)


def bin_means(steps, values, width):
    """Means of one run's points in bins.

    Bin k holds the steps in [(k - 1/2) width, (k + 1/2) width): evaluations that are
    due at a multiple of the width fall into its middle, late or not.

    Returns k [K] ascending and the means [K] of `values`.
    """
    index = np.floor(steps / width + 0.5).astype(int)
    bins, inverse = np.unique(index, return_inverse=True)
    return bins, np.bincount(inverse, values) / np.bincount(inverse)


def bin_width(runs):
    """A round width [environment steps] for runs of one task and method.

    A fiftieth of the longest run, but not less than the usual distance between
    points; rounded up to 1, 2 or 5 times a power of ten.
    """
    longest = max(run.steps.max() for run in runs)
    gaps = np.concatenate([np.diff(np.unique(run.steps)) for run in runs])
    width = max(longest / 50, np.median(gaps) if len(gaps) else 0, 1)
    # Evaluations are a little late; that must not double the width.
    unit = 10 ** math.floor(math.log10(width))
    return int(next(x * unit for x in (1, 2, 5, 10) if x * unit >= 0.95 * width))


# Over tasks.


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
