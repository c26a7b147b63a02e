"""Any environment that is registered with Gymnasium."""

import importlib
import os
import sys

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from envs import action_box, did_you_mean


class GymnasiumTask(gymnasium.Env):
    """Any registered Gymnasium environment.

    Its observation is the image, if it is one (uint8, [H, W], [H, W, 1] or [H, W, 3]);
    otherwise its rendering is. Actions of several dimensions are flattened.

    Args:
      name: Id of the environment.
      gym_import: Module to import first, which registers the environment; it may lie
        in the current folder.

    Raises:
      ValueError: If there is no such environment or module, or if there are neither
        images nor actions that the agent can work with.
      RuntimeError: If a package that the environment needs is missing.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name, gym_import=''):
        import ale_py

        if 'DREAMER_VERBOSE' not in os.environ:
            gymnasium.logger.min_level = gymnasium.logger.ERROR
        gymnasium.register_envs(ale_py)
        # Users expect to find their own modules, which a script does not search for in
        # the current folder. Behind all others, so that they shadow none.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        if gym_import:
            self._import(gym_import)
        self._env = self._make(name)
        self._from_observation = self._is_image(self._env.observation_space)
        self.observation_space = Dict()
        try:
            self.action_space = self._flatten(name, self._env.action_space)
            if not self._from_observation:
                self._render(name)
        except BaseException:
            self._env.close()
            raise

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._observation, _ = self._env.reset(seed=seed, options=options)
        return {}, {}

    def step(self, action):
        space = self._env.action_space
        if isinstance(space, Box):
            action = np.reshape(action, space.shape).astype(space.dtype)
            # Of a bound in float64, float32 can be a little on the other side.
            action = np.clip(action, space.low, space.high)
        self._observation, reward, terminated, truncated, _ = self._env.step(action)
        # Some give arrays of one number.
        reward = float(np.asarray(reward).item())
        return {}, reward, bool(terminated), bool(truncated), {}

    def render(self):
        image = self._observation if self._from_observation else self._env.render()
        if image.ndim == 2:
            image = image[..., None]
        return np.broadcast_to(image, (*image.shape[:2], 3))

    def close(self):
        self._env.close()

    @staticmethod
    def _import(module):
        try:
            importlib.import_module(module)
        except Exception as error:  # It is another's code.
            text = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise ValueError(
                f"Cannot import the module '{module}' of --gym_import: {text}"
            ) from error

    @staticmethod
    def _make(name, **kwargs):
        try:
            return gymnasium.make(name, disable_env_checker=True, **kwargs)
        except Exception as error:  # Each environment has its own kinds.
            text = ' '.join(str(error).split())
            if name in gymnasium.registry:
                raise RuntimeError(f"Cannot make 'gym_{name}': {text}") from error
            hint = did_you_mean(name, list(gymnasium.registry), 'gym')
            raise ValueError(
                f"Unknown task 'gym_{name}'{hint}: {text} (third parties register "
                'theirs in a module, which --gym_import names).'
            ) from error

    @staticmethod
    def _is_image(space):
        return (
            isinstance(space, Box)
            and space.dtype == np.uint8
            and (len(space.shape) == 2 or space.shape[2:] in ((1,), (3,)))
        )

    @staticmethod
    def _flatten(name, space):
        """Returns the action space in the form that the agent's heads fit."""
        if isinstance(space, Discrete):
            return space
        if not isinstance(space, Box) or space.dtype.kind != 'f' or 0 in space.shape:
            raise ValueError(
                f"'gym_{name}' has the action space {space}, which no action head "
                'fits: there are heads for Box (of floats) and Discrete.'
            )
        return action_box(space.low.ravel(), space.high.ravel())

    def _render(self, name):
        """Makes the environment anew so that it renders, and sees to it that it does.

        A worker would otherwise meet the error in its first episode.
        """
        if 'rgb_array' not in self._env.metadata.get('render_modes', []):
            raise ValueError(
                f"'gym_{name}' has no images: its observations are none, and it has no "
                "render_mode 'rgb_array'."
            )
        self._env.close()
        self._env = self._make(name, render_mode='rgb_array')
        self.reset()
        try:
            image = np.asarray(self._env.render())
        except Exception as error:  # Each simulator has its own kinds.
            text = ' '.join(str(error).split())
            raise RuntimeError(f"Cannot render 'gym_{name}': {text}") from error
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"'gym_{name}' renders {image.dtype} {image.shape}, not images uint8 "
                '(H, W, 3).'
            )
