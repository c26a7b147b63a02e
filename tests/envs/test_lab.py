"""Tests of DeepMind Lab, on a stand-in that does what was seen of the real one."""

import os
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from conftest import STANDINS

import wrappers
from support.acting import workers
from support.acting.collector import Collector
from support.envs import lab as envs_lab

TASK = 'dmlab_rooms_watermaze'
KWARGS = {'action_repeat': 4, 'time_limit': 1000}
HELD_OUT = ['rooms_collect_good_objects', 'rooms_exploit_deferred_effects']


def one_hot(index, size=9):
    return np.eye(size, dtype=np.float32)[index]


def refusal(kind, task=TASK, **kwargs):
    """The message, of one line, with which a task is refused."""
    with pytest.raises(kind) as caught:
        wrappers.make(task, **kwargs)
    assert caught.type is kind and '\n' not in str(caught.value)
    return str(caught.value)


def test_level_and_config(lab):
    env = wrappers.make(TASK, size=(48, 64), **KWARGS)
    assert lab.created[0].level == 'contributed/dmlab30/rooms_watermaze'
    assert lab.created[0].renderer == 'software' and not lab.created[0].level_cache
    config = {'width': '64', 'height': '48', 'logLevel': 'WARN'}
    assert lab.created[0].config == config
    assert env.reset(seed=0)[0]['image'].shape == (48, 64, 3)
    wrappers.make('dmlab_tests/empty_room_test', lab_renderer='hardware')
    assert lab.created[1].level == 'tests/empty_room_test'
    assert lab.created[1].renderer == 'hardware'


def test_images_of_any_size(lab):
    """The simulator renders multiples of 4 only."""
    env = wrappers.make(TASK, size=(50, 63), **KWARGS)
    assert lab.created[0].config['height'] == '52'
    assert lab.created[0].config['width'] == '64'
    assert env.reset(seed=0)[0]['image'].shape == (50, 63, 3)


@pytest.mark.parametrize('name', ['lt_chasm', 'nav_maze_static_01', 'users_own_level'])
def test_levels_at_the_top(lab, name):
    wrappers.make(f'dmlab_{name}').reset(seed=0)
    assert lab.created[0].level == name


def test_unknown_levels(lab):
    message = refusal(ValueError, 'dmlab_lt_chasms')
    assert 'did you mean dmlab_lt_chasm?' in message and 'Level not found' in message
    message = refusal(ValueError, 'dmlab_zzz')
    assert 'rooms_watermaze, ' in message and 'lt_chasm or' in message
    message = refusal(RuntimeError, 'dmlab_tests/zzz')
    assert 'Level not found' in message and 'tests/zzz.lua' in message
    assert 'traceback' not in message


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('holdout', [True, False])
def test_holdout_levels_in_evaluation_only(lab, training, holdout):
    wrappers.make(TASK, training=training, lab_holdout=holdout)
    config = lab.created[0].config
    if holdout and not training:
        assert config['allowHoldOutLevels'] == 'true'
        assert config['mixerSeed'] == '1611489005'
    else:
        assert not {'allowHoldOutLevels', 'mixerSeed'} & config.keys()


@pytest.mark.parametrize('folder', ['', 'contributed/dmlab30/'])
@pytest.mark.parametrize('name', HELD_OUT)
def test_levels_in_two_parts(lab, name, folder):
    """Evaluation takes the other part, by whatever name the level is given."""
    task = f'dmlab_{folder}{name}_train'
    for training in True, False:
        for holdout in True, False:
            wrappers.make(task, training=training, lab_holdout=holdout).reset(seed=0)
    levels = [env.level.rpartition('/')[2] for env in lab.created]
    assert levels == [f'{name}_{part}' for part in ('train', 'train', 'test', 'train')]
    for holdout in True, False:
        message = refusal(ValueError, f'dmlab_{folder}{name}_test', lab_holdout=holdout)
        assert f"train on '{task}'" in message and '--lab_holdout true' in message


