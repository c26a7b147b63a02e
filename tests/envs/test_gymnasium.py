"""Tests of tasks by their Gymnasium id, with Gymnasium's own environments."""

import calendar
import os
import re
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from PIL import Image

import wrappers
from support.acting import workers
from support.acting.collector import Collector
from support.envs import registered, rendering

KWARGS = {'action_repeat': 1, 'time_limit': 1000}

MODULE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

TAKEN = []  # actions


class Sketch(gymnasium.Env):
    metadata = {'render_modes': []}

    def __init__(self, render_mode=None, shape=(8, 8, 3), actions=None, reward=2.0):
        self.reward = reward
        self.observation_space = Box(0, 255, shape, np.uint8)
        self.action_space = actions or Discrete(3, start=5)

    def reset(self, seed=None, options=None):
        return np.full(self.observation_space.shape, 7, np.uint8), {'lock': open}

    def step(self, action):
        TAKEN.append(action)
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


GOOD = np.full((8, 8, 3), 7, np.uint8)
BAD = dict(Nothing=None, Floats=GOOD / 255, Small=GOOD[:4], Flat=GOOD[0])


# Its images are others than its space says.
class Unlike(Sketch):
    metadata = {'render_modes': ['rgb_array']}

    def __init__(self, render_mode=None, bad=None, rendered=False, later=False):
        super().__init__()
        if rendered:
            self.observation_space = Box(-1, 1, (4,), np.float32)
        self.bad, self.later = BAD[bad], later

    def render(self):
        return self.bad if self.stepped or not self.later else GOOD

    def reset(self, seed=None, options=None):
        self.stepped = False
        return self.render(), {}

    def step(self, action):
        self.stepped = True
        return self.render(), 0.0, False, False, {}


class Old(Sketch):
    def reset(self, seed=None, options=None):
        return super().reset()[0]


class OldStep(Sketch):
    def step(self, action):
        return super().step(action)[:4]


class Older(Sketch):
    def reset(self):
        return super().reset()[0]


class Unpacking(Sketch):
    def __init__(self, **kwargs):
        one, two = range(3)


class Unreset(Sketch):
    def reset(self, seed=None, options=None):
        one, two = range(3)


for bad in BAD:
    for rendered in False, True:
        for later in False, True:
            kwargs = dict(bad=bad, rendered=rendered, later=later)
            gymnasium.register(
                f'third/Unlike{bad}-v{2 * rendered + later}', Unlike, kwargs=kwargs
            )
for kind in Old, OldStep, Older, Unpacking, Unreset:
    gymnasium.register(f'third/{kind.__name__}-v1', kind)
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
    assert env.action_space == wrappers.OneHotSpace(2)
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
    assert env.action_space == wrappers.OneHotSpace(4)
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
    assert sys.modules['third'].TAKEN == [7]


def test_in_a_worker_process(third, tmp_path, monkeypatch):
    """Which finds the module in the current folder, as its user does."""
    monkeypatch.chdir(tmp_path)
    worker = workers.Worker('gym_third/Color-v1', third)
    assert isinstance(worker.action_space, wrappers.OneHotSpace)
    _, [episode] = Collector([worker], 0).step(lambda *_: np.eye(3)[:1])
    assert episode['discount'].tolist() == [1, 0]
    worker.close()


def test_actions_of_several_dimensions(third):
    env = wrappers.make('gym_third/Matrix-v1', **third)
    assert env.action_space == Box(-1, 1, (4,), np.float32)
    env.reset()
    for sign in (-1, 1):
        env.step(np.full(4, sign, np.float32))
    low, high = sys.modules['third'].TAKEN
    # With one bound an action is in the range of length 2 that begins there.
    np.testing.assert_allclose(low, [[-2, 0], [-1, 1]])
    np.testing.assert_allclose(high, [[2, 0.1], [1, 3]])
    assert low.dtype == np.float64


