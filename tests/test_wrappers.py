"""Tests of the environments, with the real simulators.

MuJoCo never renders in this process, where other tests load TensorFlow: scripts that
render run in an interpreter of their own, and `rendering_env` says with what.
"""

import json
import os
import pathlib
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

import wrappers
from support.envs import dummies, rendering

ROOT = pathlib.Path(__file__).parent.parent

PAPER_TASKS = (
    'acrobot_swingup cartpole_balance cartpole_balance_sparse cartpole_swingup '
    'cartpole_swingup_sparse cheetah_run cup_catch finger_spin finger_turn_easy '
    'finger_turn_hard hopper_hop hopper_stand pendulum_swingup quadruped_run '
    'quadruped_walk reacher_easy reacher_hard walker_run walker_stand walker_walk'
).split()


def run_script(script, *args, env=None):
    """Run a script in a fresh interpreter; return what it prints, as JSON."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **(env or {})}
    command = [sys.executable, '-c', script, *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope='session')
def rendering_env():
    return {'MUJOCO_GL': rendering.choose_renderer()}


class Counter(gymnasium.Env):
    """Reward step t with t, terminate after `length` steps, note its actions."""

    def __init__(self, length=100, low=-1, high=1):
        self.observation_space = Dict()
        self.action_space = Box(np.float32(low), np.float32(high), (2,))
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.actions = []
        return {}, {}

    def step(self, action):
        self.actions.append(action)
        count = len(self.actions)
        return {}, float(count), count >= self.length, False, {'count': count}


class TestTasks:
    def test_suites(self):
        assert wrappers.SUITES == ('dmc', 'atari', 'dmlab', 'gym', 'dummy')

    def test_a_setting_that_no_suite_has(self):
        wrappers.make('dummy_discrete', render_quality='fast', lab_actions='1').close()
        with pytest.raises(TypeError, match='lab_action'):
            wrappers.make('dummy_discrete', lab_action='1')

    @pytest.mark.parametrize('task', ['walker', 'foo_walk', 'dmc', 'dmc_', ''])
    def test_unknown_suite(self, task):
        with pytest.raises(ValueError) as caught:
            wrappers.make(task)
        message = str(caught.value)
        assert f"'{task}'" in message and 'dmc, atari, dmlab, gym, dummy' in message
        assert '\n' not in message

    def test_unknown_dummy(self):
        with pytest.raises(ValueError, match='dummy_continuous and dummy_discrete'):
            wrappers.make('dummy_other')

    def test_unknown_dmc(self):
        script = """
import json, sys, wrappers
messages = []
for task in sys.argv[1:]:
    try:
        wrappers.make(task)
    except ValueError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""
        tasks = 'dmc_walker_wolk', 'dmc_zzz', 'dmc_cup'
        messages = run_script(script, *tasks, env={'MUJOCO_GL': 'disable'})
        assert len(messages) == 3
        for task, message in zip(tasks, messages, strict=True):
            assert message.startswith(f"Unknown task '{task}'")
            assert message.endswith('walker') and 'tasks' in message
            assert '\n' not in message
        assert 'did you mean dmc_walker_walk' in messages[0]
        assert 'did you mean' not in messages[1]

    def test_names_with_underscores(self):
        tasks = [('ball_in_cup', 'catch'), ('point_mass', 'easy'), ('reacher', 'easy')]
        find = wrappers.DeepMindControl._split_name
        assert find('ball_in_cup_catch', tasks) == ('ball_in_cup', 'catch')
        assert find('cup_catch', tasks) == ('ball_in_cup', 'catch')
        assert find('point_mass_easy', tasks) == ('point_mass', 'easy')

    def test_no_tensorflow(self):
        script = """
import json, sys
from support.acting import workers
worker = workers.LocalWorker('dummy_continuous')
worker.start_reset(0)
worker.result()
worker.start_step(worker.action_space.sample())
worker.result()
print(json.dumps('tensorflow' in sys.modules))
"""
        assert run_script(script) is False