def test_nine_actions_are_held_within_the_simulator(lab):
    env = wrappers.make(TASK, **KWARGS)
    assert env.action_space == wrappers.OneHotSpace(9)
    env.reset(seed=0)
    rewards = [env.step(one_hot(index))[1] for index in range(9)]
    assert rewards == [4, 0, 0, 0, 0, 0, 4, 4, 0]
    assert lab.created[0].actions == [
        (0, 0, 0, 1, 0, 0, 0, 4),
        (0, 0, 0, -1, 0, 0, 0, 4),
        (0, 0, -1, 0, 0, 0, 0, 4),
        (0, 0, 1, 0, 0, 0, 0, 4),
        (-20, 0, 0, 0, 0, 0, 0, 4),
        (20, 0, 0, 0, 0, 0, 0, 4),
        (-20, 0, 0, 1, 0, 0, 0, 4),
        (20, 0, 0, 1, 0, 0, 0, 4),
        (0, 0, 0, 0, 1, 0, 0, 4),
    ]


def test_other_actions(lab):
    env = wrappers.make(TASK, lab_actions='0,5,0,0,0,0,1;0,0,0,1,0,1,0')
    assert env.action_space == wrappers.OneHotSpace(2)
    env.reset(seed=0)
    env.step(one_hot(1, 2))
    assert lab.created[0].actions == [(0, 0, 0, 1, 0, 1, 0, 2)]


def test_levels_with_further_actions(lab):
    """The release's nine keep what is further at rest; others name it."""
    task = 'dmlab_tests/custom_actions_test'
    env = wrappers.make(task)
    env.reset(seed=0)
    env.step(one_hot(0))
    env = wrappers.make(task, lab_actions='0,0,0,1,0,0,0,-1,10')
    env.reset(seed=0)
    env.step(one_hot(0, 1))
    assert lab.created[0].actions == [(0, 0, 0, 1, 0, 0, 0, 0, 0, 2)]
    assert lab.created[1].actions == [(0, 0, 0, 1, 0, 0, 0, -1, 10, 2)]
    message = refusal(ValueError, task, lab_actions='0,0,0,1,0,0,0')
    assert 'they have 7 components' in message
    assert 'its 9 are ' in message and 'SELECT_GADGET 0 to 10' in message


@pytest.mark.parametrize('text', ['a', '1,2,3,4,5,6,7;1', ';', '9999999999' * 7])
def test_malformed_actions(lab, text):
    assert 'are not integers' in refusal(ValueError, lab_actions=text)


@pytest.mark.parametrize(
    'text, fault',
    [
        ('1,2', 'they have 2 components'),
        ('0,0,0,1,0,0,0,0', 'they have 8 components'),
        ('0,0,0,2,0,0,0', 'action 1 has the component 2'),
        ('0,0,0,1,0,0,0; -513,0,0,0,0,0,0', 'action 2 has the component -513'),
        ('0,0,0,0,-1,0,0', 'action 1 has the component -1'),
        ('0,0,0,0,0,0,2', 'action 1 has the component 2'),
    ],
)
def test_actions_that_do_not_fit_the_level(lab, text, fault):
    message = refusal(ValueError, lab_actions=text)
    assert fault in message and 'MOVE_BACK_FORWARD -1 to 1' in message
    assert TASK in message


def test_end_terminates_and_shows_the_last_image(lab):
    env = wrappers.make(TASK, **KWARGS)
    env.reset(seed=0)
    steps = [env.step(one_hot(0)) for _ in range(13)]
    assert [step[2:4] for step in steps] == [(False, False)] * 12 + [(True, False)]
    assert [step[0]['image'][0, 0, 0] for step in steps[-2:]] == [48, 48]
    assert sum(step[1] for step in steps) == lab.LENGTH
    assert {step[4]['simulator_steps'] for step in steps} == {4}
    obs, _ = env.reset(seed=1)
    assert obs['image'][0, 0, 0] == 0


def test_time_limit_truncates(lab):
    env = wrappers.make(TASK, action_repeat=4, time_limit=10)
    env.reset(seed=0)
    ends = [env.step(one_hot(0))[2:4] for _ in range(3)]
    assert ends == [(False, False)] * 2 + [(False, True)]


def test_every_episode_has_a_seed(lab):
    env = wrappers.make(TASK, **KWARGS)
    for seed in (2**32 - 1, None, 5, 2**32 - 1, None):
        env.reset(seed=seed)
    _, one, two, three, again, two_again = lab.created[0].seeds
    assert one == again and two == two_again and len({one, two, three}) == 3


