"""The tasks, as Gymnasium environments that the agent can learn from.

`make` builds the environment of a task, named SUITE_NAME:

    dmc_DOMAIN_TASK     DeepMind Control Suite, rendered by MuJoCo
    atari_GAME          Arcade Learning Environment, with its ROMs
    dmlab_LEVEL         DeepMind Lab, which users build themselves
    gym_ID              any environment that is registered with Gymnasium
    dummy_continuous    a small reaching task that needs no simulator, for tests
    dummy_discrete      one with discrete actions and early termination

Observations are dicts of `image` uint8 [64, 64, 3], `state` float32 [V], or both;
continuous actions are float32 in [-1, 1], discrete ones are one-hot float32 vectors
(the space is a `OneHotSpace`).
`terminated` and `truncated` keep Gymnasium's meaning: a state worth nothing from
there on, and an episode that was merely cut short.

This module never imports TensorFlow, and a simulator only where a task needs it:
TensorFlow and Mesa's software renderer crash in one process.
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


# What makes the environments of a suite, and which of the settings it takes.
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
# Those whose observations are images alone.
IMAGES_ONLY = ('atari', 'dmlab')
# What `make` takes besides a task: for all suites, or for one of them.
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
      time_limit: length of an episode in simulator steps; reaching it truncates. (In
        DeepMind Lab it is rounded up to whole action repeats.)
      size: height and width of the images in pixels.
      training: whether the episodes are for training. In Atari these end with a lost
        life; hold-out levels of DeepMind Lab are for the others.
      observes: 'image', 'state', or both.
      film: whether to observe images, too, where the environment can be rendered.
      settings: those of one suite, which the others leave alone: `render_quality` of
        `DeepMindControl`, `same_game` of `Atari`, `lab_...` and `quiet` of
        `DeepMindLab`, `gym_import` of `GymnasiumTask`.

    Returns:
      a `gymnasium.Env` whose observation space is a Dict of `image`, uint8 [H, W, 3],
      `state`, float32 [V], or both. Images are rendered once an agent step, and not at
      all where they are not observed. `info['simulator_steps']` counts the simulator
      steps that an agent step took.

    Raises:
      ValueError: if there is no such task, or no way to learn it; the message says
        what is possible.
      RuntimeError: if a package that the task needs is missing.
      TypeError: if no suite has such a setting.
    """
    suite, _, name = task.partition('_')
    _check(task, action_repeat, time_limit, observes, settings)
    settings.update(action_repeat=action_repeat, size=size, training=training)
    settings.update(observes=observes, film=film)
    maker, names = _MAKERS[suite]
    with _errors_that_name(task):
        env = maker(name, **{k: settings[k] for k in names.split() if k in settings})
        if film and 'image' not in observes and _renders(env):
            observes = (*observes, 'image')
        elif suite == 'dmc' and 'image' in observes:
            env.render()  # Fails now, not in the first episode.
    if suite == 'dmlab':  # Repeats actions by itself.
        env = TimeLimit(env, -(-time_limit // action_repeat))
    else:
        env = ActionRepeat(TimeLimit(env, time_limit), action_repeat)
    discrete = isinstance(env.action_space, Discrete)
    env = OneHotAction(env) if discrete else _normalize_action(env)
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
    if suite in IMAGES_ONLY and 'state' in observes:
        raise ValueError(f"'{task}' has images alone; possible: --observation image")


def _renders(env):
    """Whether an environment has images, which need not be observed."""
    if hasattr(env, 'renders'):  # It has been tried.
        return env.renders
    try:
        env.reset()
        env.render()
        return True
    except Exception:  # Each simulator has its own kinds.
        return False


@contextlib.contextmanager
def _errors_that_name(task):
    """Let the errors of a simulator's construction say which task they are about."""
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
    """Observe what the environment renders, its state, or both, as a dict of `image`,
    uint8 [H, W, 3], and `state`, float32 [V].

    An image of another size is resized, by bilinear interpolation that averages over
    all pixels it covers.

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


def _normalize_action(env):
    """Map actions in [-1, 1] to the bounds of the environment.

    A component with one finite bound has the range of length 2 that begins or ends
    there. One without bounds stays as it is, clipped to [-1, 1]. One with equal bounds
    is that constant.
    """
    low, high = env.action_space.low, env.action_space.high
    open_low, open_high = ~np.isfinite(low), ~np.isfinite(high)
    low = np.where(open_low, np.where(open_high, np.float32(-1), high - 2), low)
    high = np.where(open_high, low + 2, high)
    center, half = (low + high) / 2, (high - low) / 2

    def rescale(action):
        # The second clip takes back what rounding puts past a bound.
        return np.clip(center + half * np.clip(action, -1, 1), low, high)

    return TransformAction(env, rescale, Box(-1, 1, low.shape, np.float32))
