"""Games of the Arcade Learning Environment."""

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete

from support.envs import did_you_mean


class Atari(gymnasium.Env):
    """A game of the Arcade Learning Environment; a step is a frame.

    The protocol of Machado et al. 2018, as both releases use it: minimal action set,
    sticky actions, random no-ops, raw scores. The image is the maximum of the last two
    frames, because many games draw their sprites in every other frame. After a reset
    there is only one frame. The seed given to `reset` and the actions determine an
    episode.

    Args:
      name: snake-case name of the game, as ale-py names its ROM.
      training: whether a lost life terminates the episode. Evaluation plays whole
        games.
      same_game: whether the next training episode continues the game after a lost
        life. Otherwise it begins a new game, as in both releases.
      sticky: probability that a frame repeats the action of the frame before.
      noops: a game starts with 1 to `noops` frames without action, or with none if 0.

    Raises:
      ValueError: if there is no such game, or if it needs several players.
    """

    metadata = {'render_modes': ['rgb_array']}
    render_mode = 'rgb_array'

    def __init__(self, name, training=True, same_game=False, sticky=0.25, noops=30):
        import ale_py
        from ale_py import roms

        rom = self._find_rom(name)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        # `step` draws sticky actions. The emulator would draw them from a seed that it
        # reads only when it loads a ROM, which takes far longer than a reset.
        self.ale.setFloat('repeat_action_probability', 0)
        self.ale.setInt('random_seed', 0)
        self.ale.loadROM(roms.get_rom_path(rom))
        self._initial_state = self.ale.cloneState()
        self._actions = self.ale.getMinimalActionSet()
        # All games take this action, also those whose minimal set lacks it.
        self._noop = ale_py.Action.NOOP
        self._training, self._same_game = training, same_game
        self._sticky, self._noops = sticky, noops
        self._continues = False
        self.action_space = Discrete(len(self._actions))
        self.observation_space = Dict()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._action = self._noop
        if self._continues:
            self.ale.act(self._noop)
        if not self._continues or self.ale.game_over():
            self._new_game()
        self._continues = False
        self._lives = self.ale.lives()
        self._frames = [self.ale.getScreenRGB()]
        return {}, {}

    def step(self, action):
        if self.np_random.random() >= self._sticky:
            self._action = self._actions[action]
        reward = self.ale.act(self._action)
        self._frames = [self._frames[-1], self.ale.getScreenRGB()]
        lost = self.ale.lives() < self._lives
        self._lives = self.ale.lives()
        over = self.ale.game_over()
        died = self._training and lost
        self._continues = self._same_game and died
        return {}, float(reward), over or died, False, {}

    def render(self):
        return np.maximum.reduce(self._frames)

    @staticmethod
    def _find_rom(name):
        """Return the id of the game's ROM."""
        from ale_py import ALEInterface, roms

        paths = {game: roms.get_rom_path(game) for game in roms.get_all_rom_ids()}
        # Any other ROM makes the emulator end the whole process.
        games = {
            game: game
            for game, path in sorted(paths.items())
            if ALEInterface.isSupportedROM(path)
        }
        games['james_bond'] = 'jamesbond'  # The name in the paper, in snake case.
        if name in games:
            return games[name]
        possible = f'there are {len(games) - 1} games'
        if name in paths:
            raise ValueError(
                f"'atari_{name}' is a game for several players, which one agent cannot "
                f'play: {possible} for one player, such as atari_space_invaders'
            )
        raise ValueError(
            f"Unknown task 'atari_{name}'{did_you_mean(name, games, 'atari')}: "
            f'{possible}, named in snake case, such as atari_space_invaders'
        )

    def _new_game(self):
        # A reset of the emulator alone leaves high scores in its memory.
        self.ale.restoreState(self._initial_state)
        self.ale.reset_game()
        noops = self.np_random.integers(1, self._noops + 1) if self._noops else 0
        for _ in range(noops):
            self.ale.act(self._noop)
            if self.ale.game_over():
                self.ale.reset_game()