class TestDeepMindControl:
    def test_paper_tasks(self, rendering_env):
        script = """
import json, sys, numpy as np, wrappers
facts = {}
for task in sys.argv[1:]:
    env = wrappers.make('dmc_' + task)
    image = env.reset(seed=0)[0]['image']
    obs, reward, terminated, truncated, info = env.step(env.action_space.high)
    facts[task] = dict(
        space=env.observation_space.contains(obs), std=float(image.std()),
        low=env.action_space.low.tolist(), high=env.action_space.high.tolist(),
        dtype=str(env.action_space.dtype), reward=reward,
        ended=terminated or truncated, steps=info['simulator_steps'],
        moved=bool((image != obs['image']).any()), shape=image.shape)
    env.close()
print(json.dumps(facts))
"""
        facts = run_script(script, *PAPER_TASKS, env=rendering_env)
        assert sorted(facts) == sorted(PAPER_TASKS) and len(facts) == 20
        for task, fact in facts.items():
            assert fact['space'] and fact['shape'] == [64, 64, 3], task
            assert fact['std'] > 10, task
            assert set(fact['low']) == {-1} and set(fact['high']) == {1}, task
            assert fact['dtype'] == 'float32', task
            assert 0 <= fact['reward'] <= 2 and not fact['ended'], task
            assert fact['steps'] == 2, task
            # Full force moves every body but the cart of a balanced pole visibly.
            assert fact['moved'], task

    def test_seeds(self, rendering_env):
        script = """
import hashlib, json, numpy as np, wrappers
def episode(env, seed):
    actions = np.random.RandomState(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    frames = [env.reset(seed=seed)[0]['image']]
    rewards = []
    for action in actions:
        obs, reward, *_ = env.step(action)
        frames.append(obs['image'])
        rewards.append(reward)
    assert frames[0].shape == (48, 64, 3)
    return hashlib.md5(np.array(frames).tobytes()).hexdigest(), rewards
first, second = [wrappers.make('dmc_reacher_easy', size=(48, 64)) for _ in range(2)]
episodes = [episode(first, 1), episode(first, 2), episode(first, 1)]
episodes += [episode(second, 1), episode(second, 2), episode(second, None)]
print(json.dumps(episodes))
"""
        one, two, again, elsewhere, two_again, unseeded = run_script(
            script, env=rendering_env
        )
        assert one == again == elsewhere
        assert two == two_again
        assert len({one[0], two[0], unseeded[0]}) == 3

    def test_rewards_are_those_of_the_simulator(self):
        script = """
import json, numpy as np, wrappers
from dm_control import suite
actions = np.random.RandomState(0).uniform(-1, 1, (1000, 1)).astype(np.float32)
raw = suite.load('cartpole', 'swingup')
raw.task.random.seed(3)
raw.reset()
rewards = [raw.step(action).reward for action in np.repeat(actions, 2, 0)[:1000]]
env = wrappers.DeepMindControl('cartpole_swingup')
env = wrappers.ActionRepeat(wrappers.normalize_action(env), 2)
env.reset(seed=3)
steps = []
while not steps or not (steps[-1][1] or steps[-1][2]):
    steps.append(env.step(actions[len(steps)])[1:])
print(json.dumps([rewards, steps]))
"""
        rewards, steps = run_script(script, env={'MUJOCO_GL': 'disable'})
        pairs = np.reshape(rewards, (500, 2)).sum(1)
        assert np.std(pairs) > 0
        np.testing.assert_array_equal([step[0] for step in steps], pairs)
        # The suite's own time limit truncates, it does not terminate.
        assert [step[1:3] for step in steps] == [[False, False]] * 499 + [[False, True]]

    def test_termination_and_unbounded_actions(self):
        script = """
import json, numpy as np, wrappers
env = wrappers.DeepMindControl('lqr_lqr_2_1')
unbounded = bool(np.isinf(env.action_space.high).all())
env = wrappers.normalize_action(env)
env.reset(seed=0)
with env.unwrapped._env.physics.reset_context():
    pass  # At rest in the origin the task is done.
_, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
env.reset(seed=0)
env.step(np.array([7], np.float32))
force = env.unwrapped._env.physics.data.ctrl.tolist()
print(json.dumps([unbounded, env.action_space.high.tolist(),
                  terminated, truncated, force]))
"""
        results = run_script(script, env={'MUJOCO_GL': 'disable'})
        assert results == [True, [1], True, False, [1]]

    def test_full_episode(self):
        """A frame is drawn once an agent step, although each takes two steps."""
        script = """
import json, numpy as np, wrappers
frames = []
image = np.zeros((64, 64, 3), np.uint8)
wrappers.DeepMindControl.render = lambda self: frames.append(1) or image
env = wrappers.make('dmc_pendulum_swingup')
frames.clear()
env.reset(seed=0)
steps = []
while not steps or not (steps[-1][0] or steps[-1][1]):
    steps.append(env.step(env.action_space.high)[2:])
print(json.dumps([len(frames), steps]))
"""
        frames, steps = run_script(script, env={'MUJOCO_GL': 'disable'})
        assert len(steps) == 500 and frames == 501
        assert steps[-1][:2] == [False, True]
        assert {step[2]['simulator_steps'] for step in steps} == {2}


