"""Tests of DeepMind Lab, on a stand-in that implements its interface strictly."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import wrappers
from acting import workers
from acting.collector import Collector
from envs.lab import LevelCache

STANDINS = str(pathlib.Path(__file__).parents[1] / 'standins')
TASK = 'dmlab_rooms_watermaze'
KWARGS = {'action_repeat': 4, 'time_limit': 1000}


@pytest.fixture
def lab(monkeypatch):
    """The stand-in, freshly imported."""
    monkeypatch.syspath_prepend(STANDINS)
    monkeypatch.delitem(sys.modules, 'deepmind_lab', raising=False)
    import deepmind_lab

    yield deepmind_lab
    sys.modules.pop('deepmind_lab')


def one_hot(index, size=9):
    return np.eye(size, dtype=np.float32)[index]


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


def test_nine_actions_are_held_within_the_simulator(lab):
    env = wrappers.make(TASK, **KWARGS)
    assert env.action_space == wrappers.OneHot(9)
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
    assert env.action_space == wrappers.OneHot(2)
    env.reset(seed=0)
    env.step(one_hot(1, 2))
    assert lab.created[0].actions == [(0, 0, 0, 1, 0, 1, 0, 2)]


@pytest.mark.parametrize('text', ['1,2', 'a', '1,2,3,4,5,6,7;1', '9999999999' * 7])
def test_malformed_actions(lab, text):
    with pytest.raises(ValueError, match='seven integers') as caught:
        wrappers.make(TASK, lab_actions=text)
    assert '\n' not in str(caught.value)


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
    one, two, three, again, two_again = lab.created[0].seeds
    assert one == again and two == two_again and len({one, two, three}) == 3


def test_close(lab):
    env = wrappers.make(TASK, **KWARGS)
    env.close()
    with pytest.raises(RuntimeError):
        env.reset(seed=0)


def test_levels_are_compiled_once(lab, tmp_path):
    for _ in range(2):
        env = wrappers.make(TASK, lab_level_cache=str(tmp_path / 'new' / 'cache'))
        for seed in range(10):
            env.reset(seed=seed)
    assert len(lab.compiled) == 2
    wrappers.make(TASK).reset(seed=0)
    assert len(lab.compiled) == 3


def test_cache_is_whole_while_many_write(tmp_path):
    """Processes write and read one key; whoever reads sees a whole file."""
    script = """
import pathlib, sys
from envs.lab import LevelCache
cache, number = LevelCache(sys.argv[1]), sys.argv[2]
source, target = (pathlib.Path(sys.argv[1] + name + number) for name in 'st')
source.write_bytes(number.encode() * 1_000_000)
for _ in range(40):
    cache.write('key', str(source))
    assert cache.fetch('key', str(target))
    data = target.read_bytes()
    assert len(data) == 1_000_000 and len(set(data)) == 1
"""
    folder = tmp_path / 'cache'
    root = str(pathlib.Path(__file__).resolve().parents[2])
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', script, str(folder), str(number)],
            env={**os.environ, 'PYTHONPATH': root},
        )
        for number in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert os.listdir(folder) == ['key']


def test_failed_write_leaves_nothing(tmp_path):
    cache = LevelCache(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        cache.write('key', str(tmp_path / 'missing'))
    assert not cache.fetch('key', str(tmp_path / 'target'))
    assert os.listdir(tmp_path) == []


def test_in_worker_processes(tmp_path):
    kwargs = {**KWARGS, 'lab_level_cache': str(tmp_path)}
    group = [workers.Worker(TASK, kwargs, env={'PYTHONPATH': STANDINS}) for _ in 'ab']
    collector = Collector(group, seed=0)
    steps, ended = 0, []
    while not ended:
        taken, ended = collector.step(lambda image, is_first: one_hot([0, 1]))
        steps += taken
    for worker in group:
        worker.close()
    assert steps == 2 * 13 * 4 and len(ended) == 2
    assert [episode['reward'].sum() for episode in ended] == [50, 0]
    for episode in ended:
        assert episode['discount'].tolist() == [1] * 13 + [0]
        assert not episode['action'][0].any()


def test_unknown_renderer(lab):
    with pytest.raises(ValueError, match="'gpu'.*'software' or 'hardware'"):
        wrappers.make(TASK, lab_renderer='gpu')


def test_missing_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'deepmind_lab', None)
    (tmp_path / 'deepmind_lab.py').write_text('raise ImportError("none here")')
    with pytest.raises(RuntimeError, match='Bazel.*google-deepmind/lab') as caught:
        wrappers.make(TASK)
    assert '\n' not in str(caught.value)
    with pytest.raises(RuntimeError, match='Bazel'):
        workers.Worker(TASK, env={'PYTHONPATH': str(tmp_path)})
