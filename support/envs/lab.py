"""Levels of DeepMind Lab, and their cache."""

import contextlib
import functools
import io
import os
import pathlib
import re
import shutil
import sys
import zipfile

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete

from support.envs import did_you_mean
from support.system import atomic

LAB_LEVELS = (
    'rooms_collect_good_objects_train rooms_collect_good_objects_test '
    'rooms_exploit_deferred_effects_train rooms_exploit_deferred_effects_test '
    'rooms_select_nonmatching_object rooms_watermaze rooms_keys_doors_puzzle '
    'language_select_described_object language_select_located_object '
    'language_execute_random_task language_answer_quantitative_question '
    'lasertag_one_opponent_small lasertag_three_opponents_small '
    'lasertag_one_opponent_large lasertag_three_opponents_large '
    'natlab_fixed_large_map natlab_varying_map_regrowth '
    'natlab_varying_map_randomized skymaze_irreversible_path_hard '
    'skymaze_irreversible_path_varied psychlab_arbitrary_visuomotor_mapping '
    'psychlab_continuous_recognition psychlab_sequential_comparison '
    'psychlab_visual_search explore_object_locations_small '
    'explore_object_locations_large explore_obstructed_goals_small '
    'explore_obstructed_goals_large explore_goal_locations_small '
    'explore_goal_locations_large explore_object_rewards_few '
    'explore_object_rewards_many'
).split()

# Levels at the top of the simulator's folder, where users can add levels.
LAB_TOP_LEVELS = (
    'lt_chasm lt_hallway_slope lt_horseshoe_color lt_space_bounce_hard '
    'nav_maze_random_goal_01 nav_maze_random_goal_02 nav_maze_random_goal_03 '
    'nav_maze_static_01 nav_maze_static_02 nav_maze_static_03 seekavoid_arena_01 '
    'stairway_to_melon'
).split()

# Levels whose simulator carries something over from one episode to the next. Eight of
# the twelve top levels were seen to do so. The other four were not tried.
LAB_STATEFUL = (*LAB_TOP_LEVELS, 'lasertag_one_opponent_small')

# Levels with a part for training, NAME_train, and a hold-out part, NAME_test. Other
# levels get hold-out episodes from `mixerSeed`, which changes the episodes' seeds.
LAB_WITH_TEST_PARTS = ('rooms_collect_good_objects', 'rooms_exploit_deferred_effects')

# Ends of the names of levels that show images from outside of the package.
LAB_WITH_IMAGES = ('arbitrary_visuomotor_mapping', 'continuous_recognition')
LAB_IMAGE_COUNT = 2400  # From 0001.png on.

# For each kind of file in a compiled level: its first bytes, the position of its table
# of parts, and the number of parts.
LAB_FILE_FORMATS = {'bsp': (b'IBSP', 8, 17), 'aas': (b'EAAS', 12, 14)}

# TF1's nine actions (look left-right, look up-down, strafe, move, fire, jump, crouch),
# written as the argument `lab_actions` is.
LAB_ACTIONS = (
    '0,0,0,1,0,0,0; 0,0,0,-1,0,0,0; 0,0,-1,0,0,0,0; 0,0,1,0,0,0,0; '
    '-20,0,0,0,0,0,0; 20,0,0,0,0,0,0; -20,0,0,1,0,0,0; 20,0,0,1,0,0,0; '
    '0,0,0,0,1,0,0'
)

LAB_HINT = (
    'DeepMind Lab is not installed, and is on no registry; build its wheel with Bazel '
    'from https://github.com/google-deepmind/lab (target '
    '//python/pip_package:build_pip_package, see docs/deepmind-lab.md here) and '
    'install it with pip'
)

# Words that follow the cause in an error of the simulator.
LAB_AFTER_CAUSE = re.compile('stack traceback|Map Name:')

# Names of the cache's files, also of unfinished ones.
LAB_CACHED = re.compile(r'\.?.+_(no)?aas_[0-9a-f]{32}(\..+)?', re.IGNORECASE)


