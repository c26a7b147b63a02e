"""The paper's comparisons: PlaNet, no value, contrastive and reward-only."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import batch_of_noise

import configs
import models
import tools
from agent import Dreamer, Policy
from support.learning import planet
from support.system.command_line import UserError

BATCH, LENGTH, ACTION = 3, 6, 2
TINY = f'--configs debug --batch_size {BATCH} --batch_length {LENGTH}'.split()
TINY += ['--precision', '32']


def make_agent(*flags):
    return Dreamer(configs.parse([*TINY, *map(str, flags)]), ACTION)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def data():
    return batch_of_noise(BATCH, LENGTH, ACTION)


# Planner.


def integrator(target):
    """Score of actions [E, C, H, A] in a model made by hand: the state is the sum of
    the actions and the reward at each step minus its squared distance to `target`.
    """

    def score(actions):
        states = tf.cumsum(actions, axis=2)
        return -tf.reduce_sum(tf.square(states - target), (2, 3))

    return score


def test_refit_by_hand():
    actions = tf.reshape(tf.constant([1.0, 5.0, 3.0, -9.0]), (1, 4, 1, 1))
    mean, std = planet.refit(actions, tf.constant([[2.0, 0.0, 1.0, -1.0]]), elites=2)
    # The best two are 1 and 3: mean 2, variance ((1-2)^2 + (3-2)^2) / 2 = 1.
    np.testing.assert_allclose(mean, [[[2.0]]])
    np.testing.assert_allclose(std, [[[np.sqrt(1 + 1e-6)]]], rtol=1e-6)


def test_plan_finds_the_optimum_in_each_environment():
    # Within one step each: the best first action is the target, then to stay.
    target = tf.constant([[0.7, -0.4], [-0.2, 0.9]])[:, None, None]
    plan = planet.plan(
        integrator(target), (2, 5, 2), tf.random.Generator.from_seed(0), 2000, 20, 200
    )
    np.testing.assert_allclose(plan[:, 0], target[:, 0, 0], atol=0.03)
    np.testing.assert_allclose(plan[:, 1:], np.zeros((2, 4, 2)), atol=0.06)


def test_plan_beats_random_shooting_at_equal_cost():
    score = integrator(tf.constant([0.7, -0.4]))
    for seed in range(3):
        plan = planet.plan(
            score, (1, 5, 2), tf.random.Generator.from_seed(seed), 200, 10, 20
        )
        shots = np.clip(random(1, 2000, 5, 2, seed=seed), -1, 1)
        assert score(plan[:, None])[0, 0] > tf.reduce_max(score(shots))


def test_plan_keeps_to_the_range_of_actions():
    seen = []

    def score(actions):
        seen.append(actions)
        return tf.reduce_sum(actions, (2, 3))  # The more, the better.

    plan = planet.plan(score, (1, 4, 2), tf.random.Generator.from_seed(0), 100, 10, 10)
    assert max(float(tf.reduce_max(tf.abs(actions))) for actions in seen) == 1
    np.testing.assert_allclose(plan, np.ones((1, 4, 2)), atol=0.01)


def test_same_seed_same_plan_and_successive_plans_differ():
    def plans(seed):
        rng = tf.random.Generator.from_seed(seed)
        plan = tf.function(
            lambda: planet.plan(integrator(0.5), (1, 3, 2), rng, 20, 2, 5)
        )
        return [plan().numpy() for _ in range(2)]

    first, again, other = plans(0), plans(0), plans(1)
    np.testing.assert_array_equal(first, again)
    assert np.any(first[0] != first[1]) and np.any(first[0] != other[0])


def test_planner_scores_candidates_with_their_own_environment(data):
    """Two environments planned together are planned as each alone would be."""
    agent = make_agent(
        '--method',
        'planet',
        '--plan_candidates',
        300,
        '--plan_iterations',
        8,
        '--plan_elites',
        30,
    )
    state = agent.world.rssm.initial(2)
    # A world in which the second environment wants the opposite of the first.
    state['deter'] += tf.constant([[1.0], [-1.0]])
    agent.world.rewards = lambda start, action, noise: (
        tf.reduce_sum(action, -1) * start['deter'][:, :1]
    )
    plan = planet.choose(agent.world, state, agent.rng, agent.config)
    np.testing.assert_allclose(plan, [[1, 1], [-1, -1]], atol=0.05)


def test_open_loop_rewards_follow_the_actions_in_order():
    """Stepping by hand, under the same noise, gives the rewards of `rewards`."""
    world = make_agent('--method', 'planet').world
    state, action, noise = world.rssm.initial(2), random(2, 3, ACTION), random(2, 3, 4)
    expected = []
    for t in range(3):
        state = world.rssm.imagine_step(state, action[:, t], noise[:, t])
        expected.append(world.reward.dist(world.rssm.feature(state)).mean())
    rewards = world.rewards(world.rssm.initial(2), action, noise)
    np.testing.assert_allclose(rewards, tf.stack(expected, 1), atol=1e-6)


def test_planet_has_no_actor_and_no_value_network(data):
    agent = make_agent('--method', 'planet')
    assert agent.behavior is None
    assert set(agent.optimizers) == {'model'}
    assert not {
        key
        for key in agent.update(data, agent.noise(BATCH, LENGTH))
        if 'actor' in key or 'value' in key
    }


def test_planet_explores_in_training_alone(monkeypatch):
    agent = make_agent('--method', 'planet', '--expl_amount', 0.5)

    monkeypatch.setattr(planet, 'choose', lambda *_: tf.zeros((4, ACTION)))
    observation = {'image': np.zeros((4, 64, 64, 3), np.uint8)}
    for training in True, False:
        action = Policy(agent, 4, training)(observation, np.ones(4, bool))
        assert np.any(action) == training


# No value.


def no_value_loss(agent, horizon=5):
    """Loss and gradients of the actor under fixed noise; the tape's imagination."""
    world, rows = agent.world, 4
    noise = random(horizon, rows, 4), random(horizon, rows, ACTION, seed=1)
    start = world.rssm.initial(rows)
    with tf.GradientTape() as tape:
        losses, _ = agent.behavior.losses(
            world, start, tf.constant([1.0, 1, 1, 0]), *noise
        )
    feature, _ = agent.behavior.imagine(world.rssm, start, *noise)
    return losses, world.reward.dist(feature).mean().numpy(), tape


