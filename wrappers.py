"""The tasks, as Gymnasium environments that the agent can learn from.

`make` builds the environment of a task, named SUITE_NAME:

    dmc_DOMAIN_TASK     DeepMind Control Suite, rendered by MuJoCo
    atari_GAME          Arcade Learning Environment, with its ROMs
    dmlab_LEVEL         DeepMind Lab, which users build themselves
    gym_ID              any environment that is registered with Gymnasium
    dummy_continuous    a small reaching task without a simulator, for tests
    dummy_discrete      the same with discrete actions and early termination

Observations are dicts of `image` uint8 [64, 64, 3], `state` float32 [V], or both.
Continuous actions are float32 in [-1, 1]. Discrete actions are one-hot float32 vectors
(the space is a `OneHotSpace`).
`terminated` and `truncated` keep Gymnasium's meaning: after a terminated episode no
reward would follow; a truncated episode was only cut short.

This module imports a simulator only where a task needs it. It never imports
TensorFlow, which crashes in one process with Mesa's software renderer.
"""

import contextlib

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import TimeLimit, TransformAction
from PIL import Image

from support.envs import one_line
from support.envs.atari import Atari
from support.envs.control import DeepMindControl
from support.envs.dummies import DummyContinuous, DummyDiscrete
from support.envs.lab import DeepMindLab
from support.envs.registered import GymnasiumTask


def _make_dummy(name, size):
    tasks = {'continuous': DummyContinuous, 'discrete': DummyDiscrete}
    if name not in tasks:
        raise ValueError(
            f"Unknown task 'dummy_{name}': the dummy suite has "
            f'{" and ".join(f"dummy_{task}" for task in tasks)}'
        )
    return tasks[name](size)


# For each suite, what makes its environments, and the names of the settings it takes.
_MAKERS = dict(
    dmc=(DeepMindControl, 'size render_quality'),
    atari=(Atari, 'training same_game'),
    dmlab=(
        DeepMindLab,
        'size training action_repeat lab_actions lab_renderer lab_holdout '
        'lab_level_cache lab_dataset quiet',
    ),
    gym=(GymnasiumTask, 'gym_import observes film'),
    dummy=(_make_dummy, 'size'),
)
SUITES = tuple(_MAKERS)
# Suites with images alone.
IMAGE_SUITES = ('atari', 'dmlab')
# Arguments of `make` besides the task: those for all suites, and those for some.
SETTINGS = {'action_repeat', 'time_limit', 'size', 'training', 'observes', 'film'}
SETTINGS |= {name for _, names in _MAKERS.values() for name in names.split()}


