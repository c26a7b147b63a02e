"""Reading runs, drawing them, and the command, on made-up runs."""

import csv
import gzip
import json
import pathlib

import numpy as np
import pytest

import plotting
from support.scores import comparison, drawing, protocol
from support.scores.runs import Points, find_runs
from support.storage import finished, metrics
from support.system.command_line import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {
    'curves.png',
    'curves.pdf',
    'final.png',
    'final.pdf',
    'scores.md',
    'scores.csv',
}


def write_run(folder, points, extra='', key='test/return', config=None):
    folder.mkdir(parents=True)
    lines = [json.dumps({'step': step, key: value}) + '\n' for step, value in points]
    (folder / 'metrics.jsonl').write_text(''.join(lines) + extra)
    if config:
        (folder / 'config.json').write_text(json.dumps({'config': config}))
    return folder


def make_run(points, task='dmc_walker_walk', method='dreamer', seed='0'):
    steps, values = np.array(points, float).T
    folder = pathlib.Path(seed)
    return Points(task, method, seed, folder, steps, values, method)


def row(scores, published=None, std=None, task='dmc_walker_walk', method='dreamer'):
    """A line whose runs have the same `scores` at their ends and where published."""
    scores = np.array(scores, float)
    there = None if published is None else scores
    ends = np.full(len(scores), 100)
    return protocol.Row(task, method, ends, scores, 100, there, published, std)


@pytest.fixture(scope='module')
def published():
    return comparison.Published()


def table(out):
    with (out / 'scores.csv').open() as file:
        return list(csv.DictReader(file))


def fails(capsys, *words):
    """Exit code 2 and one line, which is returned."""
    assert plotting.main(list(map(str, words))) == 2
    streams = capsys.readouterr()
    assert streams.out == '' and streams.err.count('\n') == 1
    assert streams.err.startswith('plotting: error: ')
    return streams.err


# Reading.


def test_damaged_lines_are_counted_and_others_kept(tmp_path):
    folder = write_run(
        tmp_path / 'run',
        [(10, 1)],
        extra=(
            'not json\n'
            '[1, 2]\n'
            '{"test/return": 5}\n'
            '{"step": "10", "test/return": 5}\n'
            '{"step": NaN, "test/return": 5}\n'
            '{"step": -1, "test/return": 5}\n'
            '{"step": 20, "test/return": null}\n'
            '{"step": 20, "test/return": NaN}\n'
            '{"step": 20, "test/return": -Infinity}\n'
            '{"step": 20, "train/return": 7}\n'
            '\n'
            '{"step": 30, "test/return": 3}\n'
            '{"step": 40, "test/ret'
        ),
    )
    with (folder / 'metrics.jsonl').open('ab') as file:
        file.write(b'\xff\x00\n')
    steps, values, counts = metrics.read_points(folder, 'test/return')
    assert steps.tolist() == [10, 30] and values.tolist() == [1, 3]
    assert counts == dict(damaged=7, nonfinite=3)


def test_runs_are_named_by_the_path_or_by_config_json(tmp_path):
    write_run(tmp_path / 'dmc_cup_catch' / 'dreamer_h5' / '3', [(1, 1)])
    write_run(tmp_path / 'mine', [(1, 1)], config=dict(task='dmc_hopper_hop', seed=7))
    write_run(
        tmp_path / 'other',
        [(1, 1)],
        config=dict(task='dmc_hopper_hop', seed=7, method='planet'),
    )
    write_run(
        tmp_path / 'third',
        [(1, 1)],
        config=dict(task='dmc_hopper_hop', seed=7, representation='contrastive'),
    )
    runs, notes = find_runs([tmp_path], 'test/return')
    assert [(run.task, run.method, run.seed) for run in runs] == [
        ('dmc_cup_catch', 'dreamer_h5', '3'),
        ('dmc_hopper_hop', 'dreamer', '7'),
        ('dmc_hopper_hop', 'dreamer_contrastive', '7'),
        ('dmc_hopper_hop', 'planet', '7'),
    ]
    assert notes == []
    runs, _ = find_runs([tmp_path / 'mine', tmp_path], 'test/return')
    assert len(runs) == 4 and runs[1].folder == tmp_path / 'mine'