class TestWrappers:
    def test_time_limit_truncates(self):
        env = wrappers.make('dummy_continuous', action_repeat=1, time_limit=7)
        env.reset(seed=0)
        ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(7)]
        assert ends == [(False, False)] * 6 + [(False, True)]

    def test_time_limit_within_repeat(self):
        """The limit counts simulator steps and holds inside a repeat."""
        env = wrappers.make('dummy_continuous', action_repeat=4, time_limit=10)
        env.reset(seed=0)
        steps = [env.step(np.zeros(2, np.float32))[2:] for _ in range(3)]
        assert [step[2]['simulator_steps'] for step in steps] == [4, 4, 2]
        assert [step[1] for step in steps] == [False, False, True]

    def test_repeat_sums_rewards_and_keeps_info(self):
        env = wrappers.ActionRepeat(Counter(), 3)
        env.reset()
        info = {'count': 3, 'simulator_steps': 3}
        assert env.step('a') == ({}, 6, False, False, info)
        assert env.step('b')[1] == 15
        assert env.unwrapped.actions == ['a'] * 3 + ['b'] * 3

    def test_repeat_stops_at_termination(self):
        env = wrappers.ActionRepeat(Counter(length=5), 3)
        env.reset()
        env.step('a')
        _, reward, terminated, truncated, info = env.step('b')
        assert (reward, terminated, truncated) == (4 + 5, True, False)
        assert info['simulator_steps'] == 2

    @pytest.mark.parametrize('amount', [0, -1])
    def test_repeat_and_time_limit_are_positive(self, amount):
        for key in 'action_repeat', 'time_limit':
            match = f'{key[:4]}.*at least 1, not {amount}'
            with pytest.raises(ValueError, match=match):
                wrappers.make('dummy_continuous', **{key: amount})

    def test_actions_reach_the_bounds(self):
        env = wrappers.normalize_action(Counter(low=-2, high=6))
        env.reset()
        for action in ([-1, 1], [0, 0.5], [-3, 3]):
            env.step(np.array(action, np.float32))
        expected = [[-2, 6], [2, 4], [-2, 6]]
        np.testing.assert_allclose(env.unwrapped.actions, expected)
        assert env.action_space == Box(-1, 1, (2,), np.float32)

    def test_equal_bounds_are_the_constant(self):
        inner = Counter()
        low = np.array([0, -1, 0.1, -7], np.float32)
        high = np.array([0, 1, 0.1, -7], np.float32)
        inner.action_space = Box(low, high)
        env = wrappers.normalize_action(inner)
        env.reset()
        for sign in -1, 0.3, 1:
            env.step(np.full(4, sign, np.float32))
            np.testing.assert_array_equal(
                inner.actions[-1], np.array([0, sign, 0.1, -7], np.float32)
            )
        assert env.action_space == Box(-1, 1, (4,), np.float32)

    def test_a_bound_alone_begins_or_ends_a_range_of_two(self):
        inner = Counter()
        low = np.array([0, -np.inf, 5, -np.inf, -0.5], np.float32)
        high = np.array([4, np.inf, np.inf, -2, np.inf], np.float32)
        inner.action_space = Box(low, high)
        env = wrappers.normalize_action(inner)
        env.reset()
        for value in -3, -1, 0.5, 1:
            env.step(np.full(5, value, np.float32))
        least, middle = [0, -1, 5, -4, -0.5], [3, 0.5, 6.5, -2.5, 1]
        most = [4, 1, 7, -2, 1.5]
        np.testing.assert_allclose(inner.actions, [least, least, middle, most])
        assert env.action_space == Box(-1, 1, (5,), np.float32)


