"""An environment that fails as the files in the folder FAULTS ask for.

Register it with `--gym_import faulty --task gym_Faulty-v0`. At the third step of an
episode it carries out the fault that a file names. A file is removed first, so that its
fault comes once, unless its name begins with `always_`. From the fault `huge` on, all
rewards are so.
"""

import os
import pathlib
import signal
import time

import gymnasium
import numpy as np

LENGTH = 20


class Faulty(gymnasium.Env):
    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def __init__(self, render_mode=None):
        self._huge = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._step = 0
        return self.render(), {}

    def step(self, action):
        self._step += 1
        reward = 1e30 if self._huge else float(self.np_random.uniform())
        if self._step == 3:
            reward = self._fail() or reward
        return self.render(), reward, False, self._step == LENGTH, {}

    def render(self):
        return np.full((64, 64, 3), 10 * self._step, np.uint8)

    def _fail(self):
        paths = sorted(pathlib.Path(os.environ['FAULTS']).iterdir())
        if not paths:
            return None
        kind = paths[0].name.split('_')[-1]
        if not paths[0].name.startswith('always_'):
            paths[0].unlink(missing_ok=True)
        if kind == 'raise':
            raise KeyError('a fault of the environment')
        if kind == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 'exit':
            os._exit(3)
        if kind == 'hang':
            time.sleep(1000)
        self._huge = kind == 'huge'
        return {'nan': np.nan, 'huge': 1e30}[kind]


gymnasium.register('Faulty-v0', Faulty)
