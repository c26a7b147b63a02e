"""The tasks, as Gymnasium environments that the agent can learn from.

`make` builds the environment of a task, named SUITE_NAME:

    dmc_DOMAIN_TASK     DeepMind Control Suite, rendered by MuJoCo
    atari_GAME          Arcade Learning Environment, with its ROMs
    dmlab_LEVEL         DeepMind Lab, which users build themselves
    gym_ID              any environment that is registered with Gymnasium
    dummy_continuous    a small reaching task that needs no simulator, for tests
    dummy_discrete      one with discrete actions and early termination

Observations are `{'image': uint8 [64, 64, 3]}`, continuous actions are float32
in [-1, 1], discrete ones are one-hot float32 vectors (the space is a `OneHot`).
`terminated` and `truncated` keep Gymnasium's meaning: a state worth nothing from
there on, and an episode that was merely cut short.

This module never imports TensorFlow, and a simulator only where a task needs it:
TensorFlow and Mesa's software renderer crash in one process.
"""

import functools
import os
import subprocess
import sys

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import TimeLimit, TransformAction
from PIL import Image

from dummies import DummyContinuous, DummyDiscrete
from environments import Atari, DeepMindControl, DeepMindLab, GymnasiumTask

SUITES = ('dmc', 'atari', 'dmlab', 'gym', 'dummy')

LINUX_RENDERERS = ('egl', 'osmesa', 'glfw')
OTHER_RENDERERS = ('glfw',)  # The one name that MuJoCo takes on macOS and Windows.

INSTALL_HINT = (
    'install a renderer, with `apt-get install libegl1 libopengl0 libgl1-mesa-dri` or '
    '`apt-get install libosmesa6`'
)

# Run with MUJOCO_GL set. A context can exist and still draw black. Who draws is good
# to know, but no condition.
RENDER_PROBE = """
from dm_control import mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
physics = mujoco.Physics.from_xml_string(scene)
image = physics.render(8, 8)
assert image.any(), 'the rendered image is black'
print('rendered', flush=True)
from OpenGL import GL
with physics.contexts.gl.make_current() as context:
    print(context.call(GL.glGetString, GL.GL_RENDERER).decode())
"""


