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

# Levels at the top of the simulator's folder. Users add their own there.
LAB_TOP_LEVELS = (
    'lt_chasm lt_hallway_slope lt_horseshoe_color lt_space_bounce_hard '
    'nav_maze_random_goal_01 nav_maze_random_goal_02 nav_maze_random_goal_03 '
    'nav_maze_static_01 nav_maze_static_02 nav_maze_static_03 seekavoid_arena_01 '
    'stairway_to_melon'
).split()

# Levels of which a simulator keeps something from one episode to the next. All those at
# the top are taken for such: eight of the twelve were seen to be, four were not tried.
LAB_STATEFUL = (*LAB_TOP_LEVELS, 'lasertag_one_opponent_small')

# Levels that are in two parts, NAME_train and NAME_test; the others are held out by
# the seeds that `mixerSeed` makes of those of the episodes.
LAB_HELD_OUT = ('rooms_collect_good_objects', 'rooms_exploit_deferred_effects')

# Levels that show images, which are no part of the package: these and, by their paths,
# their like.
LAB_WITH_IMAGES = ('arbitrary_visuomotor_mapping', 'continuous_recognition')
LAB_IMAGES = 2400  # 0001.png and so on

# Of a compiled level, by the endings of its files: how the file begins, where its table
# of parts is, and how many parts there are.
LAB_FILES = {'bsp': (b'IBSP', 8, 17), 'aas': (b'EAAS', 12, 14)}

# The nine actions of the first author's release (look left-right, look up-down,
# strafe, move, fire, jump, crouch), in the notation of the keyword `lab_actions`.
LAB_ACTIONS = (
    '0,0,0,1,0,0,0; 0,0,0,-1,0,0,0; 0,0,-1,0,0,0,0; 0,0,1,0,0,0,0; '
    '-20,0,0,0,0,0,0; 20,0,0,0,0,0,0; -20,0,0,1,0,0,0; 20,0,0,1,0,0,0; '
    '0,0,0,0,1,0,0'
)

LAB_HINT = (
    'DeepMind Lab is not installed: it is on no registry; build its wheel with Bazel '
    'from https://github.com/google-deepmind/lab (target '
    '//python/pip_package:build_pip_package, see docs/deepmind-lab.md here) and '
    'install it with pip'
)

# Where the cause in one of the simulator's errors ends.
LAB_CAUSE_ENDS = re.compile('stack traceback|Map Name:')

# A file of the cache, also one that is being written.
CACHED = re.compile(r'\.?.+_(no)?aas_[0-9a-f]{32}(\..+)?', re.IGNORECASE)