def test_first_episode_of_a_simulator_is_thrown_away(lab):
    """Otherwise a run that goes on would not be the one that was not interrupted."""
    level = 'contributed/dmlab30/rooms_watermaze'
    raw = lab.Lab(level, ['RGB_INTERLEAVED'], {'width': '64', 'height': '64'})
    first, second = (
        raw.reset(seed=3) and raw.observations()['RGB_INTERLEAVED'] for _ in 'ab'
    )
    assert (first != second).any()
    env = wrappers.make(TASK, **KWARGS)
    first, second = (env.reset(seed=3)[0]['image'] for _ in 'ab')
    assert (first == second).all()
    worker = workers.Worker(TASK, KWARGS, env={'PYTHONPATH': STANDINS})
    worker.start_reset(3)
    assert (worker.result()[0]['image'] == first).all()
    worker.restart()
    worker.start_reset(3)
    assert (worker.result()[0]['image'] == first).all()
    worker.close()


@pytest.mark.parametrize(
    'name', ['lt_chasm', 'nav_maze_static_01', 'lasertag_one_opponent_small']
)
def test_simulators_that_keep_state_are_made_anew_for_each_episode(lab, tmp_path, name):
    """An episode is then the same one whatever came before, also after a resume."""
    kwargs = {**KWARGS, 'lab_level_cache': str(tmp_path)}
    env = wrappers.make(f'dmlab_{name}', **kwargs)
    level = lab.created[0].level
    raw = lab.Lab(level, ['RGB_INTERLEAVED'], {'width': '64', 'height': '64'})
    images = [raw.reset(seed=3) and raw.observations() for _ in range(3)]
    images = [image['RGB_INTERLEAVED'] for image in images]
    assert (images[0] != images[1]).any() and (images[1] != images[2]).any()

    def play(seed):
        first = env.reset(seed=seed)[0]['image']
        return [first, *(env.step(one_hot(0))[0]['image'] for _ in range(3))]

    episode = play(3)
    play(4)
    np.testing.assert_array_equal(play(3), episode)
    worker = workers.Worker(f'dmlab_{name}', kwargs, env={'PYTHONPATH': STANDINS})
    for seed in 5, 3:
        worker.start_reset(seed)
        image = worker.result()[0]['image']
    worker.close()
    np.testing.assert_array_equal(image, episode[0])
    # No more than one simulator at a time, and their levels are compiled once.
    env.close()
    raw.close()
    assert [made.close() for made in lab.created] == [False] * len(lab.created)
    assert len(lab.created) == 5 and len(set(os.listdir(tmp_path))) == 2


def test_others_keep_their_simulator(lab):
    env = wrappers.make(TASK, **KWARGS)
    for seed in range(3):
        env.reset(seed=seed)
    assert len(lab.created) == 1


def test_close(lab):
    """The simulator itself would end the process where it is reset once more."""
    env = wrappers.make(TASK, **KWARGS)
    env.reset(seed=0)
    env.close()
    env.close()
    for call in lambda: env.reset(seed=0), lambda: env.step(one_hot(0)):
        with pytest.raises(RuntimeError, match=f"'{TASK}' is closed"):
            call()
    assert lab.created[0].close() is False


def test_refused_levels_are_closed(lab):
    refusal(ValueError, lab_actions='1,2')
    refusal(RuntimeError, 'dmlab_psychlab_continuous_recognition')
    assert [env.close() for env in lab.created] == [False, False]


def test_errors_have_their_cause(lab, monkeypatch):
    """The cause stands before the many lines of a traceback of Lua's."""
    env = wrappers.make(TASK, **KWARGS)
    env.reset(seed=0)
    cause = 'lost a bot \n (twice)\nstack traceback:\n\t[C]: in ?\n\tlevel.lua:31: in ?'
    for kind, name, call in (
        (RuntimeError, 'reset', lambda: env.reset(seed=1)),
        (ValueError, 'step', lambda: env.step(one_hot(0))),
        (RuntimeError, 'observations', lambda: env.reset(seed=1)),
    ):
        error = kind(f'Failed to advance environment "{cause}"')
        fail = mock.Mock(side_effect=error)
        with monkeypatch.context() as patch:
            patch.setattr(lab.Lab, name, fail)
            with pytest.raises(RuntimeError) as caught:
                call()
        message = str(caught.value)
        assert message.endswith('lost a bot (twice)') and TASK in message
        assert '\n' not in message


def test_refusals_of_the_simulator_have_their_cause(lab):
    """Whatever it refuses while it loads a level is one line, in a worker too."""
    task = 'dmlab_contributed/dmlab30/rooms_collect_good_objects_test'
    message = refusal(RuntimeError, task, training=False)
    assert 'must only be used during evaluation' in message
    assert 'traceback' not in message
    env = {'PYTHONPATH': STANDINS}
    with pytest.raises(RuntimeError, match='must only be used') as caught:
        workers.Worker(task, {'training': False}, env=env)
    assert '\n' not in str(caught.value)


