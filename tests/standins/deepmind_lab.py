"""A stand-in for the package `deepmind_lab`, which cannot be installed from anywhere.

It implements the documented Python interface strictly and refuses whatever the real
one refuses. Put its folder on PYTHONPATH. A level lasts `LENGTH` frames; each frame of
moving forward brings a reward of 1. The image says which episode and frame it shows.
"""

import os
import tempfile

import numpy as np

LENGTH = 50
BOUNDS = (512, 512, 1, 1, 1, 1, 1)

created = []
compiled = []


class Lab:
    def __init__(
        self, level, observations, config=None, renderer='software', level_cache=None
    ):
        config = config or {}
        if not isinstance(level, str) or not isinstance(observations, list):
            raise TypeError('level is a string and observations are a list')
        if set(observations) - {'RGB_INTERLEAVED', 'RGBD_INTERLEAVED', 'RGB', 'RGBD'}:
            raise ValueError(f'Unknown observation in {observations}.')
        for pair in config.items():
            if not all(isinstance(text, str) for text in pair):
                raise TypeError(f'{pair} in config: key and value must be strings')
        if renderer not in ('software', 'hardware'):
            raise ValueError(f'Unknown renderer {renderer}.')
        self.level, self.config, self.renderer = level, config, renderer
        self.level_cache = level_cache
        self.seeds, self.actions = [], []
        self._shape = (int(config['height']), int(config['width']), 3)
        self._frame, self._closed = None, False
        created.append(self)

    def reset(self, episode=-1, seed=None):
        self._check(not self._closed)
        if type(seed) is not int or not -(2**31) <= seed < 2**31:
            raise TypeError(f'{seed} is no int of the C language')
        self.seeds.append(seed)
        self._frame = 0
        self._compile(f'{self.level.replace("/", "_")}_{seed % 2}')

    def step(self, action, num_steps=1):
        self._check(self.is_running())
        if not isinstance(action, np.ndarray) or action.dtype != np.intc:
            raise TypeError('The action is no array of np.intc.')
        if action.shape != (7,) or (np.abs(action) > BOUNDS).any():
            raise ValueError(f'The action {action} does not fit.')
        if type(num_steps) is not int or num_steps < 1:
            raise TypeError(f'{num_steps} is no number of steps')
        self.actions.append((*map(int, action), num_steps))
        frames = min(num_steps, LENGTH - self._frame)
        self._frame += frames
        return float(frames * max(action[3], 0))

    def is_running(self):
        self._check(not self._closed)
        return self._frame is not None and self._frame < LENGTH

    def observations(self):
        self._check(self.is_running())
        image = np.full(self._shape, self._frame, np.uint8)
        image[..., 2] = self.seeds[-1] % 256
        return {'RGB_INTERLEAVED': image}

    def close(self):
        self._closed = True

    def _check(self, fine):
        if not fine:
            raise RuntimeError('Environment in wrong status for call.')

    def _compile(self, key):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'level.pk3')
            if self.level_cache and self.level_cache.fetch(key, path):
                with open(path) as file:
                    assert file.read() == key * 1000
                return
            compiled.append(key)
            with open(path, 'w') as file:
                file.write(key * 1000)
            if self.level_cache:
                self.level_cache.write(key, path)