@pytest.mark.parametrize('dummy', [wrappers.DummyContinuous, wrappers.DummyDiscrete])
def test_reward_of_the_dummies_takes_several_steps(dummy):
    env = dummy()
    waits = []
    for seed in range(100):
        env.reset(seed=seed)
        waits.append(0)
        while not env.step(env.expert_action())[1]:
            waits[-1] += 1
    assert np.mean(waits) > 1.5 and max(waits) <= 8


@pytest.mark.parametrize(
    'task, near',
    [
        ('atari_pongg', 'atari_pong'),
        ('atari_mspacman', 'atari_ms_pacman'),
        ('atari_PONG', 'atari_pong'),
        ('gym_CARTPOLE-V1', 'gym_CartPole-v1'),
        ('atari_zzzz', '104 games'),
        ('gym_CartPol-v1', 'gym_CartPole-v1'),
        ('gym_ALE/Breakot-v5', 'gym_ALE/Breakout-v5'),
        ('gym_zzz/foo', '--gym_import'),
        ('gym_not an id', '--gym_import'),
        ('dmlab_rooms_watermase', 'did you mean dmlab_rooms_watermaze'),
        ('dmlab_zzz', 'rooms_collect_good_objects_train, '),
    ],
)
def test_unknown_name_in_a_suite(task, near):
    with pytest.raises(ValueError) as caught:
        wrappers.make(task)
    message = str(caught.value)
    assert message.startswith(f"Unknown task '{task}'") and near in message
    assert '\n' not in message


class TestDummyContinuous:
    POLICIES = {
        'random': lambda env: env.action_space.sample(),
        'stay': lambda env: np.zeros(2, np.float32),
        'centre': lambda env: np.clip(-env.point / env.SPEED, -1, 1),
        'expert': lambda env: env.expert_action(),
    }

    def play(self, policy, episodes=200):
        env = wrappers.DummyContinuous()
        returns = np.zeros(episodes)
        for seed in range(episodes):
            env.reset(seed=seed)
            env.action_space.seed(seed)
            returns[seed] = sum(env.step(policy(env))[1] for _ in range(50))
        return returns

    def test_returns(self):
        """Without looking little is gained; knowing the target gains nearly all."""
        means = {name: self.play(p).mean() for name, p in self.POLICIES.items()}
        assert means['expert'] > 44
        assert means['random'] < 0.15 * means['expert']
        assert means['stay'] < 0.15 * means['expert']
        assert means['centre'] < 0.15 * means['expert']

    def test_image_shows_point_and_target(self):
        env = wrappers.make('dummy_continuous', action_repeat=1, time_limit=50)
        for seed in range(10):
            image = env.reset(seed=seed)[0]['image'] / 255
            places = (np.arange(64) - 31.5) / 32 * dummies.MARGIN
            for channel, place in (0, env.unwrapped.point), (1, env.unwrapped.target):
                layer = image[..., channel]
                x = (layer.sum(0) * places).sum() / layer.sum()
                y = (layer.sum(1) * places).sum() / layer.sum()
                # The image cuts blobs at the edge of the arena.
                limit = 0.01 if np.abs(place).max() < 0.3 else 0.3
                np.testing.assert_allclose([x, y], place, atol=limit)
            assert not image[..., 2].any()

    def test_small_motion_is_visible(self):
        env = wrappers.make('dummy_continuous', action_repeat=1, time_limit=50)
        before = env.reset(seed=0)[0]['image']
        after = env.step(np.full(2, 0.05, np.float32))[0]['image']
        assert (before[..., 0] != after[..., 0]).any()
        assert (before[..., 1] == after[..., 1]).all()

    def test_seeds(self):
        env = wrappers.make('dummy_continuous')
        one, two, again = (env.reset(seed=seed)[0]['image'] for seed in (1, 2, 1))
        assert (one == again).all() and (one != two).any()
        assert (env.reset()[0]['image'] != env.reset()[0]['image']).any()

    def test_arena_bounds_the_point(self):
        env = wrappers.DummyContinuous()
        env.reset(seed=0)
        for _ in range(30):
            env.step(np.array([5, -5], np.float32))
        np.testing.assert_array_equal(env.point, [1, -1])

    @pytest.mark.filterwarnings('ignore:.*different from the unwrapped')
    def test_gymnasium_checks(self):
        from gymnasium.utils.env_checker import check_env

        env = wrappers.make('dummy_continuous', action_repeat=1, time_limit=50)
        check_env(env, skip_render_check=True)