def rewards_to_go(reward, discount):
    """Of each imagined state, by a loop: [H, N] and [H, N] to [H, N]."""
    horizon = len(reward)
    result = np.zeros_like(reward)
    for t in range(horizon):
        weight = np.ones_like(reward[0])
        for k in range(t, horizon):
            result[t] += weight * reward[k]
            weight = weight * discount[k]
    return result


@pytest.mark.parametrize('pcont', [False, True])
def test_no_value_maximises_the_rewards_to_go_of_all_imagined_states(pcont):
    agent = make_agent('--method', 'no_value', '--discount', 0.9, '--pcont', pcont)
    losses, reward, tape = no_value_loss(agent)
    discount = np.full_like(reward, 0.9)
    if pcont:
        noise = random(5, 4, 4), random(5, 4, ACTION, seed=1)
        start = agent.world.rssm.initial(4)
        feature, _ = agent.behavior.imagine(agent.world.rssm, start, *noise)
        discount = agent.world.discounts(feature).numpy()
        assert np.all(discount != 0.9)
    expected = rewards_to_go(reward, discount)
    # The fourth row starts after an episode's end and counts nothing.
    np.testing.assert_allclose(
        losses['actor'], -expected[:, :3].sum() / 20, rtol=1e-5, atol=1e-6
    )
    gradients = tape.gradient(losses['actor'], agent.behavior.actor.trainable_weights)
    assert all(np.any(gradient != 0) for gradient in gradients)


