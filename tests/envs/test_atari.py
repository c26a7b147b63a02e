"""Tests of the Atari games, on the real emulator."""

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py import roms
from gymnasium.wrappers import AtariPreprocessing
from PIL import Image

import wrappers
from support.envs.atari import Atari

GAMES = (
    'alien amidar assault asterix asteroids atlantis bank_heist battle_zone beam_rider '
    'berzerk bowling boxing breakout centipede chopper_command crazy_climber defender '
    'demon_attack double_dunk enduro fishing_derby freeway frostbite gopher gravitar '
    'hero ice_hockey jamesbond kangaroo krull kung_fu_master montezuma_revenge '
    'ms_pacman name_this_game phoenix pitfall pong private_eye qbert riverraid '
    'road_runner robotank seaquest skiing solaris space_invaders star_gunner surround '
    'tennis time_pilot tutankham up_n_down venture video_pinball wizard_of_wor '
    'yars_revenge zaxxon'
).split()
SEVERAL = ['breakout', 'pong', 'seaquest', 'space_invaders']


def plain(game, repeat=4, **kwargs):
    """The game without anything random but the actions, at its native size."""
    return wrappers.ActionRepeat(Atari(game, sticky=0, noops=0, **kwargs), repeat)


def raw(game):
    """Return the emulator itself and its actions."""
    ale = ale_py.ALEInterface()
    ale.setFloat('repeat_action_probability', 0)
    ale.loadROM(roms.get_rom_path(game))
    return ale, ale.getMinimalActionSet()


def play(env, rng, limit=10**9):
    """Play at random to the end; yield what `step` returns."""
    for _ in range(limit):
        step = env.step(int(rng.integers(env.action_space.n)))
        yield step
        if step[2] or step[3]:
            return


@pytest.mark.parametrize('game', SEVERAL)
def test_images_rewards_and_end_are_those_of_the_emulator(game):
    """Maximum of the last two frames, also where the game ends within a repeat."""
    rng = np.random.default_rng(0)
    env = plain(game, training=False)
    ale, actions = raw(game)
    for _ in range(2):
        env.reset()
        ale.reset_game()
        np.testing.assert_array_equal(env.render(), ale.getScreenRGB())
        score = 0
        for _ in range(200):
            action = int(rng.integers(len(actions)))
            _, reward, terminated, truncated, info = env.step(action)
            screens, rewards = [env.render() * 0], []
            while len(rewards) < 4 and not ale.game_over():
                rewards.append(ale.act(actions[action]))
                screens.append(ale.getScreenRGB())
            # A game that ends in the first frame shows the frame before as well.
            if len(rewards) > 1:
                expected = np.maximum(*screens[-2:])
                np.testing.assert_array_equal(env.render(), expected)
            assert reward == sum(rewards) and info['simulator_steps'] == len(rewards)
            assert (terminated, truncated) == (ale.game_over(), False)
            score += reward
            if terminated:
                break
        assert score or game not in ('breakout', 'space_invaders')


@pytest.mark.parametrize('frames', [1, 2, 3])
def test_game_that_ends_within_a_repeat(frames):
    """Without a stale frame of an earlier step, also if it ends in the first frame."""

    class Ending:
        def __init__(self, env):
            self.ale, self.count = env.ale, 0

        def __getattr__(self, name):
            return getattr(self.ale, name)

        def act(self, action):
            self.count += 1
            return self.ale.act(action)

        def game_over(self):
            return self.count == 40 + frames

    env = plain('seaquest')
    env.reset()
    env.unwrapped.ale = Ending(env.unwrapped)
    ale, actions = raw('seaquest')
    steps = [env.step(5) for _ in range(11)]
    screens = []
    for _ in range(40 + frames):
        ale.act(actions[5])
        screens.append(ale.getScreenRGB())
    assert [step[2] for step in steps] == [False] * 10 + [True]
    assert steps[-1][4]['simulator_steps'] == frames
    np.testing.assert_array_equal(env.render(), np.maximum(*screens[-2:]))


@pytest.mark.parametrize('game', ['Breakout', 'MsPacman', 'Qbert'])
def test_agrees_with_gymnasium(game):
    """All but the images of episodes that end within a repeat, where its are stale."""
    name = {'MsPacman': 'ms_pacman'}.get(game, game.lower())
    theirs = gymnasium.make(f'ALE/{game}-v5', frameskip=1, repeat_action_probability=0)
    theirs = AtariPreprocessing(
        theirs,
        noop_max=0,
        screen_size=(160, 210),
        grayscale_obs=False,
        terminal_on_life_loss=True,
    )
    ours = plain(name, training=True)
    rng = np.random.default_rng(1)
    assert ours.action_space.n == theirs.action_space.n
    for _ in range(2):
        image, _ = theirs.reset(seed=0)
        ours.reset()
        np.testing.assert_array_equal(ours.render(), image)
        ended = False
        while not ended:
            action = int(rng.integers(ours.action_space.n))
            image, *expected = theirs.step(action)
            step = ours.step(action)[1:]
            assert step[:3] == tuple(expected[:3])
            ended = step[1]
            if not ended:
                np.testing.assert_array_equal(ours.render(), image)
        assert expected[3]['lives'] == ours.unwrapped.ale.lives()