class TestDummyDiscrete:
    @staticmethod
    def towards(env, place):
        """Return the action after which the point is closest to a place."""
        moved = env.point + env.SPEED * env.MOVES
        return int(np.linalg.norm(moved - place, axis=1).argmin())

    POLICIES = {
        'random': lambda env: int(env.action_space.sample()),
        'stay': lambda env: env.STAY,
        'right': lambda env: 0,
        'centre': lambda env: TestDummyDiscrete.towards(env, np.zeros(2)),
        'hazard': lambda env: TestDummyDiscrete.towards(env, env.hazard),
        'expert': lambda env: env.expert_action(),
    }

    def play(self, policy, episodes=100):
        """Return the returns, and which episodes saw the target and the hazard."""
        env = wrappers.DummyDiscrete()
        returns = np.zeros(episodes)
        reached, died = np.zeros((2, episodes), bool)
        for seed in range(episodes):
            env.reset(seed=seed)
            env.action_space.seed(seed)
            for _ in range(50):
                _, reward, terminated, truncated, _ = env.step(policy(env))
                returns[seed] += reward
                reached[seed] |= reward == 1 and not terminated
                died[seed] = terminated
                assert not truncated and reward in ((1,) if terminated else (0, 1))
                if terminated:
                    break
        return returns, reached, died

    def test_returns(self):
        """Only who looks, several steps ahead and at the end, does well."""
        played = {name: self.play(policy) for name, policy in self.POLICIES.items()}
        means = {name: returns.mean() for name, (returns, *_) in played.items()}
        assert means['expert'] > 45 and not played['expert'][2].any()
        assert played['hazard'][2].all()
        for name in 'random', 'stay', 'right', 'centre', 'hazard':
            assert means[name] < 0.12 * means['expert'], name
        # Random episodes show both, often enough to learn from 200 of them.
        _, reached, died = played['random']
        assert 0.25 < reached.mean() < 0.5 and 0.35 < died.mean() < 0.75

    def test_image_shows_all_three(self):
        env = wrappers.make('dummy_discrete', action_repeat=1, time_limit=50)
        for seed in range(5):
            image = env.reset(seed=seed)[0]['image']
            inner = env.unwrapped
            places = inner.point, inner.target, inner.hazard
            expected = dummies.draw(places, (64, 64))
            np.testing.assert_array_equal(image, expected)
            for channel, place in enumerate(places):
                row, column = np.unravel_index(image[..., channel].argmax(), (64, 64))
                pixel = (np.array([column, row]) - 31.5) / 32 * dummies.MARGIN
                np.testing.assert_allclose(pixel, place, atol=0.1)

    def test_moves_and_walls(self):
        env = wrappers.DummyDiscrete()
        for action, (x, y) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)]):
            env.reset(seed=0)
            env.point, env.hazard = np.array([0.2, -0.1]), np.array([9, 9])
            for _ in range(7):
                env.step(action)
            expected = [x or 0.2, y or -0.1]
            np.testing.assert_allclose(env.point, expected)

    def test_target_and_hazard_change_places_and_the_point_starts_apart(self):
        env, targets = wrappers.DummyDiscrete(), []
        for seed in range(50):
            env.reset(seed=seed)
            targets.append(env.target[0])
            assert env.target[0] == -env.hazard[0]
            for place in env.PLACES:
                assert np.linalg.norm(env.point - place) > 2 * env.RADIUS
        assert set(targets) == set(env.PLACES[:, 0])
        assert 15 < np.sum(np.array(targets) > 0) < 35

    def test_point_falls_into_the_hazard(self):
        env = wrappers.DummyDiscrete()
        env.reset(seed=0)
        env.point = env.hazard + [0, 0.5]
        assert env.step(env.STAY)[1:3] == (0, False)
        assert env.step(3)[1:3] == (1, True)
        np.testing.assert_array_equal(env.point, env.hazard)

    def test_end_is_marked_through_all_wrappers(self):
        env = wrappers.make('dummy_discrete', action_repeat=3, time_limit=50)
        env.reset(seed=0)
        env.unwrapped.point = env.unwrapped.hazard
        _, reward, terminated, truncated, info = env.step(np.eye(5, dtype='f4')[4])
        assert (reward, terminated, truncated) == (1, True, False)
        assert info == {'simulator_steps': 1}
        env.reset(seed=0)
        for _ in range(17):
            *_, terminated, truncated, info = env.step(np.eye(5, dtype='f4')[4])
        assert (terminated, truncated) == (False, True)
        assert info == {'simulator_steps': 2}

    def test_seeds(self):
        env = wrappers.make('dummy_discrete')
        one, two, again = (env.reset(seed=seed)[0]['image'] for seed in (1, 2, 1))
        assert (one == again).all() and (one != two).any()
        assert (env.reset()[0]['image'] != env.reset()[0]['image']).any()

    @pytest.mark.filterwarnings('ignore:.*different from the unwrapped')
    def test_gymnasium_checks(self):
        from gymnasium.utils.env_checker import check_env

        env = wrappers.make('dummy_discrete', action_repeat=1, time_limit=50)
        check_env(env, skip_render_check=True)