class DeepMindLab(gymnasium.Env):
    """A level of DeepMind Lab, which holds an action for several frames by itself.

    The image of a finished episode is the last one that was seen while it ran: the
    simulator shows none behind the end, which terminates. `info['simulator_steps']`
    is the action repeat, also where a level ends within it, which the simulator does
    not tell.

    An episode is a function of the seed given to `reset` and of the actions. Levels in
    `LAB_STATEFUL` need a fresh simulator for each episode, which takes about half a
    second. `lasertag_three_opponents_small` is not repeatable even so, and other levels
    with opponents and those that users add were not compared.

    Args:
      name: one of `LAB_LEVELS` (DMLab-30), or any other level, as the simulator calls
        it: its path below its folder of levels, without the ending.
      size: height and width of the images in pixels, rounded up to multiples of 4.
      training: whether the episodes are for training.
      action_repeat: frames for which an action is held.
      lab_actions: the actions: integers as the simulator takes them, separated by
        commas; actions are separated by semicolons. Empty for the nine of
        `LAB_ACTIONS`, in which whatever else a level has stays at rest.
      lab_renderer: 'software', or 'hardware' where a GPU renders: the one of the
        environment variable MUJOCO_EGL_DEVICE_ID, if it is set.
      lab_holdout: evaluate on the hold-out levels, which training never shows.
      lab_level_cache: folder that keeps compiled levels; several environments may
        share it. Without one, every episode compiles its level anew.
      lab_dataset: folder of the images that some levels show.
      quiet: leave warnings to another environment of the run.

    Raises:
      ValueError: if there is no such level, if it is not for training, if its images
        are missing, or if the actions are malformed or do not fit it.
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
        self._load = functools.partial(
            self._make, name, level, config, lab_renderer, cache
        )
        self._stateful = level.rpartition('/')[2] in LAB_STATEFUL
        self._env = self._load()
        try:
            self._actions = self._fit_actions(actions, lab_actions)
            # The first episode of a simulator differs from later ones of its seed.
            self._start(0)
        except BaseException:
            self.close()
            raise
        self.action_space = Discrete(len(self._actions))
        self.observation_space = Dict()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self._env is None:  # The simulator would end the process.
            raise RuntimeError(f"'{self._task}' is closed: it cannot be reset")
        if self._stateful:
            self.close()
            self._env = self._load()
        # It takes a seed for every episode, a signed integer of 32 bits.
        self._start(int(self.np_random.integers(2**31)))
        return {}, {}

    def step(self, action):
        if self._env is None:
            raise RuntimeError(f"'{self._task}' is closed: it cannot take a step")
        with self._one_line():
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

    def _make(self, name, level, config, renderer, cache):
        """Return the simulator."""
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
                'needs Python 3.11 or older, dm_env, six, and a setuptools that has '
                'pkg_resources'
            ) from error
        try:
            with self._one_line():
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
            hints.append('levels that it generates need the program zip')
        if self._task.endswith(LAB_WITH_IMAGES):
            hints.append(
                'this level needs images, in a folder that --lab_dataset names'
            )
        with self._one_line(*hints):
            self._env.reset(seed=seed)
            self._image = self._env.observations()['RGB_INTERLEAVED']

    def _fit_actions(self, actions, text):
        """Return the actions, np.intc [A, components], with all that this level has.

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
    def _one_line(self, *hints):
        """Make one line with the cause of the simulator's errors of many lines."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            # Lua writes the cause first, and behind it where it was found. The cause
            # of a map that does not compile goes on with the text of the map.
            text = LAB_CAUSE_ENDS.split(str(error), maxsplit=1)[0]
            text = ' '.join(text.split())
            raise RuntimeError(
                f"DeepMind Lab, '{self._task}': {'; '.join((text, *hints))}"
            ) from error


def _find_level(name, training, holdout):
    """Return the simulator's name of a level, or its hold-out part in evaluation."""
    level = f'contributed/dmlab30/{name}' if name in LAB_LEVELS else name
    stem, _, part = level.rpartition('_')
    if not stem.endswith(LAB_HELD_OUT):
        return level
    if part == 'test' and training:
        train = f'dmlab_{name.removesuffix("test")}train'
        raise ValueError(
            f"'dmlab_{name}' is held out for evaluation: train on '{train}', which "
            '--lab_holdout true evaluates on it'
        )
    return f'{stem}_test' if part == 'train' and holdout and not training else level


def _make_config(name, size, renderer, holdout, dataset):
    """Return the simulator's settings, which it insists on as strings."""
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
    """Raise ValueError where images are missing: it would end an episode midway."""
    wanted = [f'{number:04}.png' for number in range(1, LAB_IMAGES + 1)]
    missing = sorted({*wanted} - {*os.listdir(dataset)})
    if missing:
        raise ValueError(
            f"--lab_dataset is '{dataset}', which lacks {len(missing):,} of the "
            f'{LAB_IMAGES:,} images {wanted[0]} to {wanted[-1]}, {missing[0]} first'
        )


