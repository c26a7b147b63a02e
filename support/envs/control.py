"""Tasks of the DeepMind Control Suite."""

import contextlib
import math
import os

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from support.envs import action_box, did_you_mean


@contextlib.contextmanager
def _without_model_warnings():
    """Silence what the suite logs about its models, which users cannot change, unless
    `--verbose` is on.
    """
    from absl import logging

    before = logging.get_verbosity()
    if 'DREAMER_VERBOSE' not in os.environ:
        logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class DeepMindControl(gymnasium.Env):
    """A task of the DeepMind Control Suite; see `state` and `render`.

    The seed given to `reset` and the actions determine an episode.

    Args:
      name: name of the task, DOMAIN_TASK.
      size: height and width of the images in pixels.
      render_quality: 'standard', or 'fast' without shadows and multisampling. Without a
        GPU, 'fast' renders 3 to 6 times as many images a second. These images differ
        from the images behind published results.

    Raises:
      ValueError: if the suite has no such task.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name, size=(64, 64), render_quality='standard'):
        from dm_control import suite

        domain, task = self._split_name(name, suite.ALL_TASKS)
        # A few tasks draw properties of the body while they are built. With a fixed
        # seed all workers simulate the same body.
        with _without_model_warnings():
            self._env = suite.load(domain, task, task_kwargs={'random': 0})
        spec = self._env.action_spec()
        self.action_space = action_box(spec.minimum, spec.maximum)
        self.observation_space = Dict()
        observed = self._env.observation_spec().values()
        self.state_size = sum(math.prod(one.shape) for one in observed)
        self._size = size
        # The quadruped walks out of sight of camera 0, which does not move.
        self._camera = 2 if domain == 'quadruped' else 0
        self._env.task.random.seed(None)
        if render_quality == 'fast':  # MuJoCo reads this before the first image.
            quality = self._env.physics.model.vis.quality
            quality.shadowsize = quality.offsamples = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        self._observation = self._env.reset().observation
        return {}, {}

    def step(self, action):
        step = self._env.step(action)
        self._observation = step.observation
        terminated = step.last() and step.discount == 0
        truncated = step.last() and not terminated
        return {}, float(step.reward), terminated, truncated, {}

    def state(self):
        """Return the task's observations, concatenated in their order, float32 [V]."""
        parts = [np.ravel(value) for value in self._observation.values()]
        return np.concatenate(parts).astype(np.float32)

    def render(self):
        height, width = self._size
        return self._env.physics.render(height, width, camera_id=self._camera)

    def close(self):
        self._env.close()

    @staticmethod
    def _split_name(name, tasks):
        """Return domain and task of DOMAIN_TASK. Both can contain underscores."""
        names = {f'{domain}_{task}': (domain, task) for domain, task in tasks}
        names['cup_catch'] = ('ball_in_cup', 'catch')  # The paper's name.
        if name in names:
            return names[name]
        domains = sorted({domain for domain, _ in tasks})
        raise ValueError(
            f"Unknown task 'dmc_{name}'{did_you_mean(name, names, 'dmc')}: the Control "
            f'Suite has {len(tasks)} tasks, dmc_DOMAIN_TASK, in the domains '
            f'{", ".join(domains)}'
        )