def test_runs_below_a_run_are_found(tmp_path):
    """As in the default ./logs, which is a run and holds others."""
    root = tmp_path / 'logs'
    write_run(root, [(1, 1)], config=dict(task='dmc_cup_catch', seed=4))
    write_run(root / 'a', [(1, 1)], config=dict(task='dmc_cup_catch', seed=5))
    write_run(root / 'a' / 'b', [(1, 1)], config=dict(task='dmc_cup_catch', seed=6))
    write_run(root / 'dmc_hopper_hop' / 'planet' / '7', [(1, 1)])
    for name in 'episodes', 'checkpoints', 'videos', 'dumps':
        (root / 'a' / name).mkdir()
    runs, notes = find_runs([root], 'test/return')
    assert [(run.task, run.method, run.seed) for run in runs] == [
        ('dmc_cup_catch', 'dreamer', '4'),
        ('dmc_cup_catch', 'dreamer', '5'),
        ('dmc_cup_catch', 'dreamer', '6'),
        ('dmc_hopper_hop', 'planet', '7'),
    ]
    assert notes == []


def test_what_is_left_out_is_said(tmp_path):
    write_run(tmp_path / 'a' / 'dreamer' / '0', [(1, 1)], config=dict(task='b', seed=0))
    write_run(tmp_path / 'b' / 'dreamer' / '0', [(1, 1)])
    write_run(tmp_path / 'b' / 'dreamer' / '1', [(1, 1)], key='train/return')
    write_run(tmp_path / 'nameless', [(1, 1)])
    (tmp_path / 'b' / 'dreamer' / '2').mkdir()
    damaged = write_run(tmp_path / 'damaged', [(1, 1)])
    (damaged / 'config.json').write_text('{"config": 3}')
    runs, notes = find_runs([tmp_path], 'test/return')
    assert [(run.task, run.seed) for run in runs] == [('b', '0')]
    text = '\n'.join(notes)
    for words in (
        'a/dreamer/0 counts as b, by its config.json',
        'b/dreamer/0: same task, method and seed as',
        'b/dreamer/1: it has no test/return',
        'b/dreamer/2: it has no metrics.jsonl',
        'nameless: it is not at task/method/seed',
        'damaged: its config.json is damaged',
    ):
        assert words in text
    assert len(notes) == 6


def test_symbolic_links_to_runs_are_followed_each_folder_once(tmp_path):
    real = write_run(tmp_path / 'elsewhere' / 'x', [(1, 1)])
    tree = tmp_path / 'tree'
    write_run(tree / 'b' / 'dreamer' / '0', [(1, 1)])
    (tree / 'a' / 'dreamer').mkdir(parents=True)
    (tree / 'a' / 'dreamer' / '3').symlink_to(real)
    # Another way to what is here, one to a tree, and circles.
    (tree / 'a' / 'again').symlink_to(tree / 'b')
    (tree / 'a' / 'up').symlink_to(tree)
    (tree / 'b' / 'dreamer' / 'self').symlink_to('.')
    others = tmp_path / 'others'
    write_run(others / 'c' / 'dreamer' / '1', [(1, 1)])
    (tree / 'c').symlink_to(others / 'c')
    runs, notes = find_runs([tree, others], 'test/return')
    assert [(run.task, run.method, run.seed) for run in runs] == [
        ('a', 'dreamer', '3'),
        ('b', 'dreamer', '0'),
        ('c', 'dreamer', '1'),
    ]
    assert runs[1].folder == tree / 'b' / 'dreamer' / '0'
    assert notes == []


# Figures.


def test_a_method_keeps_its_colour():
    # As many as figure 4 of the paper has, and some.
    many = drawing.method_colors(f'{i}' for i in range(12))
    assert len({many[x] for x in (*map(str, range(12)), 'dreamer', 'planet')}) == 14
    colors = drawing.method_colors(['dreamer', 'mine', 'another'])
    assert colors['dreamer'] == drawing.COLORS['dreamer']
    own = [colors[x] for x in ('dreamer', 'planet', 'no_value', 'mine', 'another')]
    assert len(set(own)) == 5
    again = drawing.method_colors(['another', 'mine', 'mine'])
    assert again['mine'] == colors['mine']