def _parse_actions(text):
    """Return the actions that the text describes, np.intc [A, components]."""
    try:
        return np.array(
            [list(map(int, row.split(','))) for row in text.split(';')], np.intc
        )
    except (ValueError, OverflowError):
        raise ValueError(
            f"The actions '{text}' of DeepMind Lab are not integers, as many in each, "
            f"such as '{LAB_ACTIONS[:30]}'"
        ) from None


class LevelCache:
    """Compiled levels of DeepMind Lab in a folder that processes can share.

    A cache is a convenience: where it cannot be read or written, there is a warning,
    once, and levels are compiled.

    Args:
      directory: the folder; made where it is missing.
      limit: size of all levels in it [bytes]. Those that were used longest ago are
        deleted, now and then; other files stay.
      quiet: give no warning.
    """

    CHECK_EVERY = 100  # writes; a level takes about 50 kB

    def __init__(self, directory, limit=2 * 10**9, quiet=False):
        self._directory = pathlib.Path(directory).absolute()
        self._limit = limit
        self._writes = 0
        self._warned = quiet
        with self._warn():
            self._directory.mkdir(parents=True, exist_ok=True)

    def fetch(self, key, pk3_path):
        """Copy the level to `pk3_path`; return whether there is one that is whole.

        A damaged one would end the process. It is written anew.
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
            with contextlib.suppress(OSError):  # Who may only read it, may do so.
                os.utime(path)
            return True
        return False

    def write(self, key, pk3_path):
        """Store the level at `pk3_path`, whole or not at all."""
        with self._warn():
            level = pathlib.Path(pk3_path).read_bytes()
            atomic.write(self._directory / key, level)
            if self._writes % self.CHECK_EVERY == 0:
                self._make_room()
            self._writes += 1

    def _make_room(self):
        """Delete what was used longest ago, also what killed writers have left."""
        found = []
        for entry in os.scandir(self._directory):
            with contextlib.suppress(FileNotFoundError):  # Another may be deleting too.
                if CACHED.fullmatch(entry.name):
                    found.append((entry.stat().st_mtime, entry.stat().st_size, entry))
        excess = sum(size for _, size, _ in found) - self._limit
        for _, size, entry in sorted(found, key=lambda file: file[0]):
            if excess <= 0:
                break
            pathlib.Path(entry).unlink(missing_ok=True)
            excess -= size

    @contextlib.contextmanager
    def _warn(self):
        """Make a warning of an error of the file system."""
        try:
            yield
        except OSError as error:
            if self._warned:
                return
            self._warned = True
            with contextlib.suppress(OSError):  # Nobody may be listening any more.
                print(
                    f'dreamer: warning: the level cache {self._directory} cannot be '
                    f'used ({error.strerror or error}); levels are compiled',
                    file=sys.stderr,
                    flush=True,
                )


def _is_whole(level, key):
    """Whether the bytes of a level are those of an archive with the map of `key`, which
    is MAP_(aas|noaas)_MD5, and with what its opponents know of it where it is an aas.
    """
    name, kind, _ = key.rsplit('_', 2)
    try:
        with zipfile.ZipFile(io.BytesIO(level)) as archive:
            return not archive.testzip() and all(
                _has_all_parts(archive.read(f'maps/{name}.{ending}'), ending)
                for ending in ('bsp', 'aas')[: 1 + (kind.lower() == 'aas')]
            )
    except Exception:  # Damage has many kinds.
        return False


def _has_all_parts(data, ending):
    """Whether a file of a level goes on to the end of each part that it lists."""
    ident, start, count = LAB_FILES[ending]
    header = np.frombuffer(data[: start + 8 * count], np.uint8).copy()
    if ending == 'aas' and header[4] == 5:  # Version 4 is not scrambled.
        header[8:] ^= (119 * np.arange(len(header) - 8)).astype(np.uint8)
    # Of each part, where it begins and how long it is.
    parts = header[start:].view('<i4').reshape(count, 2).astype(int)
    inside = (parts >= 0).all() and (parts.sum(1) <= len(data)).all()
    return data.startswith(ident) and inside
