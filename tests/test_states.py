"""States beside images: environments that give vectors, and an agent that observes them
in the place of images or with them.

Shapes: B batch, L length, V state vector.
"""

import forks
import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from conftest import batch_of_noise
from gymnasium.spaces import Box, Dict, Discrete, Graph, Tuple

import configs
import dreamer
import evaluate
import models
import tools
import wrappers
from agent import Dreamer, Policy
from support.acting import workers
from support.acting.collector import Collector
from support.run import advice, openloop
from support.storage import episodes

BATCH, LENGTH, ACTION, SIZE = 3, 6, 2, 5
TINY = f'--configs debug --precision 32 --batch_size {BATCH} --batch_length {LENGTH}'


def make_agent(*flags):
    config = configs.parse([*TINY.split(), *flags])
    return Dreamer(config, ACTION, state_size=SIZE)


def batch_of(agent):
    """A batch with what the agent observes, and no more."""
    batch = batch_of_noise(BATCH, LENGTH, ACTION)
    state = 100 * np.random.default_rng(0).normal(size=(BATCH, LENGTH, SIZE))
    batch['state'] = tf.constant(state, tf.float32)
    unseen = {'image', 'state'} - set(agent.config.observes)
    return {key: value for key, value in batch.items() if key not in unseen}


def reached(tape, loss, part):
    gradients = tape.gradient(loss, part.trainable_weights)
    return any(np.any(x) for x in gradients if x is not None)


# The environments


def test_state_of_the_control_suite_is_its_observations_in_their_order():
    """Of the cart: position, cosine and sine of the pole's angle, two velocities."""
    settings = dict(observes=('state',), render_quality='fast')
    env = workers.Worker('dmc_cartpole_swingup', settings)
    state = env.reset(seed=0)[0]['state']
    env.close()
    assert (state.shape, state.dtype) == ((5,), np.float32)
    np.testing.assert_allclose(state[1] ** 2 + state[2] ** 2, 1, atol=1e-6)
    # It begins at rest, with the pole hanging.
    assert state[1] < -0.9 and np.abs(state[3:]).max() < 0.1


class Observing(gymnasium.Env):
    """An environment that observes `value` of a space, and cannot be rendered."""

    action_space = Discrete(2)

    def __init__(self, space, value):
        self.observation_space, self._value = space, value

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._value, {}

    def step(self, action):
        return self._value, 0.0, False, False, {}