class DeepMindLab(gymnasium.Env):
    """A level of DeepMind Lab. The simulator holds an action for several frames.

    The simulator shows no image after the end of an episode, which terminates. The last
    image before the end is repeated. `info['simulator_steps']` is the action repeat,
    also in the last step, because the simulator does not tell how many frames it took.

    The seed given to `reset` and the actions determine an episode. For this, levels in
    `LAB_STATEFUL` need a new simulator for each episode, which takes about half a
    second. `lasertag_three_opponents_small` is not repeatable even so. Other levels
    with opponents and levels that users add were not tried.

    Args:
      name: one of `LAB_LEVELS` (DMLab-30), or the path of another level below the
        simulator's folder of levels, without the ending.
      size: height and width of the images in pixels, rounded up to multiples of 4.
      training: whether the episodes are for training.
      action_repeat: frames for which an action is held.
      lab_actions: the actions, separated by semicolons. Each is a list of the
        simulator's integers, separated by commas. Empty means `LAB_ACTIONS`, padded
        with zeros for levels with more components.
      lab_renderer: 'software', or 'hardware' for a GPU, which the environment variable
        MUJOCO_EGL_DEVICE_ID can choose.
      lab_holdout: evaluate on the hold-out levels, which training never shows.
      lab_level_cache: folder of compiled levels, which environments may share. Without
        it, every episode compiles its level anew.
      lab_dataset: folder of the images that some levels show.
      quiet: give no warnings, because another environment of the run gives them.

    Raises:
      ValueError: if the level does not exist or is not for training, if its images are
        missing, or if the actions are malformed or do not fit.
      RuntimeError: if the package is not installed, or the level cannot be loaded.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(
        self,
        name,
        size=(64, 64),
        training=True,
        action_repeat=4,
        lab_actions='',
        lab_renderer='software',
        lab_holdout=False,
        lab_level_cache='',
        lab_dataset='',
        quiet=False,
    ):
        self._task = f'dmlab_{name}'
        self._repeat = action_repeat
        actions = _parse_actions(lab_actions or LAB_ACTIONS)
        if lab_renderer not in ('software', 'hardware'):
            raise ValueError(
                f"Unknown renderer '{lab_renderer}' of DeepMind Lab: use 'software' or "
                "'hardware'"
            )
        holdout = lab_holdout and not training
        config = _make_config(name, size, lab_renderer, holdout, lab_dataset)
        cache = LevelCache(lab_level_cache, quiet=quiet) if lab_level_cache else None
        level = _find_level(name, training, lab_holdout)
        self._make = functools.partial(
            self._new_simulator, name, level, config, lab_renderer, cache
        )
        self._stateful = level.rpartition('/')[2] in LAB_STATEFUL
        self._env = self._make()
        try:
            self._actions = self._fit_actions(actions, lab_actions)
            # With the same seed, a simulator's first episode differs from later ones.
            self._start(0)
        except BaseException:
            self.close()
            raise
        self.action_space = Discrete(len(self._actions))
        self.observation_space = Dict()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self._env is None:  # A closed simulator would end the process.
            raise RuntimeError(f"'{self._task}' is closed: it cannot be reset")
        if self._stateful:
            self.close()
            self._env = self._make()
        # The simulator takes signed seeds of 32 bits.
        self._start(int(self.np_random.integers(2**31)))
        return {}, {}

    def step(self, action):
        if self._env is None:
            raise RuntimeError(f"'{self._task}' is closed: it cannot take a step")
        with self._shortened_errors():
            reward = self._env.step(self._actions[action], num_steps=self._repeat)
            running = self._env.is_running()
            if running:
                self._image = self._env.observations()['RGB_INTERLEAVED']
        info = {'simulator_steps': self._repeat}
        return {}, float(reward), not running, False, info

    def render(self):
        return self._image

    def close(self):
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _new_simulator(self, name, level, config, renderer, cache):
        """Return a simulator of the level; raise errors that say what is missing."""
        unknown = ''
        if '/' not in name and name not in LAB_LEVELS + LAB_TOP_LEVELS:
            hint = did_you_mean(name, LAB_LEVELS + LAB_TOP_LEVELS, 'dmlab')
            unknown = (
                f"Unknown task '{self._task}'{hint}: the levels are "
                f'{", ".join(LAB_LEVELS)}, and others as the simulator calls them, '
                'such as lt_chasm or tests/empty_room_test'
            )
        try:
            import deepmind_lab
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError)
            if missing and error.name == 'deepmind_lab':
                if unknown:
                    raise ValueError(unknown) from error
                raise RuntimeError(f'{LAB_HINT} ({error})') from error
            raise RuntimeError(
                f'DeepMind Lab is installed, but cannot be imported ({error}): it '
                'needs Python 3.11 or older, dm_env, six, and a setuptools with '
                'pkg_resources'
            ) from error
        try:
            with self._shortened_errors():
                return deepmind_lab.Lab(
                    level,
                    ['RGB_INTERLEAVED'],
                    config=config,
                    renderer=renderer,
                    level_cache=cache,
                )
        except RuntimeError as error:
            if unknown and 'Level not found' in str(error):
                raise ValueError(f'{unknown} ({error})') from error
            raise

    def _start(self, seed):
        hints = []
        if not shutil.which('zip'):
            hints.append('generated levels need the program zip')
        if self._task.endswith(LAB_WITH_IMAGES):
            hints.append(
                'this level needs images, in a folder that --lab_dataset names'
            )
        with self._shortened_errors(*hints):
            self._env.reset(seed=seed)
            self._image = self._env.observations()['RGB_INTERLEAVED']

    def _fit_actions(self, actions, text):
        """Return the actions with all components of the level, np.intc [A, components].

        The simulator checks no bounds: moving forward by 2 moves backwards.
        """
        spec = self._env.action_spec()
        if not text and actions.shape[1] < len(spec):
            actions = np.pad(actions, [(0, 0), (0, len(spec) - actions.shape[1])])
        fault = ''
        if actions.shape[1] != len(spec):
            fault = f'they have {actions.shape[1]} components'
        else:
            low, high = ([part[key] for part in spec] for key in ('min', 'max'))
            for row, column in np.argwhere((actions < low) | (actions > high))[:1]:
                fault = f'action {row + 1} has the component {actions[row, column]}'
        if not fault:
            return actions
        bounds = ', '.join('{name} {min} to {max}'.format(**part) for part in spec)
        raise ValueError(
            f"The actions '{text or LAB_ACTIONS}' do not fit '{self._task}': {fault}, "
            f'and its {len(spec)} are {bounds}'
        )

    @contextlib.contextmanager
    def _shortened_errors(self, *hints):
        """Shorten the simulator's errors to one line that says the cause."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            # Lua writes a traceback after the cause. Where a map does not compile, the
            # text of the map follows.
            text = LAB_AFTER_CAUSE.split(str(error), maxsplit=1)[0]
            text = ' '.join(text.split())
            raise RuntimeError(
                f"DeepMind Lab, '{self._task}': {'; '.join((text, *hints))}"
            ) from error