@pytest.mark.parametrize('name', ['Multi', 'Tree', 'Integers', 'Nothing'])
def test_other_action_spaces(third, name):
    with pytest.raises(ValueError, match='heads for Box .* and Discrete') as caught:
        wrappers.make(f'gym_third/{name}-v1', **third)
    assert f'gym_third/{name}-v1' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_no_images(third):
    with pytest.raises(ValueError, match='no images') as caught:
        wrappers.make('gym_third/Vector-v1', **third)
    assert 'it observes a vector of shape (' in str(caught.value)
    assert str(caught.value).endswith('possible: --observation state')


def test_failing_environment(third):
    with pytest.raises(RuntimeError, match='Failing-v1.*nonsense') as caught:
        wrappers.make('gym_third/Failing-v1', **third)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('later', [0, 1])
@pytest.mark.parametrize(
    'name, rendered, words',
    [
        ('Nothing', 0, 'no array'),
        ('Nothing', 1, 'no array'),
        ('Floats', 0, 'float64 (8, 8, 3) from 0.027451 to 0.027451'),
        ('Floats', 1, 'float64 (8, 8, 3) from 0.027451 to 0.027451'),
        ('Small', 0, 'uint8 (4, 8, 3) from 7 to 7'),
        ('Flat', 1, 'uint8 (8, 3) from 7 to 7'),
    ],
)
def test_images_that_are_none(third, name, rendered, later, words):
    """At once where the first one shows it, else with the first that does."""
    what = 'renders' if rendered else 'gives the observation'
    task = f'gym_third/Unlike{name}-v{2 * rendered + later}'
    expected = f"'{task}' {what} {words}, "
    if not later:
        with pytest.raises(ValueError, match=re.escape(expected)) as caught:
            wrappers.make(task, **third)
    else:
        worker = workers.LocalWorker(task, third)
        worker.start_reset(0)
        assert (worker.result()[0]['image'] == 7).all()
        worker.start_step(np.eye(3, dtype=np.float32)[0])
        with pytest.raises(workers.WorkerError, match=re.escape(expected)) as caught:
            worker.result()
        assert str(caught.value).startswith(f'The environment of {task} failed: ')
    assert '\n' not in str(caught.value)