def test_missing_zip_is_named(lab, monkeypatch):
    env = wrappers.make(TASK, **KWARGS)
    monkeypatch.setenv('PATH', '/nowhere')

    error = RuntimeError('Failed to start environment - no map')
    monkeypatch.setattr(lab.Lab, 'reset', mock.Mock(side_effect=error))
    with pytest.raises(RuntimeError, match='map; .* need the program zip'):
        env.reset(seed=0)


def test_map_that_does_not_compile_is_one_short_line(lab, monkeypatch):
    monkeypatch.setattr(lab, 'compiler_works', False)
    monkeypatch.setenv('PATH', '/nowhere')
    message = refusal(RuntimeError)
    assert message.endswith(
        'Failed to compile map.; generated levels need the program zip'
    )
    assert len(message) < 200 and '***' not in message and TASK in message


@pytest.mark.parametrize('name', envs_lab.LAB_WITH_IMAGES)
def test_images_of_psychlab(lab, tmp_path, name):
    task = f'dmlab_psychlab_{name}'
    message = refusal(RuntimeError, task)
    assert 'Follow instructions to download datasets' in message
    assert '--lab_dataset' in message
    # The simulator would miss them in the middle of an episode only.
    message = refusal(ValueError, task, lab_dataset=str(tmp_path))
    assert 'lacks 2,400 of the 2,400 images 0001.png to 2400.png' in message
    for number in range(1, 2401):
        (tmp_path / f'{number:04}.png').touch()
    env = wrappers.make(task, lab_dataset=str(tmp_path))
    env.reset(seed=0)
    while not env.step(one_hot(0))[2]:
        pass
    assert lab.created[-1].config['datasetPath'] == str(tmp_path)
    (tmp_path / '0815.png').unlink()
    message = refusal(ValueError, task, lab_dataset=str(tmp_path))
    assert 'lacks 1 of the 2,400' in message and '0815.png first' in message
    message = refusal(ValueError, task, lab_dataset=str(tmp_path / 'none'))
    assert '--lab_dataset' in message and 'none' in message


def test_images_are_found_from_anywhere(lab, tmp_path, monkeypatch):
    """The simulator may look from another folder than the user."""
    (tmp_path / 'images').mkdir()
    monkeypatch.chdir(tmp_path)
    wrappers.make(TASK, lab_dataset='images')
    assert lab.created[0].config['datasetPath'] == str(tmp_path / 'images')


def test_renders_on_the_gpu_of_the_run(lab, monkeypatch):
    wrappers.make(TASK, lab_renderer='hardware')
    monkeypatch.setenv('MUJOCO_EGL_DEVICE_ID', '3')
    wrappers.make(TASK, lab_renderer='software')
    wrappers.make(TASK, lab_renderer='hardware')
    indices = [env.config.get('gpuDeviceIndex') for env in lab.created]
    assert indices == [None, None, '3']
    monkeypatch.setenv('MUJOCO_EGL_DEVICE_ID', 'first')
    for task in TASK, 'dmlab_users_own_level':
        message = refusal(RuntimeError, task, lab_renderer='hardware')
        assert "'gpuDeviceIndex = first'" in message and 'Unknown' not in message


def test_in_worker_processes(tmp_path):
    kwargs = {**KWARGS, 'lab_level_cache': str(tmp_path)}
    group = [workers.Worker(TASK, kwargs, env={'PYTHONPATH': STANDINS}) for _ in 'ab']
    collector = Collector(group, seed=0)
    steps, ended = 0, []
    while not ended:
        taken, ended = collector.step(lambda observation, is_first: one_hot([0, 1]))
        steps += taken
    for worker in group:
        worker.close()
    assert steps == 2 * 13 * 4 and len(ended) == 2
    assert [episode['reward'].sum() for episode in ended] == [50, 0]
    for episode in ended:
        assert episode['discount'].tolist() == [1] * 13 + [0]
        assert not episode['action'][0].any()


def test_unknown_renderer(lab):
    message = refusal(ValueError, lab_renderer='gpu')
    assert "'gpu'" in message and "'software' or 'hardware'" in message