def _find_level(name, training, holdout):
    """Return the simulator's name of a level, or of its hold-out part in evaluation."""
    level = f'contributed/dmlab30/{name}' if name in LAB_LEVELS else name
    stem, _, part = level.rpartition('_')
    if not stem.endswith(LAB_WITH_TEST_PARTS):
        return level
    if part == 'test' and training:
        train = f'dmlab_{name.removesuffix("test")}train'
        raise ValueError(
            f"'dmlab_{name}' is held out for evaluation: train on '{train}' with "
            '--lab_holdout true, which evaluates on it'
        )
    return f'{stem}_test' if part == 'train' and holdout and not training else level


def _make_config(name, size, renderer, holdout, dataset):
    """Return the simulator's settings, all of them strings."""
    height, width = (str(-(-pixels // 4) * 4) for pixels in size)
    config = {'width': width, 'height': height, 'logLevel': 'WARN'}
    if holdout:
        config |= {'allowHoldOutLevels': 'true', 'mixerSeed': '1611489005'}
    if dataset:
        if not os.path.isdir(dataset):
            raise ValueError(f"--lab_dataset is '{dataset}', which is not a folder")
        if name.endswith(LAB_WITH_IMAGES):
            _check_images(dataset)
        config['datasetPath'] = os.path.abspath(dataset)
    if renderer == 'hardware' and os.environ.get('MUJOCO_EGL_DEVICE_ID'):
        config['gpuDeviceIndex'] = os.environ['MUJOCO_EGL_DEVICE_ID']
    return config


def _check_images(dataset):
    """Raise ValueError if images are missing, which would end an episode midway."""
    wanted = [f'{number:04}.png' for number in range(1, LAB_IMAGE_COUNT + 1)]
    missing = sorted({*wanted} - {*os.listdir(dataset)})
    if missing:
        raise ValueError(
            f"--lab_dataset is '{dataset}', which lacks {len(missing):,} of the "
            f'{len(wanted):,} images {wanted[0]} to {wanted[-1]}, {missing[0]} first'
        )


def _parse_actions(text):
    """Return the actions that the text describes, np.intc [A, components]."""
    try:
        return np.array(
            [list(map(int, row.split(','))) for row in text.split(';')], np.intc
        )
    except (ValueError, OverflowError):
        raise ValueError(
            f"The actions '{text}' of DeepMind Lab are not integers, equally many in "
            f"each action, such as '{LAB_ACTIONS[:30]}'"
        ) from None


class LevelCache:
    """Compiled levels of DeepMind Lab in a folder that processes can share.

    If the folder cannot be read or written, there is one warning, and levels are
    compiled.

    Args:
      directory: the folder, which is created if it is missing.
      limit: largest size of all levels [bytes]. Above it, the levels that were used
        longest ago are deleted every `CHECK_EVERY` writes. Other files stay.
      quiet: give no warning.
    """

    CHECK_EVERY = 100  # At about 50 kB a level, the size changes slowly.

    def __init__(self, directory, limit=2 * 10**9, quiet=False):
        self._directory = pathlib.Path(directory).absolute()
        self._limit = limit
        self._writes = 0
        self._warned = quiet
        with self._warn():
            self._directory.mkdir(parents=True, exist_ok=True)

    def fetch(self, key, pk3_path):
        """Copy a level to `pk3_path`; return whether the cache holds it undamaged.

        A damaged level would end the process. The simulator replaces it.
        """
        path = self._directory / key
        with self._warn():
            try:
                level = path.read_bytes()
            except FileNotFoundError:
                return False
            if not _is_whole(level, key):
                return False
            pathlib.Path(pk3_path).write_bytes(level)
            with contextlib.suppress(OSError):  # The folder may be read-only.
                os.utime(path)
            return True
        return False

    def write(self, key, pk3_path):
        """Store the level at `pk3_path` atomically."""
        with self._warn():
            level = pathlib.Path(pk3_path).read_bytes()
            atomic.write(self._directory / key, level)
            if self._writes % self.CHECK_EVERY == 0:
                self._make_room()
            self._writes += 1

    def _make_room(self):
        """Delete the files used longest ago, also unfinished ones of killed writers."""
        found = []
        for entry in os.scandir(self._directory):
            with contextlib.suppress(FileNotFoundError):  # Others may delete it first.
                if LAB_CACHED.fullmatch(entry.name):
                    found.append((entry.stat().st_mtime, entry.stat().st_size, entry))
        excess = sum(size for _, size, _ in found) - self._limit
        for _, size, entry in sorted(found, key=lambda file: file[0]):
            if excess <= 0:
                break
            pathlib.Path(entry).unlink(missing_ok=True)
            excess -= size

    @contextlib.contextmanager
    def _warn(self):
        """Warn of an error of the file system instead of raising it."""
        try:
            yield
        except OSError as error:
            if self._warned:
                return
            self._warned = True
            with contextlib.suppress(OSError):  # Standard error may be closed.
                print(
                    f'dreamer: warning: the level cache {self._directory} cannot be '
                    f'used ({error.strerror or error}); levels are compiled',
                    file=sys.stderr,
                    flush=True,
                )


def _is_whole(level, key):
    """Whether the bytes of a level are an undamaged archive of the files of `key`.

    The key is MAP_(aas|noaas)_MD5. The files are a map and, for aas, its navigation.
    """
    name, kind, _ = key.rsplit('_', 2)
    try:
        with zipfile.ZipFile(io.BytesIO(level)) as archive:
            return not archive.testzip() and all(
                _has_all_parts(archive.read(f'maps/{name}.{ending}'), ending)
                for ending in ('bsp', 'aas')[: 1 + (kind.lower() == 'aas')]
            )
    except Exception:  # Damage raises errors of many kinds.
        return False


def _has_all_parts(data, ending):
    """Whether a file of a level contains all of each part that its table lists."""
    ident, start, count = LAB_FILE_FORMATS[ending]
    header = np.frombuffer(data[: start + 8 * count], np.uint8).copy()
    if ending == 'aas' and header[4] == 5:  # Version 4 is not scrambled.
        header[8:] ^= (119 * np.arange(len(header) - 8)).astype(np.uint8)
    # The position and the length of each part.
    parts = header[start:].view('<i4').reshape(count, 2).astype(int)
    inside = (parts >= 0).all() and (parts.sum(1) <= len(data)).all()
    return data.startswith(ident) and inside