def test_image_is_resized_bilinearly():
    env = wrappers.make('atari_pong', action_repeat=4, time_limit=108_000)
    image = env.reset(seed=0)[0]['image']
    frame = Image.fromarray(env.unwrapped.render())
    expected = np.asarray(frame.resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(image, expected)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8 and image.std() > 10


def test_noops():
    env = Atari('pong')
    env.reset(seed=0)
    start = Atari('pong', noops=0)
    start.reset()
    zero = start.ale.getEpisodeFrameNumber()
    counts = []
    for _ in range(70):
        env.reset()
        counts.append(env.ale.getEpisodeFrameNumber() - zero)
    assert min(counts) >= 1 and max(counts) <= 30
    assert len(set(counts)) > 15


@pytest.mark.parametrize('sticky', [0.25, 0])
def test_sticky_actions(sticky):
    class Recorder:
        def __init__(self, ale):
            self.ale, self.actions = ale, []

        def __getattr__(self, name):
            return getattr(self.ale, name)

        def act(self, action):
            self.actions.append(minimal.index(action))
            return self.ale.act(action)

    env = Atari('breakout', sticky=sticky)
    env.reset(seed=0)
    minimal = env.ale.getMinimalActionSet()
    env.ale = Recorder(env.ale)
    wanted = np.arange(4000) % 2 + 2
    for action in wanted:
        env.step(action)
    executed = np.array(env.ale.actions)
    fails = executed != wanted
    # What differs from the wanted action is the action of the frame before.
    assert (executed[1:] == executed[:-1])[fails[1:]].all()
    # Of a series of frames that stick, every other one is of the wanted action.
    assert abs(fails.mean() - sticky / (1 + sticky)) < 0.02 * (sticky > 0) + 1e-9


def test_lost_life_ends_training_episodes_and_a_new_game_begins():
    env = plain('breakout')
    rng = np.random.default_rng(0)
    for _ in range(3):
        env.reset()
        assert env.unwrapped.ale.lives() == 5
        steps = list(play(env, rng))
        assert steps[-1][2] and not steps[-1][3]
        assert env.unwrapped.ale.lives() == 4 and not env.unwrapped.ale.game_over()


def test_lost_life_in_the_same_game():
    env = plain('breakout', same_game=True)
    rng = np.random.default_rng(0)
    scores = []
    for lives in (5, 4, 3, 2, 1, 5):
        frames = env.unwrapped.ale.getEpisodeFrameNumber()
        env.reset()
        assert env.unwrapped.ale.lives() == lives
        if lives < 5:
            assert env.unwrapped.ale.getEpisodeFrameNumber() == frames + 1
            screen = env.unwrapped.ale.getScreenRGB()
            np.testing.assert_array_equal(env.render(), screen)
        steps = list(play(env, rng))
        assert steps[-1][2]
        scores.append(sum(step[1] for step in steps))
    assert not env.unwrapped.ale.game_over()
    # An episode cut short by a time limit is followed by a new game.
    env.reset()
    env.step(0)
    env.reset()
    assert env.unwrapped.ale.lives() == 5


def test_evaluation_plays_whole_games():
    env = plain('breakout', training=False, same_game=True)
    env.reset()
    lives = [env.unwrapped.ale.lives() for _ in play(env, np.random.default_rng(0))]
    assert {5, 4, 3, 2, 1} <= set(lives)
    assert env.unwrapped.ale.game_over()


def test_time_limit_truncates_and_counts_frames():
    env = wrappers.make('atari_freeway', action_repeat=4, time_limit=10)
    env.reset(seed=0)
    steps = [env.step(env.action_space.sample()) for _ in range(3)]
    assert [step[4]['simulator_steps'] for step in steps] == [4, 4, 2]
    assert [step[2:4] for step in steps] == [(False, False)] * 2 + [(False, True)]


def test_seeds():
    """An episode is a function of its seed, whatever was played before."""
    first, second = (
        wrappers.make('atari_freeway', action_repeat=4, time_limit=200) for _ in 'ab'
    )

    def episode(env, seed):
        obs, _ = env.reset(seed=seed)
        env.action_space.seed(0)
        images, ended = [obs['image']], False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            images.append(np.append(obs['image'], reward))
            ended = terminated or truncated
        return b''.join(image.tobytes() for image in images)

    one, two, again = (episode(first, seed) for seed in (1, 2, 1))
    assert one == again == episode(second, 1)
    assert len({one, two, episode(second, None)}) == 3


def test_reset_leaves_nothing_of_earlier_games():
    """A reset of the emulator alone keeps the high score of kung_fu_master."""
    env = Atari('kung_fu_master')
    env.reset(seed=3)
    before = env.ale.getRAM().copy()
    for address in range(128):
        env.ale.setRAM(address, 7)
    env.reset(seed=3)
    np.testing.assert_array_equal(env.ale.getRAM(), before)


def test_name_of_the_paper():
    assert wrappers.make('atari_james_bond').action_space.shape == (18,)


@pytest.mark.parametrize('game', ['backgammon', 'video_checkers'])
def test_games_whose_actions_are_without_noop(game):
    env = wrappers.make(f'atari_{game}', action_repeat=4, time_limit=400)
    ale, actions = raw(game)
    assert ale_py.Action.NOOP not in actions
    assert env.action_space == wrappers.OneHotSpace(len(actions))
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(100):
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                break


def test_every_game_offered_begins_and_others_are_refused():
    """The emulator would end the process where it is given one of the others."""
    refused, usual, games = [], set(GAMES), roms.get_all_rom_ids()
    assert len(usual) == 57 and usual <= set(games)
    for game in games:
        try:
            env = Atari(game)
            env.reset(seed=0)
            assert env.action_space.n >= 2 and env.render().ndim == 3
            if game in usual:
                assert 3 <= env.action_space.n <= 18 and env.render().std() > 0, game
        except ValueError as error:
            assert 'for several players' in str(error) and '\n' not in str(error)
            refused.append(game)
    assert sorted(refused) == ['combat', 'joust', 'maze_craze', 'warlords']
    with pytest.raises(ValueError, match='104 games') as caught:
        Atari('jousts')
    assert 'did you mean' not in str(caught.value)
