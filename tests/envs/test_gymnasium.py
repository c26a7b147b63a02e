"""Tests of tasks by their Gymnasium id, with Gymnasium's own environments."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from PIL import Image

import wrappers
from acting import workers
from acting.collector import Collector
from envs import rendering

KWARGS = {'action_repeat': 1, 'time_limit': 1000}

MODULE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete


class Sketch(gymnasium.Env):
    metadata = {'render_modes': []}

    def __init__(self, render_mode=None, shape=(8, 8, 3), actions=None, reward=2.0):
        self.reward = reward
        self.observation_space = Box(0, 255, shape, np.uint8)
        self.action_space = actions or Discrete(3, start=5)
        self.actions = []

    def reset(self, seed=None, options=None):
        return np.full(self.observation_space.shape, 7, np.uint8), {'lock': open}

    def step(self, action):
        self.actions.append(action)
        assert self.action_space.contains(action), action
        image = np.full(self.observation_space.shape, 9, np.uint8)
        return image, self.reward, np.True_, False, {'lock': lambda: 0}


def add(name, **kwargs):
    gymnasium.register(f'third/{name}-v1', Sketch, kwargs=kwargs)


add('Color', reward=np.float64(2))
add('Array', reward=np.array([2], np.float32))
add('Grey', shape=(8, 8))
add('GreyChannel', shape=(8, 8, 1))
add('Vector', shape=(8,))
low = np.array([[-2, 0], [-np.inf, 1]])
high = np.array([[2, 0.1], [np.inf, 1.7e308]])
add('Matrix', actions=Box(low, high, dtype=np.float64))
add('Multi', actions=MultiDiscrete([2, 3]))
add('Tree', actions=Dict(a=Discrete(2)))
add('Integers', actions=Box(0, 5, (2,), np.int64))
add('Nothing', actions=Box(-1, 1, (0,)))
add('Failing', nonsense=1)
"""


@pytest.fixture
def third(tmp_path, monkeypatch):
    """Keyword arguments with which a third party's environments are found."""
    (tmp_path / 'third.py').write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {**KWARGS, 'gym_import': 'third'}
    sys.modules.pop('third', None)
    for name in [name for name in gymnasium.registry if name.startswith('third/')]:
        del gymnasium.registry[name]


def test_rendered_images_and_discrete_actions():
    env = wrappers.make('gym_CartPole-v1', **KWARGS)
    assert env.action_space == wrappers.OneHot(2)
    theirs = gymnasium.make('CartPole-v1', render_mode='rgb_array')
    obs, _ = env.reset(seed=3)
    theirs.reset(seed=3)
    ended = False
    while not ended:
        image = Image.fromarray(theirs.render()).resize(
            (64, 64), Image.Resampling.BILINEAR
        )
        np.testing.assert_array_equal(obs['image'], np.asarray(image))
        action = env.action_space.sample()
        obs, *step, info = env.step(action)
        _, *expected, _ = theirs.step(int(action[1]))
        assert step == expected and info == {'simulator_steps': 1}
        ended = step[1]
    assert obs['image'].std() > 5


def test_image_observations_and_continuous_actions():
    pytest.importorskip('Box2D')
    env = wrappers.make('gym_CarRacing-v3', **{**KWARGS, 'action_repeat': 3})
    assert env.action_space == Box(-1, 1, (3,), np.float32)
    theirs = gymnasium.make('CarRacing-v3')
    obs, _ = env.reset(seed=0)
    image, _ = theirs.reset(seed=0)
    for _ in range(3):
        image = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(obs['image'], np.asarray(image))
        # Gas and brake are in [0, 1].
        obs, reward, _, _, info = env.step(np.array([-0.5, 0, -1], np.float32))
        steps = [theirs.step(np.array([-0.5, 0.5, 0])) for _ in range(3)]
        image = steps[-1][0]
        np.testing.assert_allclose(reward, sum(step[1] for step in steps))
        assert info['simulator_steps'] == 3
    env.close()


def test_rendered_images_and_continuous_actions():
    env = wrappers.make('gym_Pendulum-v1', **KWARGS)
    theirs = gymnasium.make('Pendulum-v1')
    env.reset(seed=0)
    theirs.reset(seed=0)
    for action in (-1, 0.5, 1):
        action = np.array([action], np.float32)
        assert env.step(action)[1] == theirs.step(2 * action)[1]