def test_no_value_weighs_late_rewards_fourteen_times_as_much_as_the_first():
    """1/15 for the first of 15, (1 - 0.99^15) / (0.01 * 15) for the last (TF1)."""
    agent = make_agent('--method', 'no_value', '--horizon', 15)

    class Head:
        def dist(self, feature):
            return tools.UnitNormal(reward + 0 * feature[..., 0])

    agent.world.reward = Head()
    reward = tf.Variable(tf.zeros((15, 4)))
    noise = random(15, 4, 4), random(15, 4, ACTION, seed=1)
    with tf.GradientTape() as tape:
        losses, _ = agent.behavior.losses(
            agent.world, agent.world.rssm.initial(4), tf.ones(4), *noise
        )
    weights = -tf.reduce_sum(tape.gradient(losses['actor'], reward), 1)
    np.testing.assert_allclose(weights[0], 0.0667, atol=1e-4)
    np.testing.assert_allclose(weights[-1], 0.9329, atol=1e-4)
    assert np.all(np.diff(weights) > 0)


def test_no_value_has_no_value_network(data):
    agent = make_agent('--method', 'no_value')
    assert not hasattr(agent.behavior, 'value')
    assert set(agent.optimizers) == {'model', 'actor'}
    assert not {
        key for key in agent.update(data, agent.noise(BATCH, LENGTH)) if 'value' in key
    }


# Contrastive.


def brute_force(feature, mean, std, window):
    """The contrastive objective, pair by pair."""
    batch, length, _ = feature.shape

    def density(s, b, t):
        return np.sum(
            -0.5 * ((s - mean[b, t]) / std[b, t]) ** 2
            - np.log(std[b, t])
            - 0.5 * np.log(2 * np.pi)
        )

    result = np.zeros((batch, length))
    for b in range(batch):
        for t in range(length):
            others = [
                density(feature[b, t], (b + i) % batch, u)
                for i in range(window)
                for u in range(length)
            ]
            result[b, t] = density(feature[b, t], b, t) - np.log(np.sum(np.exp(others)))
    return result


def contrastive_case():
    mean = random(3, 4, 5)
    std = np.exp(0.3 * random(3, 4, 5, seed=1))
    return mean + 0.5 * random(3, 4, 5, seed=2), mean, std


@pytest.mark.parametrize('window', [1, 2, 3])
def test_contrastive_equals_a_double_loop(window):
    case = contrastive_case()
    result = tools.contrastive(*map(tf.constant, case), window)
    np.testing.assert_allclose(result, brute_force(*case, window), rtol=1e-4, atol=1e-4)


def test_contrastive_window_of_the_batch_is_the_whole():
    case = [tf.constant(x) for x in contrastive_case()]
    whole = tools.contrastive(*case)
    np.testing.assert_allclose(tools.contrastive(*case, 3), whole)
    # One more than the batch has sequences is no reason to count any twice.
    np.testing.assert_allclose(tools.contrastive(*case, 4), whole)
    assert np.all(tools.contrastive(*case, 2) > whole)


def test_state_model_starts_at_a_deviation_of_one_above_its_floor():
    """1.01, and 0.01 at least, as in TF1."""
    head = models.GaussianHead(3, 1, 4, 5)
    _, std = head(tf.zeros((2, 3)))
    np.testing.assert_allclose(std, np.full((2, 5), 1.01), rtol=1e-6)
    head._layers[-1].bias.assign(np.full(10, -50.0, np.float32))
    np.testing.assert_allclose(head(tf.zeros((2, 3)))[1], np.full((2, 5), 0.01))


