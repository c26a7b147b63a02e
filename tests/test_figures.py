"""The paper's figures: what a sweep runs for them, and what is drawn."""

import re

import numpy as np
import pytest
from conftest import ROOT
from test_plotting import make_run, row, write_run

import configs
import plotting
import sweep
from support.scores import comparison, drawing, figures, protocol
from support.system.command_line import UserError

ALL = list(figures.FIGURES.values())


@pytest.fixture(scope='module')
def published():
    return comparison.Published()


def plan(root, *flags):
    words = ['--root', str(root), *flags]
    end = words.index('--') if '--' in words else len(words)
    return sweep.make_jobs(sweep.parse(words[:end]), words[end + 1 :])


# The table.


def test_how_many_runs_a_figure_has():
    runs = {x.number: len(x.tasks) * len(x.methods) * x.seeds for x in ALL}
    assert runs == {
        4: 4 * 3 * 8 * 5,
        6: 20 * 2 * 5,
        7: 8 * 3 * 5,
        8: 8 * 3 * 5,
        9: 14 * 5,
        10: 20 * 3 * 5,
        11: 20 * 3 * 5,
        12: 20 * 3 * 2,
    }


def test_all_tasks_have_published_scores(published):
    assert len(set(figures.CONTROL_SUITE)) == 20
    assert set(figures.CONTROL_SUITE) == set(published.curves)
    scores = [published.finals[x]['dreamer_5e6'] for x in figures.CONTROL_SUITE]
    assert scores == sorted(scores, reverse=True)  # The order of figure 6.
    assert {task for x in ALL for task in x.tasks} <= set(published.finals)


def test_what_was_read_off_belongs_to_a_figure(published):
    found = {}
    for point in published.read_off:
        paper = figures.find(point.figure)
        assert point.task in (*paper.tasks, 'mean')
        name = (
            f'{point.method}-horizon-{point.x}' if point.figure == 4 else point.method
        )
        assert name in paper.methods
        if point.figure != 4:
            assert point.x <= paper.steps
        found.setdefault(point.figure, {})[point.task, name, point.x] = point.score
    sizes = {number: len(points) for number, points in found.items()}
    assert sizes == {4: 96, 6: 2, 7: 48, 8: 48, 9: 2, 10: 13}
    cheetah = 'dmc_cheetah_run'
    assert found[4][cheetah, 'no_value-horizon-25', 25] == 661
    assert found[4][cheetah, 'planet-horizon-40', 40] == 385
    assert found[7]['dmc_hopper_hop', 'no_value', 1_950_000] == 171
    assert found[7]['dmc_quadruped_walk', 'planet', 1_000_000] == 88
    assert found[8]['dmc_finger_spin', 'dreamer_contrastive', 1_950_000] == 756


def test_comparisons_has_the_table():
    text = (ROOT / 'docs' / 'comparisons.md').read_text()
    for paper in ALL:
        (line,) = re.findall(rf'^\| {paper.number} \| {paper.title} \| .+$', text, re.M)
        cells = line.strip('| ').split(' | ')
        if paper.tasks == figures.CONTROL_SUITE:
            assert cells[2] == 'all 20'
        else:
            names = [task.partition('_')[2] for task in paper.tasks]
            assert re.findall(r'`(\w+)`', cells[2]) == names
        split = [figures.split(name) for name in paper.methods]
        assert re.findall(r'`(\w+)`', cells[3]) == [
            *dict.fromkeys(x for x, *_ in split)
        ]
        values = [*dict.fromkeys(value for *_, value in split if value)]
        assert re.findall(r'\d+', cells[3]) == values
        runs = len(paper.tasks) * len(paper.methods) * paper.seeds
        assert cells[4:] == [str(paper.seeds), f'{paper.steps:,}', str(runs)]


@pytest.mark.parametrize(
    'page', ['README.md', 'docs/comparisons.md', 'docs/learning.md']
)
def test_pages_that_compare_with_the_released_curves_warn(page):
    text = (ROOT / page).read_text()
    for number in 54, 55:
        assert f'github.com/danijar/dreamer/issues/{number}' in text


# Names of methods.


@pytest.mark.parametrize(
    'name, flags',
    [
        ('dreamer', 'dreamer reconstruction'),
        ('no_value_reward', 'no_value reward'),
        ('dreamer-horizon-10', 'dreamer reconstruction --horizon 10'),
        ('planet-horizon-10', 'planet reconstruction --plan_horizon 10'),
        ('dreamer_contrastive-repeat-4', 'dreamer contrastive --action_repeat 4'),
        ('dreamer-model_lr-1e-4', 'dreamer reconstruction --model_lr 1e-4'),
    ],
)
def test_a_name_stands_for_flags(name, flags):
    method, representation, *rest = flags.split()
    head = ['--method', method, '--representation', representation]
    assert figures.flags_of(name) == head + rest


