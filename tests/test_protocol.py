"""The protocol on made-up runs whose scores are known by hand."""

import numpy as np
import pytest
from test_plotting import make_run, row

from support.scores import comparison, protocol


@pytest.fixture(scope='module')
def published():
    return comparison.Published()


# Averaging.


def test_bins_are_centred_on_multiples_of_the_width():
    steps = np.array([0, 4, 5, 14.9, 15, 30, 31])
    values = np.array([1, 3, 10, 20, 7, 2, 4])
    bins, means = protocol.bin_means(steps, values, 10)
    assert bins.tolist() == [0, 1, 2, 3]
    assert means.tolist() == [2, 15, 7, 3]


def test_a_run_that_evaluates_often_does_not_outweigh_another():
    often = make_run([(100, 0)] * 9 + [(200, 0)])
    seldom = make_run([(101, 10), (199, 4)], seed='1')
    curve = protocol.make_curve([often, seldom], 100)
    assert curve.steps.tolist() == [100, 200]
    assert curve.mean.tolist() == [5, 2]
    assert curve.std.tolist() == [5, 2]  # Of the population, not of a sample.
    assert curve.seeds.tolist() == [2, 2]


def test_bins_that_one_run_lacks_are_means_over_the_others():
    curve = protocol.make_curve(
        [make_run([(10, 1), (30, 3)]), make_run([(10, 3), (20, 8)], seed='1')], 10
    )
    np.testing.assert_equal(curve.table, [[1, np.nan, 3], [3, 8, np.nan]])
    assert curve.mean.tolist() == [2, 8, 3]
    assert curve.seeds.tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    'steps, width',
    [
        ([0, 10_000, 20_000], 10_000),  # The distance between points.
        (range(0, 100_001, 10), 2_000),  # A fiftieth of the run.
        ([5_000, 10_010, 15_020], 5_000),  # A little late.
        ([3_000], 100),
        ([0], 1),
    ],
)
def test_width_of_bins(steps, width):
    assert protocol.bin_width([make_run([(step, 0) for step in steps])]) == width


# Comparing.


def test_difference_is_in_units_of_the_published_spread():
    assert row([480, 520], 440, 20).difference == 3
    assert row([420], 440, 20).difference == -1
    assert row([420], 440, 0).difference is None
    assert row([420], 440).difference is None
    assert row([420]).difference is None
    assert row([480, 520]).std == 20 and row([480]).std is None


@pytest.mark.parametrize(
    'score, verdict',
    [(480, 'inside'), (400, 'inside'), (480.1, 'above'), (399.9, 'below')],
)
def test_verdicts_are_by_two_spreads_of_three_seeds(score, verdict):
    assert row([score] * 3, 440, 20).verdict == verdict
    assert row([score] * 3).verdict is None
    few = row([score] * 2, 440, 20)
    assert few.verdict is None
    assert few.difference == pytest.approx((score - 440) / 20)


def test_verdicts_are_counted_over_all_tasks():
    scores = 440, 450, 500, 0
    rows = [row([x] * 3, 440, 20) for x in scores] + [row([440], 440, 20)]
    assert protocol.count_verdicts(rows) == (
        '2 of 4 score(s) inside 2 published spreads, 1 above, 1 below'
    )
    assert protocol.count_verdicts([row([440], 440, 20)]) == ''


def test_published_values_are_where_they_were_published(published):
    task = 'dmc_walker_walk'
    steps, mean, std, _ = published.curves[task]
    assert published.steps(task, 'dreamer') == list(range(5_000, 5_000_000, 100_000))
    assert published.at(task, 'dreamer', 105_000) == (mean[1], std[1])
    assert published.at(task, 'dreamer', 4_905_000) == (mean[-1], std[-1])
    for step in 155_000, 100_000, 5_000_000, 1_000:
        assert published.at(task, 'dreamer', step) == (None, None)
    assert published.steps(task, 'planet') == [5_000_000]
    assert published.at(task, 'planet', 5_000_000) == (944.7, None)
    assert published.at(task, 'planet', 100_000) == (None, None)
    for name in (task, 'no_value'), ('dummy_continuous', 'dreamer'), ('x', 'planet'):
        assert published.steps(*name) == []
        assert published.at(*name, 105_000) == (None, None)


# The protocol.


@pytest.mark.parametrize(
    'step, found',
    [
        (None, [80, 90, 100, 110, 120]),
        (70, [50, 60, 70, 80, 90]),  # Two before it, it, and two after.
        (75, [50, 60, 70, 80, 90]),  # Around the last one before it.
        (100, [80, 90, 100, 110, 120]),
        (115, [80, 90, 100, 110, 120]),  # The run ends: its last five.
        (120, [80, 90, 100, 110, 120]),
        (30, [10, 20, 30, 40, 50]),
        (121, None),  # Not reached.
        (29, None),  # Two before it only.
    ],
)
def test_which_evaluations_count(step, found):
    steps = np.arange(10, 121, 10)
    which = protocol.evaluations_around(steps, step)
    assert (None if which is None else steps[which].tolist()) == found
    assert protocol.evaluations_around(steps[:4], 30) is None
    assert protocol.evaluations_around(steps[:4]) == slice(0, 4)


def test_a_score_is_the_mean_of_five_evaluations_and_then_over_seeds():
    first = make_run([(1, 900), (2, 10), (3, 20), (4, 30), (5, 40), (6, 50)])
    second = make_run([(1, 0), (2, 0), (3, 70), (4, 80), (5, 90), (6, 60)], seed='1')
    result = protocol.make_row('x', 'dreamer', [first, second])
    assert result.scores.tolist() == [30, 60]
    assert (result.score, result.std) == (45, 15)
    assert result.ends.tolist() == [6, 6]
    assert (result.at, result.ours, result.difference) == (None, (None, None), None)