def test_missing_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'deepmind_lab', None)
    message = refusal(RuntimeError)
    assert 'Bazel' in message and 'google-deepmind/lab' in message
    assert 'Unknown task' in refusal(ValueError, 'dmlab_zzz')
    with pytest.raises(RuntimeError, match='is not installed.*Bazel'):
        workers.Worker(TASK)


@pytest.mark.parametrize('module', ['imp_of_python_311', 'pkg_resources_of_old'])
def test_package_that_cannot_be_imported(tmp_path, module):
    """It needs what newer versions of Python and setuptools no longer have."""
    (tmp_path / 'deepmind_lab.py').write_text(f'import {module}')
    for task in TASK, 'dmlab_users_own_level':
        with pytest.raises(RuntimeError, match='Python 3.11') as caught:
            workers.Worker(task, env={'PYTHONPATH': str(tmp_path)})
        message = str(caught.value)
        assert f"No module named '{module}'" in message
        assert 'is installed' in message and '\n' not in message


def standin(code):
    """The return code of a process that does something to the stand-in `env`."""
    start = (
        'import numpy as np, deepmind_lab; '
        "env = deepmind_lab.Lab('lt_chasm', ['RGB_INTERLEAVED']); "
    )
    process = subprocess.run(
        [sys.executable, '-c', start + code],
        env={**os.environ, 'PYTHONPATH': STANDINS},
        timeout=60,
        check=False,
    )
    return process.returncode


def test_standin_is_like_the_real_one_where_that_ends_the_process():
    assert standin('env.reset()') == 0
    assert standin('env.close(); env.reset()') == -signal.SIGSEGV


def test_standin_is_like_the_real_one(lab):
    """What was seen of the real one, and what its Python module says in C."""
    for kind, args in (
        (TypeError, ('lt_chasm', ('RGB_INTERLEAVED',))),
        (TypeError, ('lt_chasm', [], {'width': 64})),
        (TypeError, ('lt_chasm', [], ['width'])),
        (ValueError, ('lt_chasm', ['none'])),
        (RuntimeError, ('none', [])),
        (RuntimeError, ('lt_chasm', [], {'width': '62'})),
        (RuntimeError, ('lt_chasm', [], {'height': '62'})),
        (RuntimeError, ('lt_chasm', [], {'logLevel': 'WARNING'})),
        (RuntimeError, ('lt_chasm', [], {}, 'gpu')),
        (RuntimeError, ('contributed/dmlab30/rooms_collect_good_objects_test', [], {})),
    ):
        with pytest.raises(kind) as caught:
            lab.Lab(*args)
        assert caught.type is kind
    lines = str(caught.value).splitlines()
    assert 'must only be used' in lines[0] and 'stack traceback' in lines[1]
    assert len(lines) > 3
    env = lab.Lab('lt_chasm', ['RGB_INTERLEAVED'], {'logLevel': 'WARN'})
    forward = np.array([0, 0, 0, 1, 0, 0, 0], np.intc)
    for kind, call in (
        (RuntimeError, env.observations),
        (RuntimeError, lambda: env.step(forward)),
        (ValueError, lambda: env.reset(seed='1')),
        (ValueError, lambda: env.reset(seed=np.int64(1))),
    ):
        with pytest.raises(kind):
            call()
    assert not env.is_running()
    assert env.reset() is True and env.reset(seed=None) is True
    assert env.observations()['RGB_INTERLEAVED'].shape == (240, 320, 3)
    assert env.step(forward, num_steps=4) == 4.0
    assert env.step(2 * forward, num_steps=4) == 0.0  # It moves backwards.
    for kind, action in (
        (ValueError, forward[:-1]),
        (ValueError, forward.astype(np.int64)),
        (TypeError, list(forward)),
    ):
        with pytest.raises(kind):
            env.step(action)
    env.step(forward, num_steps=lab.LENGTH)
    assert not env.is_running()
    for call in env.observations, lambda: env.step(forward):
        with pytest.raises(RuntimeError):
            call()
    assert env.close() is True and env.close() is False
    assert not env.is_running()
    assert [part['max'] for part in env.action_spec()] == [512, 512, 1, 1, 1, 1, 1]


def test_standin_lets_errors_of_the_cache_surface_in_reset(lab):
    class Broken:
        def fetch(self, key, path):
            raise KeyError(key)

    env = lab.Lab('lt_chasm', [], level_cache=Broken())
    with pytest.raises(KeyError, match='lt_chasm_noaas_[0-9a-f]{32}'):
        env.reset(seed=0)
