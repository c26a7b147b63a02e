"""What README and docs/ claim of the runs in results/ is what their files say."""

import json
import os
import pathlib
import re
import subprocess

import numpy as np
import pytest
from conftest import ROOT

import configs
from support.run import advice, config_file
from support.scores import comparison, protocol, tables
from support.scores.runs import find_runs
from support.storage import metrics

RESULTS = ROOT / 'results'
# Of Gymnasium's tasks, which do not tell by their names.
DISCRETE = 'gym_CartPole-v1', 'gym_LunarLander-v3'
FOLDERS = 'control', 'states', 'discrete', 'methods', 'ablation', 'paper'


@pytest.fixture(scope='module')
def published():
    return comparison.Published()


@pytest.fixture(scope='module')
def groups():
    """Runs by (folder, task, label)."""
    found = {}
    for folder in FOLDERS:
        runs, notes = find_runs([RESULTS / folder], 'test/return')
        assert not notes
        for (task, label), members in protocol.group(runs).items():
            found[folder, task, label] = members
    return found


def page(name):
    return (ROOT / name).read_text()


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines) + '\n'


def rows_of(text, heading):
    """Cells of the table below a heading, without its head."""
    part = re.split(r'^##+ ', text.split(f' {heading}\n')[1], flags=re.M)[0]
    lines = [x.strip('| ').split(' | ') for x in part.splitlines() if x[:1] == '|']
    return lines[2:]


def short(task):
    return task.removeprefix('dmc_').removeprefix('gym_').removeprefix('atari_')


def whole(value, std=None):
    return f'{value:,.0f}' if std is None else f'{value:,.0f} ± {std:,.0f}'


# results/


def commands(folder, tmp_path):
    """Words of dreamer.py that a `commands.sh` starts, by a Python that prints them."""
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\nfor x; do printf "%s\\037" "$x"; done\necho\n')
    python.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    done = subprocess.run(
        [str(RESULTS / folder / 'commands.sh')],
        env={**os.environ, 'PATH': path},
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        script, *words = line.split('\037')[:-1]
        assert script == 'dreamer.py'
        yield words


@pytest.mark.parametrize('folder', FOLDERS)
def test_commands_make_the_runs_again(folder, tmp_path):
    """By the settings of today, but for flags that cannot matter."""
    made = set()
    for words in commands(folder, tmp_path):
        logdir = words[words.index('--logdir') + 1]
        run = RESULTS / pathlib.PurePath(logdir).relative_to('logs')
        made.add(run)
        parsed = configs.parse(words)
        config = config_file.settle(words, parsed, parsed.task in DISCRETE)
        recorded = json.loads((run / 'config.json').read_text())['config']
        assert recorded['logdir'] == logdir
        idle = {*advice.IDLE[config.method], *configs.CHANGEABLE} - {'precision'}
        for name, value in recorded.items():
            if name not in idle and value is not None:
                assert getattr(config, name) == value, name
        steps = list(metrics.read(run))[-1]['step']
        assert 0 <= config.steps - steps < 1_000 or steps - config.steps < 10
    assert made == {x.parent for x in (RESULTS / folder).rglob('metrics.jsonl')}


def test_the_tables_of_runs_are_whole(groups):
    found = {}
    for folder in FOLDERS:
        for name, _, seeds, steps, minutes, _ in rows_of(
            page('results/README.md'), f'`{folder}/`'
        ):
            task, label = name.strip('`').split('/')
            found[folder, task, label] = seeds.split(', '), steps.split(', ')
            assert len(minutes.split(', ')) == len(seeds.split(', '))
    for name, runs in groups.items():
        seeds, steps = found.pop(name)
        assert seeds == [run.seed for run in runs]
        for run, step in zip(runs, steps if len(steps) > 1 else steps * len(runs)):
            *_, last = metrics.read(run.folder)
            assert abs(last['step'] - int(step.replace(',', ''))) < 500
    assert not found


def core_minutes():
    """Minutes of one core by (folder, task, label), as results/README.md has them."""
    result = {}
    for folder in FOLDERS:
        for name, _, _, _, minutes, _ in rows_of(
            page('results/README.md'), f'`{folder}/`'
        ):
            task, label = name.strip('`').split('/')
            result[folder, task, label] = sum(map(float, minutes.split(', ')))
    return result


# pretrained/


def test_trained_agents_scored_what_their_table_says():
    rows = rows_of(page('pretrained/README.md'), 'Trained agents')
    folders = {x.name for x in (ROOT / 'pretrained').iterdir() if x.is_dir()}
    assert {name.strip('`') for name, *_ in rows} == folders
    for name, run, steps, score in rows:
        folder = ROOT / 'pretrained' / name.strip('`')
        origin = json.loads((folder / 'origin.json').read_text())
        assert score == whole(origin['score']['mean'], origin['score']['std'])
        assert steps == f'{origin["step"]:,}'
        *_, last = metrics.read(ROOT / run.strip('`'))
        assert last['step'] == origin['step']
        trained = config_file.read(folder)
        recorded = config_file.read(ROOT / run.strip('`'))
        for key in 'task', 'seed', 'observation', 'num_units':
            assert getattr(trained, key) == getattr(recorded, key)
        size = sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())
        assert size < 5e6