def make(
    task,
    *,
    action_repeat=2,
    time_limit=1000,
    size=(64, 64),
    training=True,
    render_quality='standard',
    same_game=False,
    lab_actions='',
    lab_renderer='software',
    lab_holdout=False,
    lab_level_cache='',
    gym_import='',
):
    """Builds the environment of a task.

    Args:
      task: Name of the task, SUITE_NAME.
      action_repeat: Simulator steps for which an action is held (paper: 2 in the
        Control Suite, 4 elsewhere). The rewards of these steps are summed.
      time_limit: Length of an episode in simulator steps; reaching it truncates. (In
        DeepMind Lab it is rounded up to whole action repeats.)
      size: Height and width of the images in pixels.
      training: Whether the episodes are for training. In Atari these end with a lost
        life; hold-out levels of DeepMind Lab are for the others.
      render_quality: 'standard', or 'fast' for MuJoCo without shadows and
        multisampling: 3 to 6 times as many images a second where no GPU renders, but
        other images than the published results were made with.
      same_game: In Atari, see `environments.Atari`.
      lab_actions, lab_renderer, lab_holdout, lab_level_cache: In DeepMind Lab, see
        `environments.DeepMindLab`.
      gym_import: For gym_ tasks, see `environments.GymnasiumTask`.

    Returns:
      A `gymnasium.Env` with the observation space `{'image': uint8 [H, W, 3]}`.
      Its images are rendered once an agent step, and `info['simulator_steps']`
      counts the simulator steps that an agent step took.

    Raises:
      ValueError: If there is no such task, or no way to learn it; the message says
        what is possible.
      RuntimeError: If a package that the task needs is missing.
    """
    suite, _, name = task.partition('_')
    if suite not in SUITES or not name:
        raise ValueError(
            f"Unknown task '{task}': a task is SUITE_NAME with one of the suites "
            f"{', '.join(SUITES)}, for example 'dmc_walker_walk'."
        )
    for number, what in (action_repeat, 'action repeat'), (time_limit, 'time limit'):
        if number < 1:
            raise ValueError(f'The {what} must be at least 1, not {number}.')
    if suite == 'dmlab':
        env = DeepMindLab(
            name,
            size,
            training,
            action_repeat,
            lab_actions,
            lab_renderer,
            lab_holdout,
            lab_level_cache,
        )
        env = TimeLimit(env, -(-time_limit // action_repeat))
    else:
        if suite == 'dmc':
            env = DeepMindControl(name, size, render_quality)
            env.render()  # Fails now, not in the first episode, where nothing renders.
        elif suite == 'atari':
            env = Atari(name, training, same_game)
        elif suite == 'gym':
            env = GymnasiumTask(name, gym_import)
        else:
            env = _make_dummy(name, size)
        env = ActionRepeat(TimeLimit(env, time_limit), action_repeat)
    discrete = isinstance(env.action_space, Discrete)
    env = OneHotAction(env) if discrete else _normalize_action(env)
    return ImageObservation(env, size)


def needs_renderer(task):
    """Whether the images of a task are rendered by MuJoCo (see `choose_renderer`)."""
    suite, _, name = task.partition('_')
    spec = gymnasium.registry.get(name) if suite == 'gym' else None
    return suite == 'dmc' or (spec is not None and 'mujoco' in str(spec.entry_point))


def _make_dummy(name, size):
    tasks = {'continuous': DummyContinuous, 'discrete': DummyDiscrete}
    if name not in tasks:
        raise ValueError(
            f"Unknown task 'dummy_{name}': the dummy suite has "
            f'{" and ".join(f"dummy_{task}" for task in tasks)}.'
        )
    return tasks[name](size)


class ActionRepeat(gymnasium.Wrapper):
    """Holds an action for `amount` simulator steps, or until the episode ends.

    The reward is the sum over these steps; `info['simulator_steps']` is their number.
    """

    def __init__(self, env, amount):
        super().__init__(env)
        self._amount = amount

    def step(self, action):
        total, steps = 0.0, 0
        ended = False
        while steps < self._amount and not ended:
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            steps += 1
            ended = terminated or truncated
        info = {**info, 'simulator_steps': steps}
        return obs, total, terminated, truncated, info


class OneHot(Box):
    """A choice among `n` actions as a one-hot vector, float32 [n]."""

    def __init__(self, n, seed=None):
        super().__init__(0, 1, (int(n),), np.float32, seed)

    def sample(self, mask=None, probability=None):
        """Draws an action uniformly; there are no masks."""
        vector = np.zeros(self.shape, np.float32)
        vector[self.np_random.integers(len(vector))] = 1
        return vector

    def contains(self, x):
        return super().contains(x) and np.count_nonzero(x) == 1 and x.max() == 1


class OneHotAction(gymnasium.ActionWrapper):
    """Takes the actions of a Discrete space as one-hot vectors, see `OneHot`.

    Raises:
      ValueError: If an action is not one-hot.
    """

    def __init__(self, env):
        super().__init__(env)
        self.action_space = OneHot(env.action_space.n)

    def action(self, action):
        if not self.action_space.contains(np.asarray(action)):
            raise ValueError(
                f'The action {action} is not a one-hot float32 vector of size '
                f'{self.action_space.shape[0]}.'
            )
        return self.env.action_space.start + np.argmax(action)


class ImageObservation(gymnasium.ObservationWrapper):
    """Observes what the environment renders, as `{'image': uint8 [H, W, 3]}`.

    An image of another size is resized, by bilinear interpolation that averages over
    all pixels it covers.
    """

    def __init__(self, env, size):
        super().__init__(env)
        self.observation_space = Dict(image=Box(0, 255, (*size, 3), np.uint8))
        self._size = tuple(size)

    def observation(self, observation):
        image = self.env.render()
        if image.shape[:2] != self._size:
            height, width = self._size
            image = Image.fromarray(image)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        # A copy: an environment may draw its next image into the same array.
        return {'image': np.array(image)}


def choose_renderer():
    """Returns a value of MUJOCO_GL with which MuJoCo renders here.

    The user's MUJOCO_GL is kept, if it renders. Otherwise the first renderer that
    does is chosen. Each is tried in a short process of its own, because one that
    fails can take its process with it. Set the result as an environment variable
    before dm_control is first imported, with `os.environ.setdefault`.

    Raises:
      RuntimeError: If the user's choice does not render, or if nothing does; the
        message says what does, or what to install.
    """
    names = LINUX_RENDERERS if sys.platform == 'linux' else OTHER_RENDERERS
    chosen = os.environ.get('MUJOCO_GL')
    if chosen:
        error = _render_error(chosen)
        if not error:
            return chosen
        others = [n for n in names if n != chosen and not _render_error(n)]
        instead = f'use MUJOCO_GL={" or ".join(others)}' if others else INSTALL_HINT
        raise RuntimeError(
            f'MUJOCO_GL={chosen} is set, but does not render here ({error}); {instead}.'
        )
    for name in names:
        if not _render_error(name):
            return name
    tried = '; '.join(f'{name}: {_render_error(name)}' for name in names)
    raise RuntimeError(f'MuJoCo cannot render here ({tried}); {INSTALL_HINT}.')


def render_device(name):
    """Returns what draws with MUJOCO_GL=name, as OpenGL names it; empty if unknown.

    'llvmpipe' and 'softpipe' are Mesa's, which draw on the CPU.
    """
    probe = _render_probe(name)
    return probe.stdout.partition('rendered')[2].strip() if probe else ''


@functools.cache
def _render_probe(name):
    try:
        return subprocess.run(
            [sys.executable, '-c', RENDER_PROBE],
            env={**os.environ, 'MUJOCO_GL': name},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return None


def _render_error(name):
    """Returns why MuJoCo does not render with MUJOCO_GL=name; empty if it does."""
    probe = _render_probe(name)
    if not probe:
        return 'no answer'
    # Judged by what it printed: some drivers crash while they are unloaded.
    if 'rendered' in probe.stdout:
        return ''
    lines = probe.stderr.split('\n') if probe.returncode > 0 else []
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1] if lines else f'exit code {probe.returncode}'


def _normalize_action(env):
    """Maps actions in [-1, 1] to the bounds of the environment.

    Components without two finite bounds stay as they are, clipped to [-1, 1]; those
    with equal bounds are that constant.
    """
    space = env.action_space
    finite = np.isfinite(space.low) & np.isfinite(space.high)
    low = np.where(finite, space.low, np.float32(-1))
    high = np.where(finite, space.high, np.float32(1))
    center, half = (low + high) / 2, (high - low) / 2

    def rescale(action):
        # The second clip takes back what rounding puts past a bound.
        return np.clip(center + half * np.clip(action, -1, 1), low, high)

    return TransformAction(env, rescale, Box(-1, 1, low.shape, np.float32))