@pytest.mark.parametrize(
    'name', ['dream', 'planet_x', 'dreamer-', 'dreamer-horizon', 'dreamer-a-b/c']
)
def test_a_bad_name_is_refused(name):
    with pytest.raises(UserError, match='dreamer-horizon-10'):
        figures.flags_of(name)


# What is run.


@pytest.mark.parametrize('paper', ALL, ids=lambda paper: paper.number)
def test_a_figure_is_a_sweep(tmp_path, paper):
    task = paper.tasks[-1]
    jobs = plan(tmp_path, '--figure', str(paper.number), '--tasks', task)
    assert [job.name for job in jobs] == [
        f'{task}/{method}/{seed}'
        for seed in range(paper.seeds)
        for method in paper.methods
    ]
    small = configs.parse(['--task', task, '--configs', 'paper'])
    for job in jobs:
        assert job.config.steps == paper.steps
        assert job.config.num_units == small.num_units
        base, flag, value = figures.split(job.name.split('/')[1])
        if flag == 'horizon':
            planner = base == 'planet'
            assert job.config.plan_horizon == (int(value) if planner else 12)
            assert job.config.horizon == (small.horizon if planner else int(value))
        if flag == 'repeat':
            assert job.config.action_repeat == int(value)
        assert job.config.method == base.replace('_contrastive', '').replace(
            '_reward', ''
        )