def test_own_time_limit_truncates():
    env = wrappers.make('gym_Pendulum-v1', action_repeat=3, time_limit=1000)
    env.unwrapped.render = lambda: np.zeros((64, 64, 3), np.uint8)
    env.reset(seed=0)
    steps = [env.step(env.action_space.sample()) for _ in range(67)]
    assert [step[2:4] for step in steps] == [(False, False)] * 66 + [(False, True)]
    assert steps[-1][4]['simulator_steps'] == 2


def test_emulator_by_its_id():
    env = wrappers.make('gym_ALE/Breakout-v5', **KWARGS)
    assert env.action_space == wrappers.OneHot(4)
    assert env.reset(seed=0)[0]['image'].std() > 10


def test_reward_that_is_an_array_of_one_number(third):
    env = wrappers.make('gym_third/Array-v1', **third)
    env.reset(seed=0)
    reward = env.step(np.eye(3, dtype=np.float32)[0])[1]
    assert type(reward) is float and reward == 2


@pytest.mark.parametrize('name', ['Color', 'Grey', 'GreyChannel'])
def test_third_party(third, name):
    """Its infos may hold what no pipe can carry; its actions do not start at 0."""
    env = wrappers.make(f'gym_third/{name}-v1', **third)
    obs, _ = env.reset(seed=0)
    assert obs['image'].shape == (64, 64, 3) and (obs['image'] == 7).all()
    obs, *step = env.step(np.array([0, 0, 1], np.float32))
    assert (obs['image'] == 9).all()
    assert step == [2.0, True, False, {'simulator_steps': 1}]
    assert env.unwrapped._env.unwrapped.actions == [7]


def test_in_a_worker_process(third, tmp_path, monkeypatch):
    """Which finds the module in the current folder, as its user does."""
    monkeypatch.chdir(tmp_path)
    worker = workers.Worker('gym_third/Color-v1', third)
    assert isinstance(worker.action_space, wrappers.OneHot)
    _, [episode] = Collector([worker], 0).step(lambda *_: np.eye(3)[:1])
    assert episode['discount'].tolist() == [1, 0]
    worker.close()


def test_actions_of_several_dimensions(third):
    env = wrappers.make('gym_third/Matrix-v1', **third)
    assert env.action_space == Box(-1, 1, (4,), np.float32)
    env.reset()
    for sign in (-1, 1):
        env.step(np.full(4, sign, np.float32))
    low, high = env.unwrapped._env.unwrapped.actions
    # Without two bounds an action stays as it is, within the one bound.
    np.testing.assert_allclose(low, [[-2, 0], [-1, 1]])
    np.testing.assert_allclose(high, [[2, 0.1], [1, 1]])
    assert low.dtype == np.float64


@pytest.mark.parametrize('name', ['Multi', 'Tree', 'Integers', 'Nothing'])
def test_other_action_spaces(third, name):
    with pytest.raises(ValueError, match='heads for Box .* and Discrete') as caught:
        wrappers.make(f'gym_third/{name}-v1', **third)
    assert f'gym_third/{name}-v1' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_no_images(third):
    with pytest.raises(ValueError, match="no images.*'rgb_array'"):
        wrappers.make('gym_third/Vector-v1', **third)


def test_failing_environment(third):
    with pytest.raises(RuntimeError, match='Failing-v1.*nonsense') as caught:
        wrappers.make('gym_third/Failing-v1', **third)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'text, error',
    [
        (None, 'ModuleNotFoundError'),
        ('def (', 'SyntaxError'),
        ('1 / 0', 'ZeroDivision'),
    ],
)
def test_module_that_cannot_be_imported(tmp_path, monkeypatch, text, error):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    if text:
        (tmp_path / f'broken_{error}.py').write_text(text)
    match = f"module 'broken_{error}' of --gym_import: {error}"
    with pytest.raises(ValueError, match=match) as caught:
        wrappers.make('gym_CartPole-v1', gym_import=f'broken_{error}')
    assert '\n' not in str(caught.value)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'Box2D', None)
    for module in [name for name in sys.modules if 'gymnasium.envs.box2d' in name]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(RuntimeError, match="Cannot make 'gym_LunarLander-v3'.*ox2D"):
        wrappers.make('gym_LunarLander-v3')


def test_missing_renderer(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pygame', None)
    with pytest.raises(RuntimeError, match="Cannot render 'gym_CartPole-v1'.*pygame"):
        wrappers.make('gym_CartPole-v1')


def test_mujoco_is_rendered_as_the_control_suite():
    assert rendering.needs_renderer('gym_HalfCheetah-v5')
    assert not rendering.needs_renderer('gym_CartPole-v1')
    assert not rendering.needs_renderer('gym_unknown')