class TestOneHot:
    class Echo(gymnasium.Env):
        observation_space = Dict()
        action_space = Discrete(4, start=-2)

        def step(self, action):
            assert self.action_space.contains(action)
            return {}, float(action), False, False, {}

    def test_actions_reach_the_environment(self):
        env = wrappers.OneHotAction(self.Echo())
        rewards = [env.step(row)[1] for row in np.eye(4, dtype=np.float32)]
        assert rewards == [-2, -1, 0, 1]

    @pytest.mark.parametrize(
        'action',
        [
            [0, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0.5, 0.5, 0],
            [0, 0.99, 0, 0],
            [1, 0, 0],
            [[0, 1, 0, 0]],
            [0, np.nan, 0, 0],
            [-1, 1, 1, 0],
            1,
        ],
    )
    def test_other_vectors_are_refused(self, action):
        env = wrappers.OneHotAction(self.Echo())
        with pytest.raises(ValueError, match='not a one-hot float32 vector of size 4'):
            env.step(np.array(action, np.float32))

    def test_space(self):
        space = pickle.loads(pickle.dumps(wrappers.OneHotSpace(3, seed=0)))
        assert isinstance(space, wrappers.OneHotSpace) and isinstance(space, Box)
        assert space.shape == (3,) and space.dtype == np.float32
        samples = np.array([space.sample() for _ in range(3000)])
        assert samples.dtype == np.float32
        assert set(map(tuple, samples)) == set(map(tuple, np.eye(3)))
        np.testing.assert_allclose(samples.mean(0), 1 / 3, atol=0.05)
        assert all(map(space.contains, samples))
        assert not space.contains(np.zeros(3, np.float32))


