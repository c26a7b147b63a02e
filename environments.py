"""The environments: what a task is, whatever simulates it.

`wrappers.make` builds them by name and adds what they have in common. Each has
actions of its own (Box or Discrete) and shows itself through `render`, an image
uint8 [H, W, 3]; its observations stay empty. One step is one simulator step, except
in DeepMind Lab, which repeats actions itself.

Simulators are imported inside their classes: a task needs no other task's packages.
"""

import difflib
import importlib
import os
import shutil
import sys
import tempfile

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

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


def did_you_mean(name, names, suite):
    """Returns the part of an error message that names tasks like `name`, if any."""
    spelled = {n.lower(): f'{suite}_{n}' for n in names}
    near = difflib.get_close_matches(name.lower(), spelled)
    return f' (did you mean {" or ".join(map(spelled.get, near))}?)' if near else ''


def action_box(low, high):
    """Returns the float32 Box of actions between `low` and `high` [A].

    Bounds from 1e10 on are none: MuJoCo writes them for an actuator without limits,
    others the largest float.
    """
    low = np.where(low > -1e10, low, -np.inf)
    high = np.where(high < 1e10, high, np.inf)
    return Box(low.astype(np.float32), high.astype(np.float32))


class DeepMindControl(gymnasium.Env):
    """A task of the DeepMind Control Suite; observations are left to the image.

    An episode is a function of the seed given to `reset` and of the actions.

    Raises:
      ValueError: If the suite has no such task.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name, size=(64, 64), render_quality='standard'):
        from dm_control import suite

        domain, task = self._find(name, suite.ALL_TASKS)
        # A few tasks draw properties of the body while they are built. A fixed seed
        # here lets every worker simulate the same body.
        self._env = suite.load(domain, task, task_kwargs={'random': 0})
        spec = self._env.action_spec()
        self.action_space = action_box(spec.minimum, spec.maximum)
        self.observation_space = Dict()
        self._size = size
        # The quadruped's camera 0 stands still and loses it from sight.
        self._camera = 2 if domain == 'quadruped' else 0
        self._env.task.random.seed(None)
        if render_quality == 'fast':  # Takes effect where the first image is rendered.
            quality = self._env.physics.model.vis.quality
            quality.shadowsize = quality.offsamples = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        self._env.reset()
        return {}, {}

    def step(self, action):
        step = self._env.step(action)
        terminated = step.last() and step.discount == 0
        truncated = step.last() and not terminated
        return {}, float(step.reward), terminated, truncated, {}

    def render(self):
        height, width = self._size
        return self._env.physics.render(height, width, camera_id=self._camera)

    def close(self):
        self._env.close()

    @staticmethod
    def _find(name, tasks):
        """Returns domain and task for DOMAIN_TASK, where both can hold underscores."""
        names = {f'{domain}_{task}': (domain, task) for domain, task in tasks}
        names['cup_catch'] = ('ball_in_cup', 'catch')  # The paper's name.
        if name in names:
            return names[name]
        domains = sorted({domain for domain, _ in tasks})
        raise ValueError(
            f"Unknown task 'dmc_{name}'{did_you_mean(name, names, 'dmc')}: the Control "
            f'Suite has {len(tasks)} tasks, dmc_DOMAIN_TASK, in the domains '
            f'{", ".join(domains)}.'
        )


class Atari(gymnasium.Env):
    """A game of the Arcade Learning Environment; a step is a frame.

    The protocol of Machado et al. 2018 as the first author's releases use it: minimal
    action set, sticky actions, random no-ops, raw scores. The image is the maximum of
    the last two frames, because many games draw their sprites in every other frame
    only; behind a reset it is that single frame. An episode is a function of the seed
    given to `reset` and of the actions.

    Args:
      name: Snake-case name of the game, as ale-py's ROM.
      training: Whether a lost life terminates the episode. Evaluation plays whole
        games.
      same_game: Go on in the same game after a lost life; otherwise a new game
        begins, as in both releases.
      sticky: Probability that a frame repeats the action of the frame before.
      noops: Most frames without action at the start of a game; at least one, if not 0.

    Raises:
      ValueError: If there is no such game, or none for a single player.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name, training=True, same_game=False, sticky=0.25, noops=30):
        import ale_py
        from ale_py import roms

        rom = self._find(name)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        # Sticky actions are drawn here: a seed of the emulator's own generator takes
        # effect only where a ROM is loaded, which takes far longer than a reset.
        self._ale.setFloat('repeat_action_probability', 0)
        self._ale.setInt('random_seed', 0)
        self._ale.loadROM(roms.get_rom_path(rom))
        self._loaded = self._ale.cloneState()
        self._actions = self._ale.getMinimalActionSet()
        # The emulator takes it in all games, though a few leave it out of their set.
        self._noop = ale_py.Action.NOOP
        self._training, self._same_game = training, same_game
        self._sticky, self._noops = sticky, noops
        self._goes_on = False
        self.action_space = Discrete(len(self._actions))
        self.observation_space = Dict()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._action = self._noop
        if self._goes_on:
            self._ale.act(self._noop)
        if not self._goes_on or self._ale.game_over():
            self._new_game()
        self._goes_on = False
        self._lives = self._ale.lives()
        self._frames = [self._ale.getScreenRGB()]
        return {}, {}

    def step(self, action):
        if self.np_random.random() >= self._sticky:
            self._action = self._actions[action]
        reward = self._ale.act(self._action)
        self._frames = [self._frames[-1], self._ale.getScreenRGB()]
        lost = self._ale.lives() < self._lives
        self._lives = self._ale.lives()
        over = self._ale.game_over()
        died = self._training and lost
        self._goes_on = self._same_game and died
        return {}, float(reward), over or died, False, {}

    def render(self):
        return np.maximum.reduce(self._frames)

    @staticmethod
    def _find(name):
        """Returns the id of the game's ROM."""
        from ale_py import ALEInterface, roms

        paths = {game: roms.get_rom_path(game) for game in roms.get_all_rom_ids()}
        # The emulator ends the whole process where it is given one of the others.
        games = {
            game: game
            for game, path in sorted(paths.items())
            if ALEInterface.isSupportedROM(path)
        }
        games['james_bond'] = 'jamesbond'  # Snake case of the name in the paper.
        if name in games:
            return games[name]
        possible = f'there are {len(games) - 1} games'
        if name in paths:
            raise ValueError(
                f"'atari_{name}' is a game for several players, which one agent cannot "
                f'play: {possible} for one, such as atari_space_invaders.'
            )
        raise ValueError(
            f"Unknown task 'atari_{name}'{did_you_mean(name, games, 'atari')}: "
            f'{possible}, named in snake case, such as atari_space_invaders.'
        )

    def _new_game(self):
        # A reset of the emulator alone leaves high scores in its memory.
        self._ale.restoreState(self._loaded)
        self._ale.reset_game()
        noops = self.np_random.integers(1, self._noops + 1) if self._noops else 0
        for _ in range(noops):
            self._ale.act(self._noop)
            if self._ale.game_over():
                self._ale.reset_game()


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
        return {}, float(reward), bool(terminated), bool(truncated), {}

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
