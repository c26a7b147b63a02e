"""The command line: bad input, and whole runs on the real simulator."""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import forks
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import configs
import dreamer
import evaluate
import plotting
import sweep
import wrappers
from support.acting import workers
from support.run import advice, config_file, logger
from support.storage import episodes
from support.storage.metrics import read as read_metrics
from support.system import command_line, limits
from support.system.command_line import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOSSES = set(
    'model_loss image_loss reward_loss div prior_ent post_ent actor_loss value_loss '
    'action_ent model_grad_norm actor_grad_norm value_grad_norm gradient_step fps '
    'updates_per_s'.split()
)


def run(*flags, code=0):
    process = forks.Program('dreamer.py', flags)
    output = process.finish()
    assert process.returncode == code, output
    return output


def short_episodes(logdir):
    """Flags of a run whose episodes have 40 steps."""
    flags = '--task dummy_continuous --configs debug --time_limit 40'
    return ['--logdir', logdir, *flags.split(), *forks.QUICK]


def metrics(logdir):
    return list(read_metrics(logdir))


def warn_of_flags(argv):
    advice.warn_of_flags(argv, configs.parse(argv))


def test_home_is_meant_in_every_path(tmp_path, monkeypatch):
    """Behind `=` a shell leaves `~` as it is, and so does an exec without one."""
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'x').mkdir()
    run = configs.parse(
        ['--logdir=~/x', '--lab_level_cache=~/cache', '--lab_dataset=~/images']
    )
    assert run.logdir == str(tmp_path / 'x')
    assert run.lab_level_cache == str(tmp_path / 'cache')
    assert run.lab_dataset == str(tmp_path / 'images')
    shown = evaluate.parse(['--logdir=~/x', '--video=~/v.gif', '--dream=~/x/d.mp4'])
    assert shown.logdir == str(tmp_path / 'x')
    assert shown.video == tmp_path / 'v.gif' and shown.dream == tmp_path / 'x/d.mp4'
    drawn = plotting.parse(['--logdir', '~/x', '~', '--out=~/out'])
    assert drawn.logdir == [tmp_path / 'x', tmp_path] and drawn.out == tmp_path / 'out'
    assert sweep.parse(['--tasks', 'dummy', '--root=~/x']).root == tmp_path / 'x'
    # Elsewhere in a name it is a letter like others.
    assert configs.parse(['--logdir', './~/a~']).logdir == os.path.abspath('~/a~')
    with pytest.raises(UserError, match="'~no_such_user/x' begins with the home"):
        configs.parse(['--logdir', '~no_such_user/x'])


