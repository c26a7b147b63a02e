"""Levels of DeepMind Lab, and their cache."""

import os
import shutil
import tempfile

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete

from envs import did_you_mean

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
    '//python/pip_package:build_pip_package, see docs/users/build.md there) and '
    'install it with pip'
)


class DeepMindLab(gymnasium.Env):
    """A level of DeepMind Lab, which holds an action for several frames by itself.

    The image of a finished episode is the last one that was seen while it ran: the
    simulator shows none behind the end, which terminates. `info['simulator_steps']`
    is the action repeat, also where a level ends within it, which the simulator does
    not tell.

    Args:
      name: One of `LAB_LEVELS` (DMLab-30), or the path of any other level, which is
        recognised by a slash.
      size: Height and width of the images in pixels.
      training: Whether the episodes are for training.
      action_repeat: Frames for which an action is held.
      lab_actions: The actions: seven integers each, separated by commas, as the
        simulator takes them; actions are separated by semicolons. Empty for the
        nine of `LAB_ACTIONS`.
      lab_renderer: 'software', or 'hardware' where a GPU renders.
      lab_holdout: Evaluate on the hold-out levels, which training never shows.
      lab_level_cache: Folder that keeps compiled levels; several environments may
        share it. Without one, every episode compiles its level anew.

    Raises:
      ValueError: If there is no such level, or the actions are malformed.
      RuntimeError: If the package is not installed.
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
    ):
        if '/' not in name and name not in LAB_LEVELS:
            hint = did_you_mean(name, LAB_LEVELS, 'dmlab')
            raise ValueError(
                f"Unknown task 'dmlab_{name}'{hint}: the levels are "
                f'{", ".join(LAB_LEVELS)}, and paths such as tests/empty_room_test.'
            )
        if lab_renderer not in ('software', 'hardware'):
            raise ValueError(
                f"Unknown renderer '{lab_renderer}' of DeepMind Lab: use 'software' or "
                "'hardware'."
            )
        self._actions = self._parse(lab_actions or LAB_ACTIONS)
        try:
            import deepmind_lab
        except ImportError as error:
            raise RuntimeError(f'{LAB_HINT} ({error}).') from error
        # All values are strings, which the simulator insists on.
        config = {'width': str(size[1]), 'height': str(size[0]), 'logLevel': 'WARN'}
        if lab_holdout and not training:
            config |= {'allowHoldOutLevels': 'true', 'mixerSeed': '1611489005'}
        self._env = deepmind_lab.Lab(
            name if '/' in name else f'contributed/dmlab30/{name}',
            ['RGB_INTERLEAVED'],
            config=config,
            renderer=lab_renderer,
            level_cache=LevelCache(lab_level_cache) if lab_level_cache else None,
        )
        self._repeat = action_repeat
        self.action_space = Discrete(len(self._actions))
        self.observation_space = Dict()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        # The simulator takes a seed for every episode, a signed integer of 32 bits.
        self._env.reset(seed=int(self.np_random.integers(2**31)))
        self._image = self._env.observations()['RGB_INTERLEAVED']
        return {}, {}

    def step(self, action):
        reward = self._env.step(self._actions[action], num_steps=self._repeat)
        running = self._env.is_running()
        if running:
            self._image = self._env.observations()['RGB_INTERLEAVED']
        info = {'simulator_steps': self._repeat}
        return {}, float(reward), not running, False, info

    def render(self):
        return self._image

    def close(self):
        self._env.close()

    @staticmethod
    def _parse(text):
        """Returns the actions, np.intc [A, 7], that the text describes."""
        try:
            rows = [list(map(int, row.split(','))) for row in text.split(';')]
            actions = np.array(rows, np.intc)
            if actions.shape[1] != 7:
                raise ValueError
        except (ValueError, OverflowError):
            raise ValueError(
                f"The actions '{text}' of DeepMind Lab are not seven integers each, "
                f"such as '{LAB_ACTIONS[:30]}'."
            ) from None
        return actions


class LevelCache:
    """Compiled levels of DeepMind Lab in a folder that processes can share.

    Args:
      directory: The folder; made where it is missing.
    """

    def __init__(self, directory):
        self._directory = directory
        os.makedirs(directory, exist_ok=True)

    def fetch(self, key, pk3_path):
        """Copies the level to `pk3_path`; returns whether there is one."""
        try:
            shutil.copyfile(os.path.join(self._directory, key), pk3_path)
        except FileNotFoundError:
            return False
        return True

    def write(self, key, pk3_path):
        """Stores the level at `pk3_path`, whole or not at all."""
        # A name of its own for every writer; the last one to finish wins.
        handle, temporary = tempfile.mkstemp(prefix='.', dir=self._directory)
        os.close(handle)
        try:
            shutil.copyfile(pk3_path, temporary)
            os.replace(temporary, os.path.join(self._directory, key))
        except BaseException:
            os.unlink(temporary)
            raise