NESTED = Dict(place=Box(-9, 9, (2,)), rest=Tuple([Discrete(3), Box(0, 1, (1, 2))]))
SPACES = {
    'Nested-v0': (NESTED, dict(place=[7, 8], rest=(1, [[0.5, 0.25]]))),
    'Infinite-v0': (Box(-np.inf, np.inf, (2,)), [1, np.inf]),
    'Longer-v0': (Box(-9, 9, (2,)), [1, 2, 3]),
    'Graph-v0': (Graph(Discrete(2), Discrete(2)), None),
    'Image-v0': (Box(0, 255, (8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)),
}


@pytest.fixture
def spaces(monkeypatch):
    for name, (space, value) in SPACES.items():
        spec = gymnasium.envs.registration.EnvSpec(
            name, entry_point=lambda space=space, value=value: Observing(space, value)
        )
        monkeypatch.setitem(gymnasium.registry, name, spec)


def test_nested_observations_are_flattened_as_gymnasium_does(spaces):
    env = wrappers.make('gym_Nested-v0', observes=('state',), film=True)
    observation, _ = env.reset()
    # There is nothing to film.
    assert observation.keys() == {'state'} == env.observation_space.spaces.keys()
    np.testing.assert_array_equal(observation['state'], [7, 8, 0, 1, 0, 0.5, 0.25])


@pytest.mark.parametrize(
    'task, observes, words',
    [
        ('atari_pong', 'state', 'has images alone; possible: --observation image'),
        ('dmlab_x', 'image state', 'has images alone; possible: --observation image'),
        ('gym_Image-v0', 'state', 'observes images alone; possible: --observation'),
        ('gym_Graph-v0', 'state', 'a space Graph, which Gymnasium cannot flatten'),
        ('gym_Nested-v0', 'image state', "no render_mode 'rgb_array'; possible: --obs"),
        ('gym_Longer-v0', 'state', 'an observation of 3 numbers, where its space says'),
    ],
)
def test_what_cannot_be_observed_is_refused(spaces, task, observes, words):
    with pytest.raises(ValueError, match=words):
        wrappers.make(task, observes=tuple(observes.split()))


def test_where_evaluations_cannot_be_filmed_the_way_out_is_named(monkeypatch):
    class Undrawable(Observing):
        metadata = {'render_modes': ['rgb_array']}

        def __init__(self, render_mode=None):
            super().__init__(Box(-1, 1, (2,), np.float32), np.zeros(2, np.float32))

        def render(self):
            raise ModuleNotFoundError("No module named 'pygame'")

    spec = gymnasium.envs.registration.EnvSpec('Undrawable-v0', entry_point=Undrawable)
    monkeypatch.setitem(gymnasium.registry, 'Undrawable-v0', spec)
    with pytest.raises(RuntimeError, match='pygame.*; possible: --eval_video false$'):
        wrappers.make('gym_Undrawable-v0', observes=('state',), film=True)
    wrappers.make('gym_Undrawable-v0', observes=('state',)).reset()
    with pytest.raises(RuntimeError, match="pygame'$"):
        wrappers.make('gym_Undrawable-v0', observes=('image',))


def test_a_state_that_is_not_finite_ends_the_run_with_its_value(spaces):
    env = workers.LocalWorker('gym_Infinite-v0', dict(observes=('state',)))
    with pytest.raises(workers.WorkerError, match='a state with inf, no finite'):
        Collector([env], seed=0).step(lambda *_: np.array([[1, 0]]))


@pytest.mark.parametrize('film', [False, True])
def test_images_are_rendered_where_they_are_observed_or_filmed(film):
    env = wrappers.make('dummy_discrete', observes=('state',), film=film)
    assert ('image' in env.reset(seed=0)[0]) == film
    assert env.reset(seed=0)[0]['state'].shape == (6,)


def test_unknown_observation_is_refused():
    with pytest.raises(ValueError, match="'pixels'; possible: image, state, both"):
        configs.parse(['--observation', 'pixels'])


def test_flags_of_images_are_told_to_have_no_effect(capsys):
    for observation, warns in (('state', True), ('both', False)):
        words = ['--observation', observation, '--cnn_depth', '8']
        advice.warn_of_flags(words, configs.parse(words))
        assert ('makes no use of --cnn_depth' in capsys.readouterr().err) == warns


# The agent


def test_symlog_and_back():
    x = tf.constant([-np.expm1(2.0), -1.0, 0.0, 1e-3, np.expm1(3.0)], tf.float32)
    expected = [-2, -np.log(2), 0, np.log1p(1e-3), 3]
    np.testing.assert_allclose(tools.symlog(x), expected, rtol=1e-5)
    np.testing.assert_allclose(tools.symexp(tools.symlog(x)), x, rtol=1e-5)


def test_parameter_counts():
    """Three layers encode, three and a linear one decode."""
    config = configs.parse(['--observation', 'state', '--num_units', '300'])
    encoder = models.Encoder(config, state_size=24)
    decoder = models.make_decoders(config, 230, 24)['state']
    hidden = 2 * 300 * 301
    assert encoder.count_params() == 25 * 300 + hidden and encoder.size == 300
    assert decoder.count_params() == 231 * 300 + hidden + 301 * 24


def test_state_loss_is_the_negative_log_likelihood_summed_over_the_vector():
    agent = make_agent('--observation', 'state')
    decoder = agent.world.decoders['state']
    feature = tf.random.normal((BATCH, LENGTH, agent.world.rssm.feature_size), seed=0)
    state = batch_of(agent)['state']
    error = decoder(feature) - np.sign(state) * np.log1p(np.abs(state))
    expected = np.sum(0.5 * error**2 + 0.5 * np.log(2 * np.pi), -1).mean()
    np.testing.assert_allclose(decoder.loss(feature, state), expected, rtol=1e-5)


@pytest.mark.parametrize('representation', ['reconstruction', 'contrastive', 'reward'])
@pytest.mark.parametrize('observation', ['state', 'both'])
def test_world_model_learns_from_states(observation, representation):
    agent = make_agent('--observation', observation, '--representation', representation)
    batch, world = batch_of(agent), agent.world
    with tf.GradientTape(persistent=True) as tape:
        loss, _, metrics = world.loss(batch, agent.noise(BATCH, LENGTH)['post'])
    assert reached(tape, loss, world.encoder.parts['state'])
    for decoder in world.decoders.values():
        reconstructs = representation == 'reconstruction'
        assert reached(tape, loss, decoder) == reconstructs
    losses = {f'{name}_loss' for name in agent.config.observes}
    assert losses <= agent.update(batch).keys()
    assert (losses <= metrics.keys()) == (representation == 'reconstruction')


def test_behavior_teaches_the_encoder_nothing():
    agent = make_agent('--observation', 'both')
    batch, noise = batch_of(agent), agent.noise(BATCH, LENGTH)
    with tf.GradientTape(persistent=True) as tape:
        _, post, _ = agent.world.loss(batch, noise['post'])
        start = {key: tf.reshape(x, (-1, x.shape[-1])) for key, x in post.items()}
        losses, _ = agent.behavior.losses(
            agent.world,
            start,
            tf.ones(BATCH * LENGTH),
            noise['latent'],
            noise['action'],
        )
    for loss in losses.values():
        assert not reached(tape, loss, agent.world.encoder)


def test_policy_takes_what_the_agent_observes_and_leaves_the_rest():
    agent = make_agent('--observation', 'state')
    policy = Policy(agent, 2, training=False)
    state, image = np.ones((2, SIZE), np.float32), np.zeros((2, 64, 64, 3), np.uint8)
    action = policy(dict(state=state, image=image), np.ones(2, bool))
    assert action.shape == (2, ACTION)


def test_open_loop_from_states_and_its_plot():
    agent = make_agent('--observation', 'both')
    batch = batch_of(agent)
    predicted = agent.openloop(batch, 5)
    assert predicted['state'].shape == (BATCH, LENGTH, SIZE)
    assert predicted['image'].shape == (BATCH, LENGTH, 64, 64, 3)
    data = openloop.plot(batch['state'].numpy(), predicted['state'].numpy(), 5)
    assert data.startswith(b'\x89PNG')


# A run


@pytest.mark.slow
def test_run_from_states_is_resumed_evaluated_and_drawn(tmp_path, capsys):
    words = '--configs debug --task dummy_continuous --observation state --precision 32'
    words += f' --parallel none --method planet {" ".join(forks.PLANS)}'
    argv = [*words.split(), '--log_images', 'true', '--logdir', str(tmp_path / 'run')]
    assert dreamer.main([*argv, '--steps', '300']) == 0
    assert dreamer.main([*argv, '--steps', '400']) == 0
    paths = sorted((tmp_path / 'run' / 'episodes').iterdir())
    assert sum(episodes.inspect(path, ('state',)).rows - 1 for path in paths) >= 300
    for path in paths:
        with np.load(path) as stored:
            assert set(stored) == {'state', *episodes.KEYS}
    videos = {path.name for path in (tmp_path / 'run' / 'videos').iterdir()}
    assert {'eval-000000400.gif', 'openloop-000000400.png'} <= videos
    picture = tmp_path / 'dream.png'
    assert (
        evaluate.main(
            ['--logdir', argv[-1], '--episodes', '2', '--dream', str(picture)]
        )
        == 0
    )
    assert picture.read_bytes().startswith(b'\x89PNG')
    with pytest.raises(SystemExit):
        evaluate.main(['--logdir', argv[-1], '--dream', str(tmp_path / 'dream.gif')])
    assert 'is a plot where no images are observed' in capsys.readouterr().err