def test_later_images_that_are_none_in_a_worker_process(third, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worker = workers.Worker('gym_third/UnlikeFloats-v1', third)
    worker.start_reset(0)
    worker.result()
    worker.start_step(np.eye(3, dtype=np.float32)[0])
    with pytest.raises(workers.WorkerError, match=r'float64 \(8, 8, 3\)') as caught:
        worker.result()
    assert '\n' not in str(caught.value)
    worker.close()


@pytest.mark.parametrize(
    'name, words',
    [
        ('Old', 'reset returned uint8 (8, 8, 3) from 7 to 7, not (observation, info)'),
        ('Older', 'TypeError'),
        ('Unpacking', 'ValueError: too many values to unpack'),
        ('Unreset', 'ValueError: too many values to unpack'),
    ],
)
def test_errors_of_the_construction_name_the_task(third, name, words):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        wrappers.make(f'gym_third/{name}-v1', **third)
    message = str(caught.value)
    assert f"'gym_third/{name}-v1'" in message and words in message
    assert '\n' not in message


def test_step_of_another_interface(third):
    worker = workers.LocalWorker('gym_third/OldStep-v1', third)
    worker.start_reset(0)
    worker.result()
    worker.start_step(np.eye(3, dtype=np.float32)[0])
    with pytest.raises(workers.WorkerError, match='step returned 4 values') as caught:
        worker.result()
    assert '\n' not in str(caught.value)


def test_errors_of_any_suite_name_the_task(monkeypatch):
    def fail(*_):
        one, _ = range(3)

    monkeypatch.setitem(wrappers._MAKERS, 'atari', (fail, ''))
    match = "Cannot make 'atari_pong': too many values to unpack"
    with pytest.raises(ValueError, match=match):
        wrappers.make('atari_pong')


BARE = """
import gymnasium


class Bare(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), 'uint8')
    ready = False

    def reset(self, seed=None, options=None):
        assert seed is None or self.ready
        return self.observation_space.sample(), {}

    def step(self, action):
        raise NotImplementedError


class Never(Bare):
    def reset(self, seed=None, options=None):
        assert self.ready


gymnasium.register('bare/Bare-v0', Bare)
gymnasium.register('bare/Never-v0', Never)
"""


@pytest.mark.parametrize('kind', [workers.Worker, workers.LocalWorker])
def test_errors_without_text_say_where_they_were_raised(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    path = tmp_path / f'bare_{kind.__name__}.py'
    path.write_text(BARE)
    module = {'gym_import': path.stem}
    with pytest.raises(RuntimeError) as caught:
        kind('gym_bare/Never-v0', module)
    assert str(caught.value) == (
        "Cannot reset 'gym_bare/Never-v0': AssertionError: "
        f'line 20 of {path}: assert self.ready'
    )
    worker = kind('gym_bare/Bare-v0', module)
    for start, what, line in (
        (lambda: worker.start_reset(3), 'AssertionError: line 11', 'assert seed is'),
        (
            lambda: worker.start_step(np.eye(2, dtype=np.float32)[0]),
            'NotImplementedError: line 15',
            'raise NotImplementedError',
        ),
    ):
        start()
        with pytest.raises(workers.WorkerError, match='Traceback') as caught:
            worker.result()
        # Some programs show the last line alone.
        last = str(caught.value).strip().splitlines()[-1]
        assert last.startswith(f'{what} of {path}: {line}')
    worker.close()


class TestModulesOfOurNames:
    NAMES = ('wrappers', 'support', 'models', 'dreamer', 'tools')

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'path', [*sys.path])
        return tmp_path

    @pytest.mark.parametrize('name', NAMES)
    def test_hide_someones_own(self, folder, name):
        (folder / f'{name}.py').write_text(MODULE)
        with pytest.raises(ValueError) as caught:
            wrappers.make('gym_third/Color-v1', gym_import=name)
        message = str(caught.value)
        assert f"module '{name}' of --gym_import: this project has a" in message
        assert str(folder / f'{name}.py') in message and '\n' not in message

    @pytest.mark.parametrize('package', [False, True])
    def test_hide_someones_own_folder(self, folder, package):
        (folder / 'support').mkdir()
        (folder / 'support' / 'mine.py').write_text(MODULE)
        if package:
            (folder / 'support' / '__init__.py').write_text('')
        for task, module in (
            ('third/Color-v1', 'support.mine'),
            ('support.mine:A-v1', ''),
        ):
            with pytest.raises(ValueError) as caught:
                wrappers.make(f'gym_{task}', gym_import=module)
            assert f'hides {folder / "support"}' in str(caught.value)
            assert 'give yours another name' in str(caught.value)

    def test_hide_what_someones_module_imports(self, folder):
        (folder / 'mine_of_tools.py').write_text('from wrappers import Net')
        (folder / 'wrappers.py').write_text('Net = 1')
        with pytest.raises(ValueError) as caught:
            wrappers.make('gym_third/Color-v1', gym_import='mine_of_tools')
        message = str(caught.value)
        assert "cannot import name 'Net' from 'wrappers'" in message
        assert str(folder / 'wrappers.py') in message and '\n' not in message

    @pytest.mark.parametrize('task', ['third/Color-v9', 'calendar:Color-v9'])
    def test_one_of_python_that_hides_someones_own_is_named(self, folder, task):
        (folder / 'calendar.py').write_text(MODULE)
        with pytest.raises(ValueError) as caught:
            wrappers.make(f'gym_{task}', gym_import='calendar')
        message = str(caught.value)
        assert f"'calendar' is {calendar.__file__}, which hides " in message
        assert str(folder / 'calendar.py') in message and '\n' not in message
        assert message.count('which hides') == 1

    def test_part_of_one_that_is_hidden(self, folder):
        (folder / 'calendar').mkdir()
        (folder / 'calendar' / 'mine.py').write_text(MODULE)
        with pytest.raises(ValueError) as caught:
            wrappers.make('gym_third/Color-v1', gym_import='calendar.mine')
        assert f'hides {folder / "calendar"};' in str(caught.value)

    def test_others_work(self, folder, third):
        (folder / 'models').mkdir()  # Of files, not of modules.
        wrappers.make('gym_third/Color-v1', **third)


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


ANTS = """
import gymnasium

gymnasium.register('My/Ant-v0', 'gymnasium.envs.mujoco.ant_v5:AntEnv')


class Late(gymnasium.Env):
    metadata = {'render_modes': ['rgb_array']}
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        pass

    def reset(self, seed=None, options=None):
        return [0], {}

    def render(self):
        import mujoco

        xml = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody>'
        model = mujoco.MjModel.from_xml_string(xml + '</mujoco>')
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        renderer = mujoco.Renderer(model, 64, 64)
        renderer.update_scene(data)
        return renderer.render()


class Physics(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), 'uint8')
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        import mujoco

    def reset(self, seed=None, options=None):
        return self.observation_space.sample(), {}


gymnasium.register('My/Late-v0', Late)
gymnasium.register('My/Physics-v0', Physics)
"""


class TestMujoco:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        (tmp_path / 'ants_of_mine.py').write_text(ANTS)
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv('MUJOCO_GL', raising=False)
        self.asked = []
        choose = rendering.choose_renderer

        def ask():
            self.asked.append(choose())
            return self.asked[-1]

        monkeypatch.setattr(rendering, 'choose_renderer', ask)

    def make(self, task, module=''):
        kwargs = {**KWARGS, 'gym_import': module}
        return workers.make_workers(f'gym_{task}', 1, kwargs)[0]

    @pytest.mark.parametrize(
        'task, module',
        [
            ('Ant-v5', ''),
            ('Ant', ''),
            ('My/Ant-v0', 'ants_of_mine'),
            ('My/Ant', 'ants_of_mine'),
            ('ants_of_mine:My/Ant-v0', ''),
            ('My/Late-v0', 'ants_of_mine'),
        ],
    )
    def test_whoever_needs_its_renderer_gets_one(self, task, module):
        worker = self.make(task, module)
        worker.start_reset(0)
        assert worker.result()[0]['image'].std() > 5
        worker.restart()
        worker.close()
        assert self.asked and rendering.renderer_in_use() == self.asked[-1]
        assert self.asked[-1] in rendering.LINUX_RENDERERS

    def test_others_do_not_look_for_one(self, monkeypatch):
        self.make('CartPole-v1').close()
        assert not self.asked

    def test_physics_alone_needs_none(self, monkeypatch):
        monkeypatch.setenv('MUJOCO_GL', 'disable')
        worker = self.make('My/Physics-v0', 'ants_of_mine')
        worker.start_reset(0)
        worker.result()
        worker.close()

    def test_none_that_works_is_one_line(self, monkeypatch):
        monkeypatch.setenv('MUJOCO_GL', 'disable')
        with pytest.raises(RuntimeError, match='MUJOCO_GL=disable is set') as caught:
            self.make('My/Ant-v0', 'ants_of_mine')
        assert 'gym_My/Ant-v0' in str(caught.value) and '\n' not in str(caught.value)

    def test_in_the_process_itself(self):
        script = (
            'from support.acting import workers\n'
            "(worker,) = workers.make_workers('gym_My/Ant-v0', 1, "
            "{'gym_import': 'ants_of_mine'}, 'none')\n"
            'worker.start_reset(0)\n'
            "assert worker.result()[0]['image'].std() > 5\n"
        )
        subprocess.run(
            [sys.executable, '-c', script],
            env={**os.environ, 'PYTHONPATH': str(registered.ROOT)},
            check=True,
        )

    @pytest.mark.parametrize('task', ['gym_HumanoidStandup-v5', 'dmc_cheetah_run'])
    def test_remarks_on_models_are_left_out(self, capfd, task):
        (worker,) = workers.make_workers(task, 1, {}, 'process')
        worker.close()
        assert not capfd.readouterr().err
