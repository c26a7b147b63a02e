"""A stand-in for the package `deepmind_lab`, which cannot be installed from anywhere.

It does what was seen of the real one and refuses what that refuses, with errors of the
same types and lengths; where the real one checks nothing, neither does it. Put its
folder on PYTHONPATH. A level lasts `LENGTH` frames; each frame of moving forward brings
a reward of 1. The image says what it shows: its red is the frame, its green 255 in the
first episode of a simulator, which is like no later one of the same seed, and its blue
the seed. In `STATEFUL` levels its green is the number of the episode instead: there no
two episodes of a simulator are alike.
"""

import hashlib
import os
import random
import signal
import sys
import tempfile
import zipfile

import numpy as np

LENGTH = 50
SPEC = [
    {'name': 'LOOK_LEFT_RIGHT_PIXELS_PER_FRAME', 'min': -512, 'max': 512},
    {'name': 'LOOK_DOWN_UP_PIXELS_PER_FRAME', 'min': -512, 'max': 512},
    {'name': 'STRAFE_LEFT_RIGHT', 'min': -1, 'max': 1},
    {'name': 'MOVE_BACK_FORWARD', 'min': -1, 'max': 1},
    {'name': 'FIRE', 'min': 0, 'max': 1},
    {'name': 'JUMP', 'min': 0, 'max': 1},
    {'name': 'CROUCH', 'min': 0, 'max': 1},
]
FURTHER = [
    {'name': 'SWITCH_GADGET', 'min': -1, 'max': 1},
    {'name': 'SELECT_GADGET', 'min': 0, 'max': 10},
]
LEVELS = {
    'lt_chasm',
    'nav_maze_static_01',
    'users_own_level',
    'tests/custom_actions_test',
    'tests/empty_room_test',
    'contributed/dmlab30/explore_goal_locations_small',
    'contributed/dmlab30/lasertag_one_opponent_small',
    'contributed/dmlab30/psychlab_arbitrary_visuomotor_mapping',
    'contributed/dmlab30/psychlab_continuous_recognition',
    'contributed/dmlab30/rooms_collect_good_objects_test',
    'contributed/dmlab30/rooms_collect_good_objects_train',
    'contributed/dmlab30/rooms_exploit_deferred_effects_test',
    'contributed/dmlab30/rooms_exploit_deferred_effects_train',
    'contributed/dmlab30/rooms_watermaze',
}
HELD_OUT = ('rooms_collect_good_objects_test', 'rooms_exploit_deferred_effects_test')
WITH_IMAGES = ('arbitrary_visuomotor_mapping', 'continuous_recognition')
STATEFUL = ('lt_chasm', 'nav_maze_static_01', 'lasertag_one_opponent_small')
WITH_OPPONENTS = ('lasertag_one_opponent_small',)
OBSERVATIONS = {'RGB_INTERLEAVED', 'RGBD_INTERLEAVED', 'RGB', 'RGBD'}

created = []
compiled = []
compiler_works = True