def test_contrastive_is_highest_for_matched_pairs():
    _, mean, _ = contrastive_case()
    std = tf.fill(mean.shape, 0.3)
    matched = float(tf.reduce_mean(tools.contrastive(tf.constant(mean), mean, std)))
    assert -0.1 < matched <= 0
    rng = np.random.default_rng(0)
    for _ in range(20):
        shuffled = rng.permutation(mean.reshape(-1, 5)).reshape(mean.shape)
        assert (
            float(tf.reduce_mean(tools.contrastive(tf.constant(mean), shuffled, std)))
            < matched - 1
        )


def gradient_norms(agent, data, key):
    """Norms of the gradient of one of the model's metrics, by part of the model."""
    with tf.GradientTape(persistent=True) as tape:
        metrics = agent.world.loss(data, agent.noise(BATCH, LENGTH)['post'])[2]
    norms = {}
    for part in agent.world.parts:
        gradients = [
            x
            for x in tape.gradient(metrics[key], part.trainable_weights)
            if x is not None
        ]
        norms[part.name] = float(tf.linalg.global_norm(gradients)) if gradients else 0
    return norms


def test_contrastive_teaches_encoder_and_dynamics(data):
    agent = make_agent('--representation', 'contrastive')
    norms = gradient_norms(agent, data, 'contrastive_loss')
    assert min(norms[name] for name in ('encoder', 'rssm', 'state_model')) > 0
    assert norms['reward'] == 0 and 'decoder' not in norms


def test_contrastive_loss_takes_the_place_of_pixels(data):
    agent = make_agent('--representation', 'contrastive', '--free_nats', 0)
    metrics = agent.world.loss(data, agent.noise(BATCH, LENGTH)['post'])[2]
    assert 'image_loss' not in metrics
    np.testing.assert_allclose(
        metrics['model_loss'],
        metrics['contrastive_loss'] + metrics['reward_loss'] + metrics['div'],
        rtol=1e-5,
    )


# Reward only, and the decoder that only watches.


@pytest.mark.parametrize('representation', ['contrastive', 'reward'])
def test_watching_decoder_learns_and_touches_nothing(data, representation):
    watched, blind = (
        make_agent(
            '--representation',
            representation,
            '--log_images',
            flag,
            '--free_nats',
            0,
            '--grad_clip',
            1e-3,
        )
        for flag in ('true', 'false')
    )
    assert not blind.world.decoders
    for target, source in zip(blind.world.weights, watched.world.weights, strict=True):
        target.assign(source)
    noise = watched.noise(BATCH, LENGTH)
    before = [
        weight.numpy() for weight in watched.world.decoders['image'].trainable_weights
    ]
    for agent in watched, blind:
        for target, source in zip(
            agent.behavior.actor.trainable_weights,
            watched.behavior.actor.trainable_weights,
        ):
            target.assign(source)
        agent.update(data, noise)
    assert any(
        np.any(old != weight.numpy())
        for old, weight in zip(
            before, watched.world.decoders['image'].trainable_weights
        )
    )
    # The clip is active, and the decoder's gradient has no part in it.
    for one, other in zip(watched.world.weights, blind.world.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_reward_only_has_no_term_of_the_image(data):
    agent = make_agent('--representation', 'reward', '--free_nats', 0)
    metrics = agent.world.loss(data, agent.noise(BATCH, LENGTH)['post'])[2]
    np.testing.assert_allclose(
        metrics['model_loss'], metrics['reward_loss'] + metrics['div'], rtol=1e-5
    )
    assert 'image_loss' not in metrics


def test_open_loop_video_under_every_representation(data):
    for representation in 'contrastive', 'reward':
        agent = make_agent('--representation', representation)
        image = agent.openloop(data, 5)['image']
        assert image.shape == (BATCH, LENGTH, 64, 64, 3)


@pytest.mark.parametrize(
    'flags',
    [
        ['--method', 'cem'],
        ['--representation', 'pixels'],
        ['--plan_elites', '30'],
        ['--plan_horizon', '0'],
    ],
)
def test_impossible_settings_are_refused(flags):
    with pytest.raises(UserError, match=flags[0]):
        configs.parse([*TINY, *flags])