# README.


# Footnotes of labels other than `small`.
NOTES = {'small-bfloat16': ' (1)'}
MARKS = {'inside': '✓', 'above': '✓', 'below': '✗', None: '-'}


def results_table(groups, published):
    minutes, lines = core_minutes(), []
    shown = [name for name in groups if name[0] in ('control', 'discrete')]
    for name in sorted(shown, key=lambda x: (x[0] == 'discrete', x[1])):
        _, task, label = name
        row = protocol.make_row(task, label, groups[name], published)
        value = (row.score, row.std) if row.at is None else row.ours
        steps = tables.range_of(row.ends) if row.at is None else f'{row.at:,}'
        final = published.finals.get(task, {}).get('dreamer_5e6')
        title = f'`{short(task)}`{NOTES.get(label, "")}'
        lines.append(
            [
                title,
                steps,
                len(row.scores),
                whole(*value),
                '-' if row.at is None else whole(row.published, row.published_std),
                '-' if row.difference is None else f'{row.difference:+.1f}',
                '-' if final is None else whole(final),
                f'{minutes[name] / 60:.1f}',
                MARKS[row.verdict],
            ]
        )
    return table(
        [
            *('task', 'steps', 'seeds', 'ours', 'released', 'difference'),
            *('paper, 5e6', 'core-hours', 'verdict'),
        ],
        lines,
    )


def test_readme_has_the_results(groups, published):
    lines = results_table(groups, published)
    assert lines in page('README.md')
    differences = re.findall(r'\| ([+-]\d+\.\d) \|', lines)
    assert len(differences) == 20 and sum(x[0] == '+' for x in differences) == 13
    assert "On 13 of the paper's 20 tasks, small networks reach" in page('README.md')


# docs/.


def test_learning_has_the_last_evaluations(groups):
    text = page('docs/learning.md')
    by_task = {}
    for (folder, task, _), runs in groups.items():
        if folder in ('control', 'discrete'):
            by_task.setdefault(task, []).extend(runs)
    for task, runs in by_task.items():
        lines = rows_of(text, short(task))
        assert len(lines) == len(runs)
        for run, cells in zip(runs, lines):
            which = protocol.evaluations_around(run.steps)
            values = run.values[which]
            assert cells[:4] == [
                run.seed,
                f'{int(run.steps[-1]):,}',
                ', '.join(f'{x:,.0f}' for x in values),
                whole(values.mean()),
            ]


def states_table(groups):
    """Last five evaluations from states, beside those from images at these steps."""
    lines = []
    for folder, task, _ in groups:
        if folder != 'states':
            continue
        (run,) = groups[folder, task, 'small-state']
        last = int(run.steps[-1])
        images = groups.get(('control', task, 'small'))
        there = protocol.scores_at(images, last) if images else None
        values = run.values[-5:]
        lines.append(
            [
                f'`{short(task)}`',
                run.seed,
                f'{last:,}',
                ', '.join(f'{x:,.0f}' for x in values),
                whole(values.mean()),
                '-' if there is None else whole(there.mean(), protocol.spread(there)),
            ]
        )
    return lines


def test_learning_has_the_runs_from_states(groups):
    rows = rows_of(page('docs/learning.md'), 'From states')
    assert [row[:6] for row in rows] == states_table(groups)


def ablation_table(groups):
    """The bonus and the first preset, at the last steps that all runs of a task have
    been evaluated around. A run of `small` in bfloat16 counts where no other has ended.
    """
    labels, lines = ('small', 'small-no-entropy', 'small-v0'), []
    tasks = sorted({task for folder, task, _ in groups if folder == 'ablation'})
    for task in tasks:
        step = 45_000 if task == 'dmc_cartpole_swingup' else 105_000
        cells = []
        for label in labels:
            places = {
                ('control', task, label): '',
                ('ablation', task, label): '',
                ('control', task, f'{label}-bfloat16'): ' (bfloat16)',
            }
            place = next(filter(groups.get, places), None)
            there = protocol.scores_at(groups[place], step) if place else None
            cells.append(
                '-'
                if there is None
                else whole(there.mean(), protocol.spread(there)) + places[place]
            )
        lines.append([f'`{short(task)}`', f'{step:,}', *cells])
    return table(['task', 'steps', *(f'`{label}`' for label in labels)], lines)