def test_paths_are_absolute_from_the_start(tmp_path, monkeypatch):
    """A simulator may change the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x').mkdir()
    run = configs.parse('--logdir x/../run --lab_level_cache c --lab_dataset d'.split())
    assert run.logdir == str(tmp_path / 'run')
    assert run.lab_level_cache == str(tmp_path / 'c')
    assert run.lab_dataset == str(tmp_path / 'd')
    for discrete in True, False:
        monkeypatch.chdir(tmp_path / 'x')
        words = '--logdir run --lab_level_cache c'.split()
        assert config_file.settle(words, run, discrete).logdir == run.logdir
        assert config_file.settle(words, run, discrete).lab_level_cache == str(
            tmp_path / 'c'
        )
        monkeypatch.chdir(tmp_path)
    default = configs.parse([])
    assert default.logdir == str(tmp_path / 'logs')
    assert default.lab_level_cache == default.lab_dataset == ''
    shown = evaluate.parse('--logdir x --video v.gif --dream d.gif'.split())
    assert shown.logdir == str(tmp_path / 'x')
    assert (shown.video, shown.dream) == (tmp_path / 'v.gif', tmp_path / 'd.gif')
    drawn = plotting.parse('--logdir x . --out out'.split())
    assert drawn.logdir == [tmp_path / 'x', tmp_path] and drawn.out == tmp_path / 'out'
    assert plotting.parse(['--logdir', 'x']).out == tmp_path / 'x/plots'
    assert sweep.parse('--tasks dummy --root x'.split()).root == tmp_path / 'x'


@pytest.mark.slow
def test_environment_that_changes_the_folder_in_the_program_itself(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'wandering.py').write_text(
        'import os, gymnasium, numpy\n'
        'from gymnasium.spaces import Box\n'
        'from support.envs.dummies import DummyContinuous\n'
        'class Wandering(DummyContinuous):\n'
        '    observation_space = Box(0, 255, (64, 64, 3), numpy.uint8)\n'
        '    def __init__(self, render_mode=None):\n'
        '        super().__init__()\n'
        '    def reset(self, **kwargs):\n'
        '        os.chdir(os.path.join(os.path.dirname(__file__), "elsewhere"))\n'
        '        super().reset(**kwargs)\n'
        '        return self.render(), {}\n'
        '    def step(self, action):\n'
        '        return self.render(), *super().step(action)[1:]\n'
        "gymnasium.register('Wandering-v0', Wandering)\n"
    )
    flags = '--configs debug --time_limit 50 --steps 200 --parallel none'
    flags += ' --logdir rel/run --task gym_Wandering-v0 --gym_import wandering'
    words = [*forks.QUICK, *flags.split()]
    process = forks.Program('dreamer.py', words, cwd=tmp_path)
    output = process.finish()
    assert process.returncode == 0, output
    names = {path.name for path in (tmp_path / 'rel/run').iterdir()}
    assert {'config.json', 'metrics.jsonl', 'episodes', 'checkpoints'} <= names
    assert not list((tmp_path / 'elsewhere').iterdir())


def test_relative_paths_in_a_folder_that_is_gone_are_refused(tmp_path, monkeypatch):
    (tmp_path / 'gone').mkdir()
    monkeypatch.chdir(tmp_path / 'gone')
    (tmp_path / 'gone').rmdir()
    for flags in ['--logdir', 'x'], []:
        with pytest.raises(UserError, match='folder, which is gone'):
            configs.parse(flags)
    assert configs.parse(['--logdir', str(tmp_path)]).logdir == str(tmp_path)


@pytest.mark.parametrize(
    'flags, words',
    [
        # What would be rounded to 0, which means something else.
        (['--replay_memory', '0.5'], ['--replay_memory 0.5', 'less than a byte']),
        (['--replay_capacity', '1'], ['--replay_capacity 1', 'at least 2']),
        (['--replay_capacity', '3', '--action_repeat', '4'], ['0 for all', 'least 4']),
        (['--task', 'dmc_walker_fly'], ['walker_fly', 'walker_walk']),
        (['--task', 'nosuite_thing'], ['nosuite_thing', 'dmc', 'dummy']),
        (['--task', 'atari_pongg'], ['atari_pongg', 'atari_pong']),
        (['--task', 'dmlab_rooms_watermaze'], ['DeepMind Lab', 'Bazel']),
        (['--task', 'gym_CartPole-v9'], ['CartPole-v9', 'CartPole-v1']),
        (['--task', 'gym_CarRacing-v2'], ['CarRacing-v2', 'CarRacing-v3']),
        (['--task', 'atari_pong', '--time_limit', '0'], ['--time_limit', 'at least 1']),
        (['--task', 'walker'], ['walker', 'SUITE_NAME']),
        (
            ['--task', 'dummy_continuous', '--time_limit', '200000'],
            ['--time_limit 200000', 'possible', '--time_limit up to 174', 'repeat'],
        ),
        (['--task', 'dummy_nothing'], ['dummy_nothing', 'dummy_continuous']),
        (['--stepps', '10'], ['--stepps', '--steps']),
        (['--configs', 'huge'], ['huge', 'debug', 'small', 'paper']),
        (['--precision', '64'], ['--precision', '16', '32', 'bfloat16']),
        (['--steps', 'many'], ['--steps', 'many', 'whole number']),
        (['--steps', '1.5'], ['--steps', '1.5', 'whole number']),
        (['--steps'], ['--steps']),
        (['--model_lr', 'nan'], ['--model_lr', 'finite']),
        (['--model_lr', '0'], ['--model_lr', 'above 0']),
        (['--batch_size', '0'], ['--batch_size', 'at least 1']),
        (['--discount', '1.5'], ['--discount', 'at most 1']),
        (['--seed', '5000000000'], ['--seed', 'at most 4294967295']),
        (['--prefill', '100', '--steps', '10'], ['--prefill', '--steps']),
        (['--train_episodes', '-1'], ['--train_episodes', 'at least 0']),
        (['--prefill_episodes', '0'], ['--prefill_episodes', 'at least 1']),
        (['--adam_epsilon', '0'], ['--adam_epsilon', 'above 0']),
        (['--image_noise', 'some'], ['--image_noise', 'true or false']),
        (['--jit', 'maybe'], ['--jit', 'auto, true, false']),
        (
            ['--expl_min', '0.5', '--expl_amount', '0.1'],
            ['--expl_min', '--expl_amount'],
        ),
        (['loose'], ['loose', '--help lists all flags']),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capfd, flags, words):
    logdir = tmp_path / 'logs'
    with pytest.raises(SystemExit) as error:
        dreamer.main(['--logdir', str(logdir), *flags])
    assert error.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    assert not logdir.exists()


@pytest.mark.parametrize('script', ['dreamer', 'evaluate', 'plotting', 'sweep'])
@pytest.mark.parametrize('flags', [['--help'], ['--no_such_flag']])
def test_help_and_mistakes_are_answered_before_heavy_imports(script, flags):
    code = (
        'import runpy, sys\n'
        f'sys.argv = ["{script}.py", *{flags}]\n'
        'try:\n'
        f'    runpy.run_path("{ROOT / script}.py", run_name="__main__")\n'
        'except SystemExit as end:\n'
        '    heavy = {"tensorflow", "keras", "matplotlib", "ray"} & {*sys.modules}\n'
        '    print(heavy or end.code or 0)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], text=True, capture_output=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1:] == ['0' if '--help' in flags else '2']


def test_no_working_renderer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'nonsense')
    words = '--logdir', tmp_path / 'logs', '--task', 'dmc_cartpole_balance'
    output = run(*words, code=2)
    lines = [line for line in output.splitlines() if line.startswith('dreamer: error')]
    assert len(lines) == 1 and 'MUJOCO_GL' in lines[0]
    assert 'Traceback' not in output and not (tmp_path / 'logs').exists()


@pytest.mark.parametrize(
    'kind, minimum, text, value',
    [
        (int, 0, '0', 0),
        (int, 1, '1e3', 1000),
        (int, -5, '-5', -5),
        (int, 1, '9007199254740993', 2**53 + 1),
        (int, 1, '0', "'0' is not a whole number of at least 1"),
        (int, 0, '1.5', "'1.5' is not a whole number of at least 0"),
        (int, 0, 'inf', "'inf' is not a whole number of at least 0"),
        (int, 0, '\u00b2', "'\u00b2' is not a whole number of at least 0"),
        (int, 0, '', "'' is not a whole number of at least 0"),
        (float, 1, '1e4', 1e4),
        (float, 1, '0.5', "'0.5' is not a number of at least 1"),
        (float, 0, 'nan', "'nan' is not a number of at least 0"),
        (float, -float('inf'), '-inf', "'-inf' is not a number of at least -inf"),
    ],
)
def test_numbers_of_the_command_line(kind, minimum, text, value):
    read = command_line.number(kind, minimum)
    if isinstance(value, str):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            read(text)
        assert str(error.value) == value
    else:
        assert read(text) == value and type(read(text)) is kind


def test_every_program_has_the_one_parser():
    programs = [*ROOT.glob('*.py'), *ROOT.glob('[bs]*/**/*.py')]
    makers = [path.name for path in programs if 'ArgumentParser' in path.read_text()]
    assert makers == ['command_line.py']


@pytest.mark.parametrize('name', ['dreamer', 'evaluate', 'plotting', 'sweep'])
def test_programs_start_where_python_does_not_look_beside_them(tmp_path, name):
    done = subprocess.run(
        [sys.executable, ROOT / f'{name}.py', '--help'],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONSAFEPATH='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and 'usage: ' in done.stdout, done.stderr


@pytest.mark.parametrize('name', ['run', 'acting', 'loop'])
def test_bad_flags_of_benchmarks_are_one_line(name):
    flag = '--runs' if name == 'run' else '--steps'
    process = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / f'{name}.py', flag, '0'],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2 and not process.stdout
    assert process.stderr == (
        f"{name}: error: argument {flag}: '0' is not a whole number of at least 1\n"
    )


@pytest.mark.parametrize('main', [dreamer.main, evaluate.main, plotting.main])
def test_errors_that_name_a_name_of_two_lines_are_one(capsys, tmp_path, main):
    words = ['--logdir', f'{tmp_path}/a\nb']
    if main is dreamer.main:
        words = ['--task', 'a\nb']
    try:
        assert main(words) == 2
    except SystemExit as error:
        assert error.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'a b' in line


def test_of_a_traceback_the_last_line_is_printed(capsys):
    text = 'It failed:\nTraceback (most recent call last):\n  File "x"\nKeyError: 3\n'
    command_line.print_error(RuntimeError(text), 'dreamer')
    assert capsys.readouterr().err == 'dreamer: error: KeyError: 3\n'


def test_logdir_of_another_configuration_is_refused(tmp_path, capsys):
    old = configs.parse(['--task', 'dummy_continuous', '--horizon', '9'])
    config_file.write(old, tmp_path)
    before = (tmp_path / 'config.json').read_bytes()
    with pytest.raises(SystemExit) as error:
        dreamer.main(['--logdir', str(tmp_path), '--task', 'dmc_walker_walk'])
    message = capsys.readouterr().err
    assert error.value.code == 2 and message.count('\n') == 1
    assert 'task: dummy_continuous -> dmc_walker_walk' in message
    assert 'horizon: 9 -> 15' in message
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']
    assert (tmp_path / 'config.json').read_bytes() == before


def test_what_may_change_on_resume(tmp_path):
    old = configs.parse(['--task', 'dummy_continuous'])
    config_file.write(old, tmp_path)
    new = configs.parse(
        [
            '--task',
            'dummy_continuous',
            '--steps',
            '7e4',
            '--log_every',
            '9',
            '--envs',
            '3',
            '--precision',
            '16',
        ]
    )
    assert config_file.differences(new, tmp_path) == []


@pytest.mark.parametrize('text', ['', '{', '[]', '{"config": 3}', '{}'])
def test_damaged_config_is_one_line(tmp_path, capsys, text):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(SystemExit) as error:
        dreamer.main(['--logdir', str(tmp_path), '--task', 'dummy_continuous'])
    assert error.value.code == 2
    assert 'not a readable configuration' in capsys.readouterr().err


def test_every_suite_has_a_preset_and_no_other():
    assert tuple(configs.SUITE_PRESETS) == wrappers.SUITES


@pytest.mark.parametrize('suite', configs.SUITE_PRESETS)
def test_longest_episode_of_every_suite_can_be_stored(suite):
    for repeat in [], ['--action_repeat', '1']:
        config = configs.parse(['--task', f'{suite}_x', '--pcont', *repeat])
        configs.check_length(config, episodes.row_bytes(1000))


def test_longest_episode_that_is_accepted_is_the_longest_that_can_be_stored():
    def headers(rows):
        shapes = dict(image=(rows, 64, 64, 3), action=(rows, 7), reward=(rows,))
        shapes['discount'] = (rows,)
        return {
            key: (shape, np.dtype(np.uint8 if key == 'image' else np.float32))
            for key, shape in shapes.items()
        }

    words = ['--task', 'dmc_walker_walk', '--action_repeat', '3', '--time_limit', '1e9']
    with pytest.raises(command_line.UserError, match='--time_limit up to') as error:
        configs.check_length(configs.parse(words), episodes.row_bytes(7))
    limit = re.search(r'up to (\d+)', str(error.value))[1]
    configs.check_length(configs.parse([*words[:-1], limit]), episodes.row_bytes(7))
    with pytest.raises(command_line.UserError):
        configs.check_length(
            configs.parse([*words[:-1], str(int(limit) + 1)]), episodes.row_bytes(7)
        )
    assert episodes.check_headers(headers(int(limit) // 3 + 1))
    with pytest.raises(ValueError, match='more than'):
        episodes.check_headers(headers(int(limit) // 3 + 2))


def test_presets_and_flags_in_order():
    config = configs.parse(
        ['--configs', 'debug', 'paper', '--num_units', '7', '--steps', '1e6']
    )
    assert (config.num_units, config.rssm_units) == (7, 200)
    assert (config.expl_action, config.free_nats_per_step) == ('mode', True)
    assert config.batch_size == configs.PRESETS['debug']['batch_size']
    assert config.steps == 1_000_000 and type(config.steps) is int
    dummy = configs.parse(['--task', 'dummy_continuous'])
    assert (dummy.action_repeat, dummy.time_limit) == (1, 50)
    assert configs.parse(['--task', 'dmc_walker_walk']).action_repeat == 2


# What `--configs paper` comes to, by suite. T: the paper's text (sections 3 to 6 and
# appendix A); 1: the TF1 release (`scripts/configs.py`, `scripts/tasks.py`) where that
# is silent.
PAPER = dict(
    num_units=300,  # T
    rssm_units=200,  # T: that of PlaNet
    reward_layers=3,  # T
    actor_layers=3,  # T
    image_noise=True,  # 1
    free_nats=3,  # T
    free_nats_per_step=True,  # T
    pcont_scale=1,  # 1
    reward_scale=1,  # T
    dataset_balance=False,  # 1
    train_episodes=1,  # T
    train_steps=100,  # T
    prefill_episodes=5,  # T
    adam_epsilon=1e-4,  # 1
    precision='32',  # 1
    actor_entropy=0,  # T
    same_game=False,  # 1
    batch_size=50,  # T
    batch_length=50,  # T
    discount=0.99,  # T
    disclam=0.95,  # T
    model_lr=6e-4,  # T
    value_lr=8e-5,  # T
    actor_lr=8e-5,  # T
    grad_clip=100,  # T
    plan_candidates=1000,  # 1
    plan_iterations=10,  # 1
    plan_elites=100,  # 1
    plan_horizon=12,  # 1
)
PAPER_CONTINUOUS = dict(
    horizon=15,  # T
    kl_scale=1,  # T
    expl_action='mode',  # T
    expl_amount=0.3,  # T
    eval_noise=0,  # T
    clip_rewards='none',  # T
    action_repeat=2,  # T
    time_limit=1000,  # T
    prefill=5000,  # 1: 2,500 agent steps
    train_every=1000,  # T: an episode
    pcont=False,  # T
)
PAPER_DISCRETE = dict(
    horizon=10,  # T
    kl_scale=0.1,  # T
    expl_action='sample',  # 1
    expl_amount=0.4,  # T
    expl_min=0.1,  # T
    expl_decay=200_000,  # T
    eval_noise=0.001,  # 1
    clip_rewards='tanh',  # T
    action_repeat=4,  # 1
    time_limit=108_000,  # 1: 27,000 agent steps
    prefill=10_000,  # 1: 2,500 agent steps
    train_every=2_000,  # 1: 500 agent steps
)


@pytest.mark.parametrize('method', ['dreamer', 'no_value', 'planet'])
@pytest.mark.parametrize('representation', ['reconstruction', 'contrastive', 'reward'])
@pytest.mark.parametrize(
    'task, expected',
    [
        ('dmc_walker_walk', PAPER_CONTINUOUS),
        ('atari_pong', PAPER_DISCRETE | dict(pcont=True)),  # T
        ('dmlab_rooms_watermaze', PAPER_DISCRETE | dict(pcont=False)),  # 1
    ],
)
def test_paper_preset_is_the_text_or_tf1(task, expected, representation, method):
    words = ['--task', task, '--configs', 'paper', '--method', method]
    config = configs.parse([*words, '--representation', representation])
    expected = PAPER | expected
    assert {name: getattr(config, name) for name in expected} == expected
    # It turns no setting into another that the suite's preset has from the paper.
    plain = configs.parse(['--task', task])
    for name in set(PAPER_DISCRETE) - {'expl_action'}:
        assert getattr(config, name) == getattr(plain, name)


def test_games_have_the_papers_settings_unless_they_are_tuned():
    names = 'actor_entropy free_nats reward_scale same_game dataset_balance'.split()

    def of(*words):
        return [getattr(configs.parse([*words]), name) for name in names]

    tuned = [0.3, 0, 10, True, True]
    for task in 'atari_pong', 'dmlab_rooms_watermaze':
        assert of('--task', task) == [0, 3, 1, False, False]
        assert of('--task', task, '--configs', 'tuned') == tuned
        assert of('--task', task, '--configs', 'small', 'tuned') == tuned
    assert of('--task', 'dummy_discrete', '--configs', 'discrete', 'tuned') == tuned


SMALL_BY_HAND = (
    '--cnn_depth 8 --num_units 200 --batch_size 16 --batch_length 32 '
    '--render_quality fast --plan_candidates 100 --plan_iterations 5 --plan_elites 10 '
    '--plan_horizon 10'
)


@pytest.mark.parametrize(
    'task, presets, by_hand',
    [
        (
            'atari_crazy_climber',
            'small tuned',
            '--configs tuned --prefill 20000 --train_every 4000 --steps 4e5 '
            '--eval_every 40000 --save_every 20000 --expl_decay 6000',
        ),
        (
            'gym_CartPole-v1',
            'small',
            '--train_every 1000 --train_steps 100 --prefill 5000 --steps 1e5 '
            '--eval_every 5000 --save_every 5000',
        ),
    ],
)
def test_small_is_what_learned_with_discrete_actions(task, presets, by_hand):
    """`results/README.md` has the commands of the runs that learned."""

    def settled(words):
        words = ['--task', task, *words.split()]
        return config_file.settle(words, configs.parse(words), True)

    assert settled(f'--configs {presets}') == settled(f'{by_hand} {SMALL_BY_HAND}')


@pytest.mark.parametrize(
    'words, warned',
    [
        (['--method', 'planet', '--horizon', '30'], '--horizon; plans have'),
        (['--method', 'planet', '--plan_horizon', '30'], ''),
        (['--method', 'no_value', '--disclam', '0.9'], '--disclam'),
        (['--plan_elites', '7'], '--plan_elites'),
        (['--configs', 'small'], ''),
    ],
)
def test_flags_without_effect_on_a_method_are_named(capsys, words, warned):
    warn_of_flags(words)
    error = capsys.readouterr().err
    assert warned in error and bool(error) == bool(warned)
    assert error.count('\n') == bool(warned)


def test_settings_of_the_2020_release_are_the_defaults():
    """Of the TF2 release, for the Control Suite."""
    config = configs.parse([])
    expected = dict(
        batch_size=50,
        batch_length=50,
        horizon=15,
        discount=0.99,
        disclam=0.95,
        model_lr=6e-4,
        value_lr=8e-5,
        actor_lr=8e-5,
        grad_clip=100,
        free_nats=3,
        kl_scale=1,
        prefill=5000,
        pretrain=100,
        train_every=1000,
        train_steps=100,
        expl_amount=0.3,
        action_repeat=2,
        time_limit=1000,
        eval_every=10_000,
        deter_size=200,
        stoch_size=30,
        num_units=400,
        cnn_depth=32,
        expl_action='sample',
    )
    assert {name: getattr(config, name) for name in expected} == expected


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as done:
        configs.parse(['--help'])
    text = capsys.readouterr().out
    assert not done.value.code
    for name in configs.Config.__dataclass_fields__:
        assert f'--{name} ' in text
    assert text.count('default:') == len(configs.Config.__dataclass_fields__)


RUNNING = ROOT / 'docs' / 'running.md'


def test_docs_list_the_flags_by_group():
    groups, name = {}, None
    for flag in dataclasses.fields(configs.Config):
        name = flag.metadata['group'] or name
        groups.setdefault(name, []).append(f'`{flag.name}`')
    for name, flags in groups.items():
        assert f'| {name} | {" ".join(flags)} |' in RUNNING.read_text()


def test_docs_list_what_suites_and_presets_set():
    text = RUNNING.read_text()
    for name in configs.PRESETS:
        (flags,) = re.findall(rf'^\| `{name}` \| .* \| `(--.*)` \|$', text, re.M)
        assert configs.parse(flags.split()) == configs.parse(['--configs', name])
    for name, settings in configs.SUITE_PRESETS.items():
        flags, task = re.findall(
            rf'^\| `{name}` \| .* \| (.*) \| `({name}_.+)` \|$', text, re.M
        )[0]
        assert bool(settings) == flags.startswith('`--')
        words = flags.strip('`').split() if settings else []
        assert dataclasses.replace(configs.parse(words), task=task) == configs.parse(
            ['--task', task]
        )
    (gym,) = re.findall(r'actions are discrete, the suite\s+also sets `([^`]+)`', text)
    (states,) = re.findall(r'small --observation state` sets `([^`]+)`', text)
    values = configs.parse(states.split())
    (settings,) = configs.IF_STATE.values()
    assert {name: getattr(values, name) for name in settings} == settings
    (games, small, paper) = re.findall(
        r'^\| `(?:small|paper)`, .* \| `(--[^`]+)` \|$', text, re.M
    )
    shown = {'gym': gym, 'small gym': small, 'paper': paper}
    shown |= {'small atari': games, 'small dmlab': games}
    for key, settings in configs.IF_DISCRETE.items():
        suite = key.split()[-1].replace('paper', 'gym')
        values = configs.parse(['--task', f'{suite}_x', *shown.pop(key).split()])
        assert {name: getattr(values, name) for name in settings} == settings
    assert not shown


def test_discrete_actions_choose_their_settings_and_resume(tmp_path):
    """A Gymnasium task's name does not tell; other settings keep the user's word."""
    argv = ['--logdir', str(tmp_path / 'run'), '--task', 'gym_CartPole-v1']
    argv += ['--configs', 'debug', '--steps', '120', '--expl_amount', '0.5']
    argv += ['--representation', 'reward', '--log_images', 'false']
    run(*argv)
    stored = config_file.read(tmp_path / 'run')
    assert (stored.kl_scale, stored.actor_entropy) == (0.1, 0.3)
    assert (stored.free_nats, stored.expl_decay) == (0, 5000)
    assert (stored.action_repeat, stored.expl_amount, stored.horizon) == (1, 0.5, 5)
    config, _, _, envs, automatic = dreamer.set_up([*argv, '--steps', '150'])
    workers.close_workers(envs)
    # The precision is the run's, and none is chosen anew.
    assert not automatic
    assert dataclasses.replace(config, steps=120) == stored
    with pytest.raises(SystemExit):
        dreamer.set_up([*argv, '--actor_entropy', '0.1'])
    assert configs.parse(['--task', 'gym_CarRacing-v3']).actor_entropy == 0


@pytest.mark.parametrize(
    'task, presets, typed',
    [
        ('dmc_walker_walk', ['small'], []),
        ('gym_CartPole-v1', ['discrete', 'small'], ['--kl_scale', '0.2']),
    ],
)
def test_the_words_that_started_a_run_resume_it_with_its_settings(
    tmp_path, monkeypatch, task, presets, typed
):
    """Also where a preset has changed since; other words are compared by value."""
    discrete = 'dmc' not in task
    argv = ['--logdir', str(tmp_path), '--task', task, '--configs', *presets, *typed]

    def settled(argv):
        return config_file.settle(argv, configs.parse(argv), discrete)

    first = dataclasses.replace(settled(argv), precision='bfloat16')
    config_file.write(first, tmp_path, argv)
    changed = dict(configs.PRESETS['small'], discount=0.5, steps=7e5)
    monkeypatch.setitem(configs.PRESETS, 'small', changed)
    again = settled([*argv, '--eval_every', '77'])
    assert (again.discount, again.steps, again.eval_every) == (0.99, 700_000, 77)
    assert again.kl_scale == first.kl_scale
    assert config_file.differences(again, tmp_path) == []
    config = config_file.resume_precision(configs.parse(argv))
    assert config.precision == 'bfloat16'
    asked = configs.parse([*argv, '--precision', '32'])
    assert config_file.resume_precision(asked).precision == '32'
    # Not by other words, even if they say the same of what they name.
    other = settled([*argv, '--horizon', str(first.horizon)])
    assert config_file.differences(other, tmp_path) == ['discount: 0.99 -> 0.5']
    with pytest.raises(UserError, match='discount: 0.99 -> 0.5'):
        config_file.refuse_changes(other, tmp_path)


def check_files(logdir, losses):
    """All that DESIGN's contract promises is there and can be read."""
    stored = json.loads((logdir / 'config.json').read_text())
    assert stored['versions']['tensorflow'] == tf.__version__
    lines = metrics(logdir)
    assert all('step' in line for line in lines)
    keys = set().union(*lines)
    assert keys >= LOSSES | {
        'train/return',
        'train/length',
        'test/return',
        'test/length',
        'episodes',
    }
    for line in lines:
        # Norms of gradients that float16's loss scale sheds at first are infinite.
        assert not [
            key
            for key, value in line.items()
            if value is None and not key.endswith('_norm')
        ], line
    for path in (logdir / 'episodes').glob('*.npz'):
        with np.load(path) as episode:
            rows = int(path.stem.split('-')[-1])
            assert episode['image'].shape == (rows, 64, 64, 3)
            assert episode['image'].std() > 1
            assert set(episode) >= {'image', 'action', 'reward', 'discount'}
    for kind in ('eval', 'openloop'):
        videos = list((logdir / 'videos').glob(f'{kind}-*.gif'))
        assert videos and Image.open(videos[0]).n_frames > 5
    events = list(logdir.glob('events.out.tfevents.*'))
    tags = {
        value.tag
        for path in events
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert tags >= {logger.TAGS[key] for key in losses} | {
        'train/return',
        'eval/return',
        'videos/eval',
        'videos/openloop',
        'config',
    }
    assert tf.train.latest_checkpoint(str(logdir / 'checkpoints'))


def check_advice(output):
    """Software that renders is named, and what is faster; nothing else speaks."""
    renderer = re.search(r'^rendering +(\w+, .*)', output, re.MULTILINE)[1]
    if 'llvmpipe' in renderer:
        (advice,) = re.findall('^advice: .*frames a second.*', output, re.MULTILINE)
        assert renderer in advice
        assert '--render_quality fast' in advice
    assert 'oneDNN' not in output and 'absl' not in output


@pytest.mark.slow
def test_train_stop_and_resume_on_the_real_simulator(tmp_path):
    words = '--task dmc_cartpole_balance --configs debug --eval_every 400'
    flags = ['--logdir', tmp_path, *words.split(), '--precision', '32']
    process = forks.Program('dreamer.py', [*flags, '--steps', 1e6])
    forks.wait_for(
        lambda: (
            (tmp_path / 'metrics.jsonl').exists()
            and any(line.get('gradient_step', 0) >= 4 for line in metrics(tmp_path))
        ),
        process,
    )
    process.send_signal(signal.SIGTERM)
    output = process.finish()
    assert process.returncode == 0, output
    check_advice(output)
    stopped = metrics(tmp_path)[-1]
    steps = stopped['step'] + 300
    output = run(*flags, '--steps', steps)
    assert 'resumed at step' in output
    lines = metrics(tmp_path)
    assert max(line['step'] for line in lines) >= steps
    updates = [line['gradient_step'] for line in lines if 'gradient_step' in line]
    assert updates == sorted(updates)
    # Two before the first step of training, and two for every 100 steps after it.
    assert updates[-1] == 2 + (lines[-1]['step'] - 100) // 100 * 2
    check_files(tmp_path, LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize(
    'task, flags',
    [
        ('atari_pong', []),
        ('gym_Pendulum-v1', []),
        ('dmlab_rooms_watermaze', ['--pcont']),
    ],
)
def test_other_suites_train_and_resume(tmp_path, monkeypatch, task, flags):
    """Runs that are resumed in fact are those of the real simulator and the dummies."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT / 'tests' / 'standins'))
    flags = ['--logdir', str(tmp_path), '--task', task, '--configs', 'debug', *flags]
    run(*flags, '--steps', 400)
    assert metrics(tmp_path)[-1]['step'] >= 400
    # The same command is accepted, and the weights fit.
    stored = config_file.read(tmp_path)
    config, _, _, envs, automatic = dreamer.set_up([*flags, '--steps', '500'])
    workers.close_workers(envs)
    assert dataclasses.replace(config, steps=400) == stored and not automatic
    assert evaluate.main(['--logdir', str(tmp_path), '--episodes', '1']) == 0
    discrete = task != 'gym_Pendulum-v1'
    check_files(tmp_path, LOSSES | {'pcont_loss'})
    for path in (tmp_path / 'episodes').glob('*.npz'):
        action = np.load(path)['action']
        assert not action[0].any()
        assert not discrete or (np.sort(action[1:])[:, -2:] == [0, 1]).all()


def test_flags_that_do_not_fit_the_actions_are_one_line(tmp_path, capsys):
    for task, flag, value, fits in (
        ('dummy_discrete', 'action_dist', 'tanh_normal', 'onehot'),
        ('dummy_continuous', 'expl', 'epsilon_greedy', 'additive_gaussian'),
        ('dummy_discrete', 'expl_amount', '2.0', '0 to 1'),
        ('dummy_discrete', 'eval_noise', '1.5', '0 to 1'),
    ):
        with pytest.raises(SystemExit) as error:
            dreamer.main(
                [
                    '--logdir',
                    str(tmp_path / 'logs'),
                    '--task',
                    task,
                    '--parallel',
                    'none',
                    f'--{flag}',
                    value,
                ]
            )
        message = capsys.readouterr().err
        assert error.value.code == 2 and message.count('\n') == 1
        assert f'--{flag} {value}' in message and fits in message


def test_atari_without_discount_head_is_warned_of_once(capsys):
    warn_of_flags(['--task', 'atari_pong', '--pcont', 'false'])
    assert capsys.readouterr().err.count('warning') == 1
    warn_of_flags(['--task', 'dmlab_rooms_watermaze'])
    warn_of_flags(['--task', 'atari_pong'])
    assert not capsys.readouterr().err


def test_discrete_suites_choose_their_settings():
    """FACTS, section 1, discrete control."""
    expected = dict(
        horizon=10,
        kl_scale=0.1,
        clip_rewards='tanh',
        expl_amount=0.4,
        expl_min=0.1,
        expl_decay=200_000,
        eval_noise=0.001,
        train_every=2000,
        train_steps=100,
        prefill=10_000,
        pcont_scale=10,
        time_limit=108_000,
        action_repeat=4,
    )
    for task, pcont in ('atari_pong', True), ('dmlab_rooms_watermaze', False):
        config = configs.parse(['--task', task])
        assert {name: getattr(config, name) for name in expected} == expected
        assert config.pcont == pcont


@pytest.mark.slow
def test_counters_with_several_environments(tmp_path):
    envs, first = 3, 101
    run(*short_episodes(tmp_path), '--envs', envs, '--steps', 480)
    lines = metrics(tmp_path)
    # 2 + 2 for every 100 steps after the prefill, which ends with a step of the first
    # group: two of three environments.
    last = [line for line in lines if 'gradient_step' in line][-1]
    assert last['gradient_step'] == 2 + (last['step'] - first) // 100 * 2
    assert 480 <= lines[-1]['step'] < 480 + envs
    episodes = list((tmp_path / 'episodes').glob('*.npz'))
    assert len(episodes) == 480 // envs // 40 * envs
    first_images = [np.load(path)['image'][0].tobytes() for path in episodes]
    assert len(set(first_images)) == len(first_images)


def test_logdir_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / 'file').write_text('kept')
    for name in ('file', 'file/below'):
        with pytest.raises(SystemExit) as error:
            dreamer.main(
                [
                    '--logdir',
                    str(tmp_path / name),
                    '--task',
                    'dummy_continuous',
                    '--parallel',
                    'none',
                ]
            )
        message = capsys.readouterr().err
        assert error.value.code == 2 and message.count('\n') == 1 and 'file' in message
    assert (tmp_path / 'file').read_text() == 'kept'


@pytest.mark.parametrize('flag', ['--envs', '--eval_envs'])
def test_more_environments_than_cores_can_carry_are_warned_of(capsys, flag):
    cores = limits.cores()
    warn_of_flags([flag, str(2 * cores)])
    assert not capsys.readouterr().err
    warn_of_flags([flag, str(2 * cores + 1)])
    (line,) = capsys.readouterr().err.splitlines()
    assert 'warning' in line and f'{2 * cores + 1} environments' in line


def test_flags_without_value_are_switches():
    assert configs.parse(['--pcont']).pcont is True
    assert configs.parse(['--pcont', 'false']).pcont is False
    assert configs.parse(['--jit']).jit == 'true'
    assert configs.parse(['--jit', '--seed', '1']).jit == 'true'
    assert configs.parse([]).jit == 'auto'


def test_paper_preset_has_three_layers_of_300_everywhere():
    agent = dreamer.Dreamer(
        configs.parse(['--configs', 'paper', '--precision', '32']), 6
    )
    for part in (agent.world.reward, agent.behavior.actor, agent.behavior.value):
        shapes = [w.shape for w in part.trainable_weights if len(w.shape) == 2]
        assert [shape[1] for shape in shapes[:-1]] == [300] * 3, part.name


@pytest.mark.slow
def test_what_does_not_fit_or_is_damaged_or_gone_leaves_the_run_as_it_was(tmp_path):
    flags = short_episodes(tmp_path)
    run(*flags, '--steps', 200)
    before = (tmp_path / 'config.json').read_bytes()
    output = run(*flags, '--deter_size', 20, '--allow_config_change', code=2)
    assert 'Traceback' not in output and 'another network' in output
    assert (tmp_path / 'config.json').read_bytes() == before
    # A damaged episode is named and skipped.
    victim = sorted((tmp_path / 'episodes').glob('*.npz'))[0]
    victim.write_bytes(victim.read_bytes()[:1000])
    assert victim.name in run(*flags, '--steps', 280)
    assert victim.stat().st_size == 1000
    # Without episodes the run collects some first; killed, it keeps what it collected.
    for path in (tmp_path / 'episodes').iterdir():
        path.unlink()
    process = forks.Program('dreamer.py', [*flags, '--steps', 1e6])
    stored = tmp_path / 'episodes'
    forks.wait_for(lambda: len(list(stored.glob('*.npz'))) >= 4, process)
    process.kill()
    process.finish()
    collected = 40 * len(list((tmp_path / 'episodes').glob('*.npz')))
    run(*flags, '--steps', 600)
    first_new = [line['step'] for line in metrics(tmp_path) if 'train/return' in line]
    assert first_new[-1] >= max(collected, 560)