class Lab:
    def __init__(
        self, level, observations, config=None, renderer='software', level_cache=None
    ):
        config = {} if config is None else config
        for name, value, kind in (
            ('level', level, str),
            ('observations', observations, list),
            ('config', config, dict),
            ('renderer', renderer, str),
        ):
            if not isinstance(value, kind):
                raise TypeError(f'{name} must be {kind.__name__}, not {type(value)}')
        if renderer not in ('', 'software', 'hardware'):
            raise RuntimeError(
                'Failed to set renderer must be "hardware" or "software" actual '
                f'"{renderer}"!'
            )
        self._settings = {'width': '320', 'height': '240', 'logLevel': 'INFO'}
        for key, value in config.items():
            self._set(key, value)
        self.level, self.config, self.renderer = level, config, renderer
        self.level_cache = level_cache
        self._initialize(level)
        for name in observations:
            if name not in OBSERVATIONS:
                raise ValueError(f"Unknown observation '{name}'.")
        self._observations = observations
        self.seeds, self.actions = [], []
        # None before the first reset.
        self._frame, self._closed = None, False
        created.append(self)

    def action_spec(self):
        further = self.level == 'tests/custom_actions_test'
        return [dict(entry) for entry in SPEC + FURTHER * further]

    def reset(self, episode=-1, seed=None):
        if seed is None:
            seed = random.randrange(2**31)
        elif not isinstance(seed, int):
            raise ValueError(
                f"'seed' must be int or None, was '{type(seed).__name__}'."
            )
        if self._closed:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.level.endswith(WITH_IMAGES) and 'datasetPath' not in self._settings:
            raise RuntimeError(
                _lua(
                    'start',
                    'datasets/brady_konkle_oliva2008.lua:40: \n Follow instructions '
                    'to download datasets here: \n '
                    '"data/brady_konkle_oliva2008/README.md"\n and update '
                    'DATASET_PATH to point the data folder.',
                )
            )
        self.seeds.append(seed)
        self._compile(seed % 2)
        self._frame = 0
        return True

    def step(self, action, num_steps=1):
        if not isinstance(action, np.ndarray):
            raise TypeError(f'argument 1 must be numpy.ndarray, not {type(action)}')
        if not isinstance(num_steps, int):
            raise TypeError(f"'{type(num_steps)}' object cannot be an integer")
        if not self.is_running():
            raise RuntimeError('Environment in wrong status to advance.')
        count = len(self.action_spec())
        if action.shape != (count,):
            raise ValueError(f'action must have shape ({count})')
        if action.dtype != np.intc:
            raise ValueError('action must have dtype np.intc')
        self.actions.append((*map(int, action), num_steps))
        frames = min(num_steps, LENGTH - self._frame)
        if self._frame < 10 <= self._frame + frames:
            self._show_an_image()
        self._frame += frames
        # Nothing is checked against the bounds: forward 2 moves backwards.
        return float(frames * (action[3] == 1))

    def is_running(self):
        return not self._closed and self._frame is not None and self._frame < LENGTH

    def observations(self):
        if not self.is_running():
            raise RuntimeError('Environment in wrong status for call to observations()')
        shape = int(self._settings['height']), int(self._settings['width']), 3
        image = np.full(shape, self._frame, np.uint8)
        first, stateful = len(self.seeds) == 1, self.level.endswith(STATEFUL)
        image[..., 1] = len(self.seeds) if stateful else 255 * first
        image[..., 2] = self.seeds[-1] % 256
        return {name: image for name in self._observations}

    def close(self):
        closed, self._closed = self._closed, True
        return not closed

    def _set(self, key, value):
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError('bad argument type for built-in operation')
        fault = ''
        if key in ('width', 'height', 'mixerSeed', 'gpuDeviceIndex'):
            if not value.lstrip('-').isdigit():
                fault = f"Invalid integer '{value}'"
            elif key in ('width', 'height') and (int(value) < 4 or int(value) % 4):
                fault = f"'{key}' must be a positive multiple of 4. Actual {value}"
            elif key == 'mixerSeed' and not 0 <= int(value) < 2**32:
                fault = 'Invalid mixerSeed value'
        if fault:
            raise RuntimeError(
                f'Failed to apply setting \'{key} = {value}\' - "{fault}"'
            )
        self._settings[key] = value

    def _initialize(self, level):
        if level not in LEVELS:
            path = f'/baselab/game_scripts/levels/{level}.lua'
            raise RuntimeError(
                _lua('init', f'Level not found: cannot open {path}: No such file')
            )
        log_level = self._settings['logLevel']
        if log_level not in ('NEVER', 'ERROR', 'WARN', 'INFO') and not (
            log_level.isdigit()
        ):
            raise RuntimeError(_lua('init', f"Invalid logLevel '{log_level}'"))
        allowed = self._settings.get('allowHoldOutLevels') == 'true'
        if level.endswith(HELD_OUT) and not allowed:
            raise RuntimeError(
                _lua(
                    'init',
                    'decorators/test_only.lua:35: This level must only be used during '
                    'evaluation. For training, use the *_train.lua version of the '
                    'level.',
                )
            )

    def _show_an_image(self):
        """Read one of the images of the level, some time after the start."""
        if self.level.endswith(WITH_IMAGES):
            path = f'{self._settings["datasetPath"]}/0001.png'
            if not os.path.exists(path):
                raise RuntimeError(_lua('step', f'cannot open {path}'))

    def _compile(self, variant):
        """Compile the map, of which this level has two, as the file of the cache."""
        name = self.level.rpartition('/')[2]
        aas = self.level.endswith(WITH_OPPONENTS)
        digest = hashlib.md5(b'%d' % variant).hexdigest()
        key = f'{name}_{"aas" if aas else "noaas"}_{digest}'
        bsp = _make_file(b'IBSP', 46, b'', 17, key)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, f'{name}.pk3')
            if self.level_cache is None or not self.level_cache.fetch(key, path):
                if not compiler_works:
                    maze = '*************\n* P       G *\n' * 15
                    raise RuntimeError(
                        _lua(
                            'start',
                            f'Failed to compile map.\nMap Name:\n{name}Entity Layer:\n'
                            f'{maze}Variations Layer:\n',
                        )
                    )
                compiled.append(key)
                with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr(f'maps/{name}.bsp', bsp)
                    if aas:
                        data = _make_file(b'EAAS', 5, bytes(4), 14, key)
                        archive.writestr(f'maps/{name}.aas', _scramble(data))
                if self.level_cache is not None:
                    self.level_cache.write(key, path)
            try:
                with zipfile.ZipFile(path) as archive:
                    fine = archive.read(f'maps/{name}.bsp') == bsp
            except Exception:
                fine = False
            if not fine:
                print(f"ERROR: Didn't find map {name}", file=sys.stderr, flush=True)
                os._exit(1)


def _make_file(ident, version, checksum, count, text):
    """A file of the engine's: a table of `count` parts, and the parts."""
    part = f'{text}\n'.encode() * 50
    table = len(ident) + 4 + len(checksum) + 8 * count
    return b''.join(
        [
            ident,
            version.to_bytes(4, 'little'),
            checksum,
            *(
                (table + i * len(part)).to_bytes(4, 'little')
                + len(part).to_bytes(4, 'little')
                for i in range(count)
            ),
            part * count,
        ]
    )


def _scramble(data):
    """The form of an .aas of version 5, behind its version."""
    end = 12 + 8 * 14
    middle = bytes(byte ^ i * 119 % 256 for i, byte in enumerate(data[8:end]))
    return data[:8] + middle + data[end:]


def _lua(function, message):
    """An error of a level's script, with the lines that Lua adds behind the cause."""
    return (
        f'Failed to {function} environment - "[string]:1: {message}\n'
        'stack traceback:\n'
        "\t[C]: in function 'assert'\n"
        f"\t/baselab/game_scripts/levels/level.lua:31: in function '{function}'\""
    )
