"""The environments, as Gymnasium environments that the agent can learn from.

`make` builds the environment of a task, named SUITE_NAME:

    dmc_DOMAIN_TASK     DeepMind Control Suite, rendered by MuJoCo
    dummy_continuous    a small reaching task that needs no simulator, for tests

Observations are `{'image': uint8 [64, 64, 3]}`, continuous actions are float32
in [-1, 1]. `terminated` and `truncated` keep Gymnasium's meaning: a state worth
nothing from there on, and an episode that was merely cut short.

This module never imports TensorFlow, and a simulator only where a task needs it:
TensorFlow and Mesa's software renderer crash in one process.
"""

import difflib
import functools
import os
import subprocess
import sys

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import (
    AddRenderObservation,
    RescaleAction,
    TimeLimit,
    TransformAction,
)

LINUX_RENDERERS = ('egl', 'osmesa', 'glfw')
OTHER_RENDERERS = ('glfw',)  # The one name that MuJoCo takes on macOS and Windows.

INSTALL_HINT = (
    'install a renderer, with `apt-get install libegl1 libopengl0 libgl1-mesa-dri` or '
    '`apt-get install libosmesa6`'
)

# Run with MUJOCO_GL set. A context can exist and still draw black.
RENDER_PROBE = """
from dm_control import mujoco
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>'
image = mujoco.Physics.from_xml_string(scene).render(8, 8)
assert image.any(), 'the rendered image is black'
print('rendered')
"""


def make(
    task,
    *,
    action_repeat=2,
    time_limit=1000,
    size=(64, 64),
    render_quality='standard',
    training=True,
):
    """Builds the environment of a task.

    Args:
      task: Name of the task, SUITE_NAME.
      action_repeat: Simulator steps for which an action is held (paper: 2 in the
        Control Suite). The rewards of these steps are summed.
      time_limit: Length of an episode in simulator steps; reaching it truncates.
      size: Height and width of the images in pixels.
      render_quality: 'standard', or 'fast' for MuJoCo without shadows and
        multisampling: 3 to 6 times as many images a second where no GPU renders, but
        other images than the published results were made with.
      training: Whether the episodes are for training. The suites here treat
        training and evaluation alike.

    Returns:
      A `gymnasium.Env` with the observation space `{'image': uint8 [H, W, 3]}`.
      Its images are rendered once an agent step, and `info['simulator_steps']`
      counts the simulator steps that an agent step took.

    Raises:
      ValueError: If there is no such task; the message says what is possible.
    """
    suite, _, name = task.partition('_')
    if suite not in _SUITES or not name:
        raise ValueError(
            f"Unknown task '{task}': a task is SUITE_NAME with one of the suites "
            f"{', '.join(SUITES)}, for example 'dmc_walker_walk'."
        )
    quality = (render_quality,) if needs_renderer(task) else ()
    env = _SUITES[suite](name, size, *quality)
    env = TimeLimit(env, time_limit)
    if isinstance(env.action_space, Box):
        env = _normalize_action(env)
    env = ActionRepeat(env, action_repeat)
    return AddRenderObservation(env, render_only=False, render_key='image')


def needs_renderer(task):
    """Whether the images of a task are rendered by MuJoCo (see `choose_renderer`)."""
    return task.startswith('dmc_')