class TestChooseRenderer:
    def test_chooses_what_renders(self, monkeypatch):
        monkeypatch.delenv('MUJOCO_GL', raising=False)
        monkeypatch.setattr(rendering, 'LINUX_RENDERERS', ('disable', 'egl', 'osmesa'))
        assert rendering.choose_renderer() in ('egl', 'osmesa')
        assert 'MUJOCO_GL' not in os.environ

    def test_keeps_the_users_choice(self, monkeypatch, rendering_env):
        monkeypatch.setenv('MUJOCO_GL', rendering_env['MUJOCO_GL'])
        monkeypatch.setattr(rendering, 'LINUX_RENDERERS', ('disable',))
        assert rendering.choose_renderer() == rendering_env['MUJOCO_GL']

    def test_users_choice_fails(self, monkeypatch, rendering_env):
        monkeypatch.setenv('MUJOCO_GL', 'disable')
        with pytest.raises(RuntimeError) as caught:
            rendering.choose_renderer()
        message = str(caught.value)
        assert 'MUJOCO_GL=disable is set' in message and '\n' not in message
        assert f'MUJOCO_GL={rendering_env["MUJOCO_GL"]}' in message

    def test_nothing_renders(self, monkeypatch):
        monkeypatch.delenv('MUJOCO_GL', raising=False)
        monkeypatch.setattr(rendering, 'LINUX_RENDERERS', ('disable', 'nonsense'))
        monkeypatch.setattr(rendering, 'OTHER_RENDERERS', ('disable', 'nonsense'))
        with pytest.raises(RuntimeError) as caught:
            rendering.choose_renderer()
        message = str(caught.value)
        assert 'disable: ' in message and 'nonsense: ' in message
        assert 'apt-get install libegl1' in message and 'libosmesa6' in message
        assert '\n' not in message

    @pytest.mark.parametrize(
        'variables',
        [
            {'PYOPENGL_PLATFORM': 'osmesa', 'MUJOCO_GL': 'egl'},
            {'PYOPENGL_PLATFORM': 'glx'},
            {'MUJOCO_EGL_DEVICE_ID': '5'},
            {'MUJOCO_EGL_DEVICE_ID': 'first', 'MUJOCO_GL': 'egl'},
            {'MUJOCO_EGL_DEVICE_ID': '5', 'PYOPENGL_PLATFORM': 'osmesa'},
            {'__EGL_VENDOR_LIBRARY_FILENAMES': '/nowhere.json'},
        ],
    )
    def test_variables_of_the_user_are_named(self, rendering_env, variables):
        """Each alone is to blame, or both are."""
        if rendering_env['MUJOCO_GL'] != 'egl':
            pytest.skip('EGL does not render here')
        script = """
import json
from support.envs import rendering
rendering.LINUX_RENDERERS = ('egl',)
try:
    print(json.dumps(rendering.choose_renderer()))
except RuntimeError as error:
    print(json.dumps(str(error)))
"""
        unset = dict.fromkeys(['MUJOCO_GL', *rendering.DISTURBING_VARIABLES])
        env = {k: v for k, v in os.environ.items() if k not in unset}
        message = json.loads(
            subprocess.run(
                [sys.executable, '-c', script],
                env={**env, 'PYTHONPATH': str(ROOT), **variables},
                capture_output=True,
                text=True,
                timeout=300,
            ).stdout
        )
        names = [key for key in variables if key != 'MUJOCO_GL']
        expected = ' and '.join(f'{key}={variables[key]}' for key in names)
        assert message.startswith(expected) and '\n' not in message
        assert message.endswith(f'with egl: unset {" and ".join(names)}')

    def test_a_gpu_that_egl_does_not_know_is_not_asked_for(
        self, monkeypatch, rendering_env
    ):
        monkeypatch.setenv('MUJOCO_GL', rendering_env['MUJOCO_GL'])
        monkeypatch.setattr(rendering, '_chosen', [])
        assert rendering.variables() == rendering_env
        found = rendering.variables('77')
        assert found == {**rendering_env, 'MUJOCO_EGL_DEVICE_ID': None}
        if rendering_env['MUJOCO_GL'] == 'egl':
            assert rendering.variables('0')['MUJOCO_EGL_DEVICE_ID'] == '0'