def test_curves_show_runs_and_what_is_published(published):
    task = 'dmc_walker_walk'
    runs = [make_run([(1e5, 100), (2e5, 300)]), make_run([(1e5, 0), (2e5, 100)])]
    curve = protocol.make_curve(runs, 1e5)
    single = protocol.make_curve([make_run([(1e5, 70), (2e5, 90)])])
    curves = {(task, 'dreamer'): curve, (task, 'small planet'): single}
    colors = drawing.method_colors(['dreamer', 'small planet'])
    figure = drawing.draw_curves([task], curves, published, colors)
    found = {}
    for line in figure.axes[0].get_lines():
        if line.get_xdata()[-1] == 2e5:
            found[line.get_marker(), line.get_color()] = line.get_ydata().tolist()
    assert found == {
        ('.', colors['dreamer']): [50, 200],
        ('None', colors['planet']): [80, 80],
        ('.', colors['planet']): [70, 90],  # The evaluations, pale.
    }
    marks = {
        line.get_color(): line.get_ydata()[0]
        for line in figure.axes[0].get_lines()
        if line.get_marker() == '<'
    }
    assert marks == {colors['dreamer']: 961.67, colors['planet']: 944.7}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ['dreamer, ours', 'small planet, ours', drawing.RELEASED]
    below = figure.get_supxlabel().replace('\n', ' ')
    assert drawing.MARKS in below and comparison.WARNING in below
    assert figure.get_supylabel() == 'episode return'


def test_far_scores_do_not_squash_a_curve(published):
    task = 'atari_crazy_climber'
    curve = protocol.make_curve([make_run([(1e5, 100), (2e5, 300)])])
    curves = {(task, 'dreamer'): curve}
    colors = drawing.method_colors(['dreamer'])
    figure = drawing.draw_curves([task], curves, published, colors)
    assert figure.axes[0].get_ylim()[1] < 400
    assert drawing.MARKS not in figure.get_supxlabel()


def test_final_scores_have_no_empty_lines(published):
    rows = [
        row([100], task='gym_CartPole-v1'),
        row([300, 500], 440, 20, task='dmc_cheetah_run'),
    ]
    tasks = [x.task for x in rows] + ['dmc_cup_catch_without_scores']
    colors = drawing.method_colors(['dreamer'])
    figure = drawing.draw_finals(tasks, rows, published, colors)
    shown = {
        ax.get_title(): [text.get_text() for text in ax.get_yticklabels()]
        for ax in figure.axes
        if ax.get_title()
    }
    assert shown == {
        'CartPole-v1': ['dreamer, ours (100)'],
        'Cheetah Run': [
            'dreamer, ours (100)',
            'Dreamer, released (100)',
            'A3C, states (1e8)',
            'D4PG (1e8)',
            'PlaNet (5e6)',
            'Dreamer, paper (5e6)',
            'SLAC (3e6)',
        ],
    }
    alone = drawing.draw_finals(tasks[:1], rows[:1], published, colors)
    names = [text.get_text() for text in alone.legends[0].get_texts()]
    assert names == ['ours']


# The command.