class DeepMindControl(gymnasium.Env):
    """A task of the DeepMind Control Suite; observations are left to the image.

    An episode is a function of the seed given to `reset` and of the actions.

    Raises:
      ValueError: If the suite has no such task.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name, size=(64, 64), render_quality='standard'):
        from dm_control import suite

        domain, task = self._find(name, suite.ALL_TASKS)
        # A few tasks draw properties of the body while they are built. A fixed seed
        # here lets every worker simulate the same body.
        self._env = suite.load(domain, task, task_kwargs={'random': 0})
        spec = self._env.action_spec()
        # MuJoCo writes 1e10 for an actuator without limits.
        low = np.where(spec.minimum > -1e10, spec.minimum, -np.inf)
        high = np.where(spec.maximum < 1e10, spec.maximum, np.inf)
        self.action_space = Box(low.astype(np.float32), high.astype(np.float32))
        self.observation_space = Dict()
        self._size = size
        # The quadruped's camera 0 stands still and loses it from sight.
        self._camera = 2 if domain == 'quadruped' else 0
        self._env.task.random.seed(None)
        if render_quality == 'fast':  # Takes effect where the first image is rendered.
            quality = self._env.physics.model.vis.quality
            quality.shadowsize = quality.offsamples = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        self._env.reset()
        return {}, {}

    def step(self, action):
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0
        truncated = step.last() and not terminated
        return {}, float(step.reward), terminated, truncated, {}

    def render(self):
        height, width = self._size
        return self._env.physics.render(height, width, camera_id=self._camera)

    def close(self):
        self._env.close()

    @staticmethod
    def _find(name, tasks):
        """Returns domain and task for DOMAIN_TASK, where both can hold underscores."""
        names = {f'{domain}_{task}': (domain, task) for domain, task in tasks}
        names['cup_catch'] = ('ball_in_cup', 'catch')  # The paper's name.
        if name in names:
            return names[name]
        near = [f'dmc_{n}' for n in difflib.get_close_matches(name, names)]
        hint = f' (did you mean {" or ".join(near)}?)' if near else ''
        domains = sorted({domain for domain, _ in tasks})
        raise ValueError(
            f"Unknown task 'dmc_{name}'{hint}: the Control Suite has {len(tasks)} "
            f'tasks, dmc_DOMAIN_TASK, in the domains {", ".join(domains)}.'
        )


class DummyContinuous(gymnasium.Env):
    """A point has to find a target; only the image shows where the two are.

    Start and target are uniform in the arena [-1, 1]^2 and the action, in [-1, 1]^2,
    moves the point by up to `SPEED` along either axis. The reward is 1 while the
    point is within `RADIUS` of the target and else 0, so that neither a blind policy
    nor one that looks a single step ahead does well. Meant for 50 steps an episode
    and no action repeat. Drawn by NumPy alone.

    Raises:
      ValueError: If the name is not 'continuous'.
    """

    SPEED = 0.25
    RADIUS = 0.4
    BLOB = 0.25  # Standard deviation of what is drawn, 7 pixels of 64.
    MARGIN = 1.14  # The image shows a little more than the arena.

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name='continuous', size=(64, 64)):
        if name != 'continuous':
            raise ValueError(
                f"Unknown task 'dummy_{name}': the dummy suite has dummy_continuous."
            )
        self.action_space = Box(-1, 1, (2,), np.float32)
        self.observation_space = Dict()
        height, width = size
        # Pixel centres in arena coordinates: y [H, 1] and x [1, W], as they broadcast.
        self._y = self.MARGIN * ((2 * np.arange(height) + 1) / height - 1)[:, None]
        self._x = self.MARGIN * ((2 * np.arange(width) + 1) / width - 1)[None, :]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._point, self._target = self.np_random.uniform(-1, 1, (2, 2))
        return {}, {}

    def step(self, action):
        move = self.SPEED * np.clip(action, -1, 1)
        self._point = np.clip(self._point + move, -1, 1)
        distance = np.linalg.norm(self._target - self._point)
        return {}, float(distance < self.RADIUS), False, False, {}

    def render(self):
        """Draws the point in red and the target in green, uint8 [H, W, 3].

        Soft blobs, so that a small network learns them soon and motion of less than a
        pixel can be seen.
        """
        image = np.zeros((len(self._y), self._x.size, 3), np.uint8)
        for channel, (x, y) in enumerate((self._point, self._target)):
            square = (self._x - x) ** 2 + (self._y - y) ** 2
            image[..., channel] = 255 * np.exp(-square / (2 * self.BLOB**2))
        return image

    def expert_action(self):
        """Returns the action, float32 [2], that moves straight to the target."""
        move = (self._target - self._point) / self.SPEED
        return np.clip(move, -1, 1).astype(np.float32)


class ActionRepeat(gymnasium.Wrapper):
    """Holds an action for `amount` simulator steps, or until the episode ends.

    The reward is the sum over these steps; `info['simulator_steps']` is their number.

    Raises:
      ValueError: If the amount is less than one step.
    """

    def __init__(self, env, amount):
        if amount < 1:
            raise ValueError(f'The action repeat must be at least 1, not {amount}.')
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


@functools.cache
def _render_error(name):
    """Returns why MuJoCo does not render with MUJOCO_GL=name; empty if it does."""
    try:
        probe = subprocess.run(
            [sys.executable, '-c', RENDER_PROBE],
            env={**os.environ, 'MUJOCO_GL': name},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return 'no answer'
    # Judged by what it printed: some drivers crash while they are unloaded.
    if 'rendered' in probe.stdout:
        return ''
    lines = probe.stderr.split('\n') if probe.returncode > 0 else []
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1] if lines else f'exit code {probe.returncode}'


def _normalize_action(env):
    """Maps actions in [-1, 1] to the bounds of the environment.

    Components without two finite bounds stay as they are, clipped to [-1, 1].
    """
    space = env.action_space
    finite = np.isfinite(space.low) & np.isfinite(space.high)
    low = np.where(finite, space.low, np.float32(-1))
    high = np.where(finite, space.high, np.float32(1))
    # The clip also takes back what rescaling rounds past a bound.
    bounded = Box(low, high, dtype=np.float32)
    env = TransformAction(env, lambda action: np.clip(action, low, high), bounded)
    return RescaleAction(env, np.float32(-1), np.float32(1))


_SUITES = {'dmc': DeepMindControl, 'dummy': DummyContinuous}
SUITES = tuple(_SUITES)