def test_learning_has_the_ablation(groups):
    assert ablation_table(groups) in page('docs/learning.md')


def metric(run, name):
    """Steps and values of a metric in a folder of results/."""
    steps, values, _ = metrics.read_points(RESULTS / run, name)
    return steps, values


def training_returns(task, seed=0):
    """Return the returns of a bfloat16 run's training episodes, prefill included."""
    return metric(f'control/dmc_{task}/small-bfloat16/{seed}', 'train/return')[1]


def test_learning_describes_actors_as_the_files_do():
    for seed in '012':
        run = f'control/dmc_cartpole_swingup/small/{seed}'
        assert metric(run, 'action_ent')[1].min() >= -1.505
        assert metric(run, 'actor_grad_norm')[1].min() >= 0.27
    for seed, early, rewarded, first in (0, 34, 5, 52), (1, 52, 3, 79):
        run = f'control/dmc_pendulum_swingup/small-bfloat16/{seed}'
        assert metric(run, 'action_ent')[1].min() >= -1.51
        assert metric(run, 'actor_grad_norm')[1].min() >= 0.017
        returns = training_returns('pendulum_swingup', seed)
        assert (returns[:early] > 0).sum() == rewarded
        assert list(returns > 300).index(True) == first - 1
    returns = training_returns('cartpole_swingup_sparse')
    assert not returns[:31].any() and round(returns.max()) == 88
    returns = training_returns('hopper_hop')
    assert not returns[:5].any() and round(returns.max()) == 9 and len(returns) == 115
    last = training_returns('cheetah_run', seed=2)[-10:]
    assert round(last.min()) == 197 and round(last.max()) == 287
    assert round(last.mean()) == 254
    returns = training_returns('hopper_stand')
    assert round(returns[:92].max()) == 31 and (returns[-23:] > 120).sum() == 7
    for task, random, last in (
        ('acrobot_swingup', 0, 23),
        ('finger_turn_hard', 181, 67),
        ('reacher_hard', 7, 13),
    ):
        returns = training_returns(task)
        assert round(returns[:5].mean()) == random
        assert round(returns[-30:].mean()) == last
    assert round(training_returns('acrobot_swingup')[5:35].mean()) == 12
    prefill = training_returns('finger_turn_hard')[:5]
    assert prefill.round().tolist() == [903, 4, 0, 0, 0]
    for task, first, last in ('quadruped_run', 6, 12), ('quadruped_walk', 6, 11):
        returns = training_returns(task)
        assert (returns[:30] > 400).sum() == first
        assert (returns[-30:] > 400).sum() == last
    run = 'ablation/dmc_cartpole_swingup/small-no-entropy/0'
    returns = metric(run, 'test/return')[1]
    assert ((returns > 72.5) & (returns < 86)).sum() == 9 and len(returns) == 11
    steps, norms = metric(run, 'actor_grad_norm')
    assert norms[(steps >= 6_000) & (steps <= 14_000)].max() < 0.003
    run = 'ablation/dmc_pendulum_swingup/small-no-entropy/0'
    returns = metric(run, 'test/return')[1]
    assert (returns == 0).sum() == 20 and len(returns) == 23
    steps, norms = metric(run, 'actor_grad_norm')
    assert norms[(steps >= 10_000) & (steps <= 20_000)].max() < 0.001
    for seed in '0123':
        run = f'discrete/gym_CartPole-v1/cartpole-pixels/{seed}'
        assert metric(run, 'action_ent')[1].min() / np.log(2) >= 0.40


def methods_table(groups):
    lines = []
    for task, labels in {
        'dmc_cartpole_swingup': ('small', 'small no_value', 'small planet'),
        'dmc_cheetah_run': (
            'small-bfloat16',
            'small-bfloat16 no_value',
            'small-bfloat16 planet',
        ),
        'dmc_walker_stand': ('small-v0', 'small-v0 planet'),
    }.items():
        step = 30_000 if task == 'dmc_walker_stand' else 40_000
        for label in labels:
            runs = (
                groups.get(('methods', task, label)) or groups['control', task, label]
            )
            there = protocol.scores_at(runs, step)
            lines.append(
                [
                    f'`{short(task)}`',
                    f'`{label}`',
                    f'{step:,}',
                    ', '.join(map(whole, there)),
                    whole(there.mean(), protocol.spread(there)),
                ]
            )
    return table(['task', 'method', 'steps', 'each seed', 'score'], lines)


def test_comparisons_has_the_methods(groups):
    assert methods_table(groups) in page('docs/comparisons.md')