def test_command(tmp_path, capsys, published, monkeypatch):
    """Two tasks, one without published results; a single seed of one method."""
    monkeypatch.setattr(protocol, 'RESAMPLES', 20)
    tree, out = tmp_path / 'tree', tmp_path / 'out'
    steps = range(5_000, 120_001, 5_000)
    for seed, score in enumerate((480, 500, 520)):
        write_run(
            tree / 'dmc_walker_walk' / 'dreamer' / str(seed),
            [(step, score) for step in steps],
            extra='{"step": 1',
        )
    write_run(tree / 'dmc_walker_walk' / 'planet' / '0', [(step, 30) for step in steps])
    write_run(tree / 'dummy_continuous' / 'dreamer' / '0', [(100, 0.5), (200, -0.25)])
    finished.state(tree / 'dmc_walker_walk' / 'dreamer' / '0', 105_000)
    assert plotting.main(['--logdir', str(tree), '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count('skipped 1 damaged or unfinished line(s)') == 3
    assert 'no published results for dummy_continuous' in printed
    assert 'dummy_continuous: a score of 2 evaluation(s) only' in printed
    assert 'read 5 run(s) of 2 task(s)' in printed
    first = tree / 'dmc_walker_walk' / 'dreamer' / '1'
    assert f'4 of 5 run(s) do not state that they have finished, first: {first}\n' in (
        printed
    )
    assert {path.name for path in out.iterdir()} == FILES
    for name in ('curves', 'final'):
        assert (out / f'{name}.png').read_bytes().startswith(b'\x89PNG')
        assert (out / f'{name}.pdf').read_bytes().startswith(b'%PDF')
    first, second, third = table(out)
    assert [first[x] for x in ('task', 'method', 'seeds', 'steps', 'published_at')] == [
        'dmc_walker_walk',
        'dreamer',
        '3',
        '120000',
        '105000',
    ]
    mean, std = published.at('dmc_walker_walk', 'dreamer', 105_000)
    spread = (800 / 3) ** 0.5
    for name, value in dict(
        score=500,
        score_std=spread,
        ours=500,
        ours_std=spread,
        published=mean,
        published_std=std,
        difference=(500 - mean) / std,
    ).items():
        assert float(first[name]) == pytest.approx(value, abs=1e-4)
    assert first['verdict'] == 'above'
    assert [second[x] for x in ('method', 'score', 'difference', 'verdict')] == [
        'planet',
        '30.0000',
        '',
        '',
    ]
    assert [third[x] for x in ('task', 'score', 'published')] == [
        'dummy_continuous',
        '0.1250',
        '',
    ]
    count = '0 of 1 score(s) inside 2 published spreads, 1 above, 0 below'
    assert count in printed
    text = (out / 'scores.md').read_text()
    assert count in text and comparison.WARNING in text
    assert (
        '| dmc_walker_walk | dreamer | 3 | 120,000 | 500.0 ± 16.3 | 105,000 |' in text
    )
    assert '| dummy_continuous | dreamer | 1 | 200 | 0.12 | - | - | - | - |' in text
    assert '| mean of all dmc tasks | 243.70 | 786.33 | 332.97 | 823.39 |' in text


def test_other_metrics_are_drawn_alone(tmp_path, capsys):
    folder = write_run(
        tmp_path / 'run',
        [(100 * i, i) for i in range(1, 8)],
        key='model_loss',
        config=dict(task='dmc_walker_walk', seed=0),
    )
    flags = [
        '--key',
        'model_loss',
        '--bin',
        '1e3',
        '--steps',
        '300',
        '--tasks',
        'dmc_walker_walk',
        'dmc_cup_catch',
    ]
    assert plotting.main(['--logdir', str(folder), *flags]) == 0
    assert 'no runs of dmc_cup_catch' in capsys.readouterr().out
    (result,) = table(folder / 'plots')
    assert (result['score'], result['steps'], result['published']) == (
        '3.0000',
        '500',
        '',
    )


# Files of curves.


def test_runs_are_written_and_read_as_the_authors_do(tmp_path, capsys):
    tree, file = tmp_path / 'tree', tmp_path / 'new' / 'ours.json'
    points = [(1_000 * i, 1.5 * i) for i in range(1, 8)]
    write_run(tree / 'dmc_cup_catch' / 'mine' / '3', points)
    write_run(tree / 'dmc_cup_catch' / 'mine' / 'x', points[:2])
    words = ['--logdir', str(tree), '--out', str(tmp_path / 'out')]
    assert plotting.main([*words, '--json', str(file)]) == 0
    assert f'wrote 2 run(s) to {file}' in capsys.readouterr().out
    first, second = json.loads(file.read_text())
    steps, values = map(list, zip(*points))
    assert first == dict(
        task='dmc_cup_catch', method='mine', seed=3, xs=steps, ys=values
    )
    assert (second['seed'], second['xs']) == ('x', steps[:2])
    notes = []
    runs = comparison.read_curves(file, notes)
    assert [(run.method, run.seed) for run in runs] == [
        ('mine (ours)', '3'),
        ('mine (ours)', 'x'),
    ]
    assert runs[0].steps.tolist() == steps and runs[0].values.tolist() == values
    assert notes == []


def test_curves_of_others_are_drawn_beside_the_runs(tmp_path, capsys):
    tree, file = tmp_path / 'tree', tmp_path / 'theirs.json.gz'
    write_run(tree / 'x_task' / 'mine' / '0', [(i, 1) for i in range(6)])
    steps = [0, 100, 200, 300, 400, 500]
    theirs = [
        dict(task='x_task', method='a', seed=seed, xs=steps, ys=[None, *[ys] * 5])
        for seed, ys in enumerate((10, 30))
    ]
    other = dict(task='y_task', method='a', seed=0, xs=[1], ys=[2])
    file.write_bytes(gzip.compress(json.dumps([*theirs, other]).encode()))
    out = tmp_path / 'out'
    words = ['--logdir', str(tree), '--out', str(out), '--compare', str(file)]
    assert plotting.main(words) == 0
    printed = capsys.readouterr().out
    assert f'skipped 2 value(s) in {file}' in printed
    assert f'not drawn of {file}: y_task' in printed
    mine, found = table(out)
    assert (mine['method'], mine['score']) == ('mine', '1.0000')
    assert [found[x] for x in ('method', 'seeds', 'score', 'score_std')] == [
        'a (theirs)',
        '2',
        '20.0000',
        '10.0000',
    ]


@pytest.mark.parametrize(
    'text, words',
    [
        ('{', 'not a list of objects'),
        ('{"task": "x"}', 'not a list of objects'),
        ('[{"task": "x", "method": "a", "seed": 0, "xs": [1]}]', "KeyError('ys')"),
        (
            '[{"task": "x", "method": "a", "seed": 0, "xs": [1], "ys": [1, 2]}]',
            '1 xs and 2 ys',
        ),
        (
            '[{"task": "x", "method": "a", "seed": 0, "xs": [null], "ys": [1]}]',
            'xs must be environment steps',
        ),
    ],
)
def test_a_bad_file_of_curves_is_one_line(tmp_path, capsys, text, words):
    write_run(tmp_path / 'tree' / 'x' / 'mine' / '0', [(1, 1)])
    file = tmp_path / 'theirs.json'
    file.write_text(text)
    line = fails(capsys, '--logdir', tmp_path / 'tree', '--compare', file)
    assert words in line and str(file) in line
    assert not (tmp_path / 'tree' / 'plots').exists()


def test_an_empty_tree_is_one_line(tmp_path, capsys):
    assert 'no test/return in any' in fails(capsys, '--logdir', tmp_path)
    (tmp_path / 'x' / 'dreamer' / '0').mkdir(parents=True)
    assert 'first: left out' in fails(capsys, '--logdir', tmp_path)
    assert not (tmp_path / 'plots').exists()


def test_bad_flags_are_one_line_and_write_nothing(tmp_path, capsys):
    write_run(tmp_path / 'tree' / 'x' / 'dreamer' / '0', [(1, 1)])
    before = sorted(tmp_path.rglob('*'))
    tree = ('--logdir', tmp_path / 'tree')
    assert 'is not a folder' in fails(capsys, '--logdir', tmp_path / 'absent')
    assert 'required' in fails(capsys)
    assert '--colour' in fails(capsys, *tree, '--colour', 'red')
    assert "'0' is not a number" in fails(capsys, *tree, '--bin', '0')
    assert "'nan' is not a number" in fails(capsys, *tree, '--steps', 'nan')
    file = tmp_path / 'tree' / 'x' / 'dreamer' / '0' / 'metrics.jsonl'
    assert 'is not a folder' in fails(capsys, *tree, '--out', file)
    assert 'no test/return' in fails(capsys, *tree, '--tasks', 'y')
    assert 'is a folder' in fails(capsys, *tree, '--json', tmp_path / 'tree')
    both = ('--figure', '7', '--compare', file)
    assert 'exclude each other' in fails(capsys, *tree, *both)
    assert sorted(tmp_path.rglob('*')) == before


def test_a_failed_write_leaves_nothing_half_written(tmp_path):
    (tmp_path / 'old').write_bytes(b'old')
    with pytest.raises(OSError):
        plotting.write_files(tmp_path, {'old': b'new', 'no/such/folder': b'x'})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        'old': b'old'
    }


# Published results.


def test_unreadable_tables_are_one_line(tmp_path):
    with pytest.raises(UserError, match='unreadable tables'):
        comparison.Published(tmp_path)


def test_tables_are_those_of_the_sources(published):
    """By what the paper states (A3C 243.70, D4PG 786, PlaNet 332.97, Dreamer 823) and
    by sums over the releases' own files.
    """
    for suite, count, means in (
        ('dmc', 20, [243.7, 786.33, 332.97, 823.39]),
        ('atari', 60, [20510.94, 27835.19, 32239.02, 39372.33]),
        ('dmlab', 2, [30.34]),
    ):
        assert sum(task.startswith(f'{suite}_') for task in published.finals) == count
        found = list(published.means(suite).values())
        np.testing.assert_allclose(found, means, atol=0.00501)
    steps, mean, std, seeds = np.stack(list(published.curves.values()), 1)
    assert steps.shape == (20, 50)
    assert (steps == np.arange(5_000, 5_000_000, 100_000)).all()
    assert set(seeds.flat) == {3, 4, 5}
    np.testing.assert_allclose(mean[:, -1].mean(), 806.13, atol=0.00501)
    np.testing.assert_allclose([mean.sum(), std.sum()], [727676.67, 61306.88])
    slac = {x: y['slac_3e6'] for x, y in published.finals.items() if 'slac_3e6' in y}
    assert slac == dict(
        dmc_cheetah_run=880, dmc_cup_catch=970, dmc_finger_spin=950, dmc_walker_walk=840
    )