def test_further_flags_change_a_figure(tmp_path):
    flags = '--seeds', '1', '--', '--configs', 'small', '--steps', '1e5'
    jobs = plan(tmp_path, '--figure', '7', *flags)
    assert len(jobs) == 8 * 3
    small = configs.parse(['--configs', 'small'])
    for job in jobs:
        assert job.config.steps == 100_000
        assert job.config.num_units == small.num_units


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--figure', '3'], ['figure 3', 'diagram', '4, 6, 7, 8, 9, 10, 11, 12']),
        (['--figure', '5'], ['--dream strip.png']),
        (['--figure', '13'], ['figure 13', 'does not exist']),
        (['--figure', 'x'], ["'x'", 'whole number']),
        (['--figure', '0'], ["'0'", 'at least 1']),
        ([], ['--tasks', '--figure']),
        (['--figure', '4', '--', '--horizon=3'], ['--horizon', 'itself']),
        (['--figure', '7', '--methods', 'dreamer-seed-3'], ['--seed', 'itself']),
        (['--figure', '7', '--methods', 'dreamer-horizn-3'], ['--horizn', '--horizon']),
        (['--figure', '7', '--methods', 'dreamer-horizon-x'], ["'x'", 'whole']),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, flags, words):
    root = tmp_path / 'root'
    assert sweep.main(['--root', str(root), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('sweep: error: ')
    for word in words:
        assert word in line
    assert not root.exists()


# What is drawn.


def draw(tmp_path, number, *flags):
    """The table of a figure of the runs below `tmp_path`, as lines of cells."""
    words = ['--logdir', str(tmp_path), '--figure', str(number), *flags]
    assert plotting.main(words) == 0
    out = tmp_path / 'plots'
    for kind in 'png', 'pdf', 'csv':
        assert (out / f'figure_{number}.{kind}').stat().st_size
    text = (out / f'figure_{number}.md').read_text()
    return [
        line.strip('| ').split(' | ') for line in text.splitlines() if line[:1] == '|'
    ]


def test_curves_of_a_figure(tmp_path, capsys):
    task = 'dmc_hopper_hop'
    for method, score in dict(dreamer=300, no_value=100, mine=5).items():
        points = [(1e4 * i, score * i / 100) for i in range(201)]
        write_run(tmp_path / task / method / '0', points)
    lines = draw(tmp_path, 7)
    # The mean of the last five of 201 evaluations is the third last.
    assert [line[:5] for line in lines if line[0] == task and len(line) == 10] == [
        [task, 'dreamer', '1', '2,000,000', '594.0'],
        [task, 'no_value', '1', '2,000,000', '198.0'],
    ]
    printed = capsys.readouterr().out
    assert 'not in the figure: mine' in printed
    assert 'no run has half' not in printed
    own = {tuple(x[:3]): x[3:] for x in lines if x[-1].startswith('read off')}
    assert len(own) == 48
    assert own[task, 'no_value', '1,000,000'] == ['100.0', '129.0 ± 10.0', 'read off']
    assert own[task, 'no_value', '1,950,000'] == ['195.0', '171.0 ± 10.0', 'read off']
    assert own[task, 'planet', '1,000,000'][0] == '-'


def test_panels_are_the_papers_in_its_order(published):
    paper = figures.find(8)
    colors = drawing.method_colors(paper.methods)
    figure = drawing.draw_curves(
        paper.tasks, {}, published, colors, xmax=paper.steps, paper=paper
    )
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [drawing.task_title(task) for task in paper.tasks]
    assert figure.axes[0].get_xlim() == (0, 2_040_000)
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert names == {
        drawing.RELEASED,
        'D4PG (1e8)',
        'A3C, states (1e8)',
        'dreamer, read off',
        'dreamer_contrastive, read off',
        'dreamer_reward, read off',
    }
    shown = figure.get_supxlabel().replace('\n', ' ')
    assert comparison.WARNING in shown


def test_a_figure_of_others_has_no_warning(published):
    paper = figures.find(12)
    curve = protocol.make_curve([make_run([(1e5, 100), (2e5, 300)])], 1e5)
    colors = drawing.method_colors(paper.methods)
    curves = {('dmc_cup_catch', 'dreamer-repeat-4'): curve}
    figure = drawing.draw_curves(
        ['dmc_cup_catch'], curves, published, colors, xmax=2e6, paper=paper
    )
    (line,) = figure.axes[0].get_lines()
    assert line.get_ydata().tolist() == [100, 300]
    assert figure.get_supxlabel() == 'environment steps'


def test_short_runs_have_an_axis_of_their_own(tmp_path, capsys):
    folder = tmp_path / 'dmc_cup_catch' / 'dreamer-repeat-4' / '0'
    write_run(folder, [(step, step / 1000) for step in range(0, 100_001, 10_000)])
    (first, *_) = [x for x in draw(tmp_path, 12) if x[0] == 'dmc_cup_catch']
    assert first[1:5] == ['dreamer-repeat-4', '1', '100,000', '80.0']
    assert 'no run has half of the 2,000,000 steps' in capsys.readouterr().out


def test_final_scores_over_horizons(tmp_path, published):
    task = 'dmc_cheetah_run'
    for horizon, score in {3: 30, 20: 200}.items():
        folder = tmp_path / task / f'planet-horizon-{horizon}'
        write_run(folder / '0', [(1000, score - 1)])
        write_run(folder / '1', [(1000, score + 1)])
    lines = draw(tmp_path, 4)
    assert [task, 'planet', '20', '200.0', '575.0 ± 10.0', 'read off'] in lines
    assert [task, 'planet', '40', '-', '385.0 ± 10.0', 'read off'] in lines
    paper = figures.find(4)
    rows = [
        row([score - 1, score + 1], task=task, method=f'planet-horizon-{horizon}')
        for horizon, score in {20: 200, 3: 30}.items()
    ]
    colors = drawing.method_colors(paper.methods)
    figure = drawing.draw_settings(paper, paper.tasks, rows, published, colors)
    (own,) = [
        line for line in figure.axes[1].get_lines() if 200 in np.array(line.get_ydata())
    ]
    assert own.get_xydata().tolist() == [[3, 30], [20, 200]]
    assert own.get_color() == colors['planet']
    assert figure.get_supxlabel() == 'horizon'


def test_bars_and_their_mean(published):
    paper = figures.find(6)
    colors = drawing.method_colors(paper.methods)
    rows = [row([500, 700], task=task) for task in paper.tasks]

    def bars(rows):
        figure = drawing.draw_bars(paper, paper.tasks, rows, published, colors)
        (ax,) = figure.axes
        heights = [
            [bar.get_height() for bar in x.patches]
            for x in ax.containers
            if hasattr(x, 'patches')
        ]
        return heights, [text.get_text() for text in ax.texts]

    heights, texts = bars(rows)
    assert [len(x) for x in heights] == [21] * 5
    assert heights[0] == [600] * 21
    assert heights[1][0] == 979.56 and heights[1][-1] == pytest.approx(823.39, abs=0.01)
    assert heights[2][-1] == pytest.approx(332.97, abs=0.01)
    assert texts == ['n/a'] * 4  # The quadrupeds of D4PG and A3C.
    heights, texts = bars(rows[:-1])
    assert heights[0] == [600] * 19 + [0, 0] and texts == ['n/a'] * 4


def test_a_figure_without_runs_shows_what_is_published(tmp_path, capsys):
    lines = draw(tmp_path, 6)
    assert [
        'mean',
        'dreamer',
        '2,000,000',
        '-',
        '802.0',
        'printed, first version',
    ] in lines
    printed = capsys.readouterr().out
    assert 'no runs of dmc_cartpole_balance, ' in printed
    assert 'unknown: The paper does not say' in printed


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--figure', '3'], ['figure 3', 'diagram']),
        (['--figure', '7', '--key', 'model_loss'], ['--figure', 'model_loss']),
    ],
)
def test_bad_figures_are_one_line(tmp_path, capsys, flags, words):
    assert plotting.main(['--logdir', str(tmp_path), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('plotting: error: ')
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())