def test_a_score_says_what_it_lacks():
    notes = []
    runs = [
        make_run([(1, 2), (2, 4)]),
        make_run([(step, 7) for step in range(1, 9)], seed='1'),
    ]
    result = protocol.make_row('x', 'dreamer', runs, notes=notes)
    assert result.scores.tolist() == [3, 7] and result.ends.tolist() == [2, 8]
    assert notes == [
        'dreamer on x: a score of 2 evaluation(s) only',
        'dreamer on x: runs end at different steps, 2 to 8',
    ]
    notes.clear()
    result = protocol.make_row('x', 'dreamer', runs, step=5, notes=notes)
    assert result.scores.tolist() == [7] and result.ends.tolist() == [7]
    assert '1 of 2 run(s) have no 5 evaluations around 5 steps' in notes[0]
    assert protocol.make_row('x', 'dreamer', runs[:1], step=5, notes=notes) is None


def rising(end, score, task='dmc_walker_walk', seed='0', method='dreamer'):
    """A run that is evaluated every 5,000 steps, `score` more each time."""
    points = [(step, score * step / 5_000) for step in range(5_000, end + 1, 5_000)]
    return make_run(points, task, method, seed)


def test_runs_are_compared_around_the_last_published_step(published):
    task = 'dmc_walker_walk'
    mean, std = published.at(task, 'dreamer', 105_000)
    runs = [rising(130_000, 10), rising(120_000, 20, seed='1')]
    result = protocol.make_row(task, 'dreamer', runs, published)
    # 95,000 to 115,000 steps are the 19th to 23rd evaluation, the ends the 22nd to 26th
    # and the 20th to 24th.
    assert result.at == 105_000
    assert result.there.tolist() == [210, 420] and result.ours == (315, 105)
    assert result.scores.tolist() == [240, 440]
    assert (result.published, result.published_std) == (mean, std)
    assert result.difference == pytest.approx((315 - mean) / std)
    # What does not reach the step holds the comparison back: there is none at 5,000.
    runs.append(rising(90_000, 10, seed='2'))
    assert protocol.make_row(task, 'dreamer', runs, published).at is None
    # At a step where nothing was published there is no comparison.
    around = protocol.make_row(task, 'dreamer', runs[:2], published, 100_000)
    assert around.scores.tolist() == [200, 400] and around.at is None
    exact = protocol.make_row(task, 'dreamer', runs[:2], published, 105_000)
    assert exact.at == 105_000 and exact.scores.tolist() == [210, 420]


def test_a_score_does_not_depend_on_what_lies_beside_it(published):
    run = rising(120_000, 10)
    longer = rising(900_000, 1, method='planet')
    (alone,) = protocol.make_rows(protocol.group([run]), published)
    groups = protocol.group([run, longer])
    beside, _ = protocol.make_rows(groups, published)
    assert (alone.score, alone.ends, alone.at) == (beside.score, beside.ends, beside.at)
    curve = protocol.make_curve(groups[run.task, 'dreamer'])
    assert curve.steps.tolist() == run.steps.tolist()


def test_the_curve_of_a_single_run_is_a_running_mean_of_five():
    values = [10, 20, 60, 30, 0, 40, 110]
    run = make_run(list(zip(range(7), values)))
    curve = protocol.make_curve([run])
    assert curve.mean.tolist() == [30, 30, 24, 30, 48, 45, 50]
    assert curve.raw.tolist() == values
    assert curve.std.tolist() == [0] * 7
    # With bins it has those, and several runs are never smoothed.
    assert protocol.make_curve([run], 10).raw is None
    pair = protocol.make_curve([run, make_run([(3, 50), (6, 90)], seed='1')])
    assert pair.raw is None
    assert pair.table[1][[3, 6]].tolist() == [50, 90]


def test_means_of_published_scores_are_the_papers(published):
    assert len(published.curves) == 20
    means = published.means()
    expected = dict(
        a3c_1e8_state=243.70,
        d4pg_1e8_pixels=786.32,
        planet_5e6=332.97,
        dreamer_5e6=823.39,
    )
    assert means.keys() == expected.keys()
    for column, value in expected.items():
        assert means[column] == pytest.approx(value, abs=0.01)
    ends = [curve[1, -1] for curve in published.curves.values()]
    assert np.mean(ends) == pytest.approx(806, abs=0.5)
    assert sum(task.startswith('atari_') for task in published.finals) == 60


def test_aggregates(monkeypatch):
    monkeypatch.setattr(protocol, 'RESAMPLES', 200)
    # The quarter at each end is cut off: the middle of 0, 100, 200, 900 is 150.
    rows = [
        row([0, 200]),
        row([100, 900], task='dmc_cup_catch'),
        row([5, 6], task='atari_pong'),
        row([100, 300, 999], method='planet'),
        row([500], method='single'),
    ]
    state = np.random.get_state()[1].copy()
    dreamer, planet = protocol.aggregate(rows)
    assert (np.random.get_state()[1] == state).all()
    assert (dreamer['method'], dreamer['tasks'], dreamer['seeds']) == ('dreamer', 2, 2)
    assert dreamer['iqm'][0] == pytest.approx(0.15)
    # Stratified: means are those of one of {0, 100, 200} and one of {100, 500, 900}.
    assert dreamer['mean'] == pytest.approx((0.3, 0.05, 0.55))
    assert planet['mean'][0] == pytest.approx(1.399 / 3)
    assert protocol.aggregate(rows)[0] == dreamer


def test_aggregate_of_single_runs_has_no_interval():
    (result,) = protocol.aggregate([row([100]), row([300], task='dmc_cup_catch')])
    assert result['mean'] == (pytest.approx(0.2), None, None)