def make(
    task,
    *,
    action_repeat=2,
    time_limit=1000,
    size=(64, 64),
    training=True,
    observes=('image',),
    film=False,
    **settings,
):
    """Build the environment of a task.

    Args:
      task: name of the task, SUITE_NAME.
      action_repeat: simulator steps for which an action is held (paper: 2 in the
        Control Suite, 4 elsewhere). The rewards of these steps are summed.
      time_limit: simulator steps after which an episode is truncated. DeepMind Lab
        rounds it up to whole action repeats.
      size: height and width of the images in pixels.
      training: whether the episodes are for training. Training episodes of Atari end
        with a lost life; DeepMind Lab keeps hold-out levels for evaluation.
      observes: 'image', 'state', or both.
      film: whether to observe images, too, where the environment can be rendered.
      settings: settings of single suites, which other suites ignore: `render_quality`
        of `DeepMindControl`, `same_game` of `Atari`, `lab_...` and `quiet` of
        `DeepMindLab`, `gym_import` of `GymnasiumTask`.

    Returns:
      a `gymnasium.Env` whose observation space is a Dict of `image`, uint8 [H, W, 3],
      `state`, float32 [V], or both. Images are rendered once an agent step, and only
      if they are observed. `info['simulator_steps']` counts the simulator steps of an
      agent step.

    Raises:
      ValueError: if there is no such task, or if the agent cannot learn it. The
        message says what is possible.
      RuntimeError: if a package that the task needs is missing.
      TypeError: if no suite has such a setting.
    """
    suite, _, name = task.partition('_')
    _check(task, action_repeat, time_limit, observes, settings)
    settings.update(action_repeat=action_repeat, size=size, training=training)
    settings.update(observes=observes, film=film)
    maker, names = _MAKERS[suite]
    with _task_in_errors(task):
        env = maker(name, **{k: settings[k] for k in names.split() if k in settings})
        if film and 'image' not in observes and _renders(env):
            observes = (*observes, 'image')
        elif suite == 'dmc' and 'image' in observes:
            env.render()  # A missing renderer must fail now, not in the first episode.
    if suite == 'dmlab':  # The simulator repeats actions.
        env = TimeLimit(env, -(-time_limit // action_repeat))
    else:
        env = ActionRepeat(TimeLimit(env, time_limit), action_repeat)
    discrete = isinstance(env.action_space, Discrete)
    env = OneHotAction(env) if discrete else normalize_action(env)
    return Observation(env, observes, size)


def _check(task, action_repeat, time_limit, observes, settings):
    """Raise ValueError or TypeError for impossible arguments of `make`."""
    suite, _, name = task.partition('_')
    if suite not in SUITES or not name:
        raise ValueError(
            f"Unknown task '{task}': a task is SUITE_NAME with one of the suites "
            f"{', '.join(SUITES)}, for example 'dmc_walker_walk'"
        )
    for number, what in (action_repeat, 'action repeat'), (time_limit, 'time limit'):
        if number < 1:
            raise ValueError(f'The {what} must be at least 1, not {number}')
    if unknown := settings.keys() - SETTINGS:
        raise TypeError(f'No suite has the settings {sorted(unknown)}')
    if suite in IMAGE_SUITES and 'state' in observes:
        raise ValueError(f"'{task}' has images alone; possible: --observation image")


def _renders(env):
    """Whether an environment can render images."""
    if hasattr(env, 'renders'):  # The environment has tried it.
        return env.renders
    try:
        env.reset()
        env.render()
        return True
    except Exception:  # Each simulator has other kinds.
        return False


@contextlib.contextmanager
def _task_in_errors(task):
    """Add the task's name to errors that a simulator raises when it is built."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if task in str(error):
            raise
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        text = ' '.join(str(error).split()) or one_line(error)
        raise kind(f"Cannot make '{task}': {text}") from error


class ActionRepeat(gymnasium.Wrapper):
    """Hold an action for `amount` simulator steps, or until the episode ends.

    The reward is the sum over these steps. `info['simulator_steps']` counts them.
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


class OneHotSpace(Box):
    """A choice among `n` actions as a one-hot vector, float32 [n]."""

    def __init__(self, n, seed=None):
        super().__init__(0, 1, (int(n),), np.float32, seed)

    def sample(self, mask=None, probability=None):
        """Draw an action uniformly; there are no masks."""
        vector = np.zeros(self.shape, np.float32)
        vector[self.np_random.integers(len(vector))] = 1
        return vector

    def contains(self, x):
        return super().contains(x) and np.count_nonzero(x) == 1 and x.max() == 1


class OneHotAction(gymnasium.ActionWrapper):
    """Take the actions of a Discrete space as one-hot vectors, see `OneHotSpace`.

    Raises:
      ValueError: if an action is not one-hot.
    """

    def __init__(self, env):
        super().__init__(env)
        self.action_space = OneHotSpace(env.action_space.n)

    def action(self, action):
        if not self.action_space.contains(np.asarray(action)):
            raise ValueError(
                f'The action {action} is not a one-hot float32 vector of size '
                f'{self.action_space.shape[0]}'
            )
        return self.env.action_space.start + np.argmax(action)


class Observation(gymnasium.ObservationWrapper):
    """Observe the rendered image, the state, or both, as a dict of `image`, uint8
    [H, W, 3], and `state`, float32 [V].

    Images of another size are resized. Each new pixel is a mean over all the pixels
    that it covers.

    Args:
      observes: 'image', 'state', or both.
      size: height and width of the image in pixels.
    """

    def __init__(self, env, observes, size):
        super().__init__(env)
        spaces = dict(image=Box(0, 255, (*size, 3), np.uint8))
        if 'state' in observes:
            shape = (env.unwrapped.state_size,)
            spaces['state'] = Box(-np.inf, np.inf, shape, np.float32)
        self.observation_space = Dict({name: spaces[name] for name in observes})
        self._size = tuple(size)

    def observation(self, observation):
        return {
            name: self._image() if name == 'image' else self.unwrapped.state()
            for name in self.observation_space
        }

    def _image(self):
        image = self.env.render()
        if image.shape[:2] != self._size:
            height, width = self._size
            image = Image.fromarray(image)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        # A copy: an environment may draw its next image into the same array.
        return np.array(image)


def normalize_action(env):
    """Map actions in [-1, 1] to the bounds of the environment.

    A component with one finite bound has a range of length 2 that begins or ends at
    this bound. A component without bounds is clipped to [-1, 1]. A component with two
    equal bounds is constant.
    """
    low, high = env.action_space.low, env.action_space.high
    open_low, open_high = ~np.isfinite(low), ~np.isfinite(high)
    low = np.where(open_low, np.where(open_high, np.float32(-1), high - 2), low)
    high = np.where(open_high, low + 2, high)
    center, half = (low + high) / 2, (high - low) / 2

    def rescale(action):
        # The second clip is needed because rounding can pass a bound.
        return np.clip(center + half * np.clip(action, -1, 1), low, high)

    return TransformAction(env, rescale, Box(-1, 1, low.shape, np.float32))
