"""The pure functions and distributions, against constants worked out by hand,
identities, slow loops and TFP.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tools
from support.learning.optimizer import Optimizer

tfd = tfp.distributions


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_lambda_return_by_hand():
    reward = tf.constant([1.0, 2.0])
    next_value = tf.constant([10.0, 20.0])
    discount = tf.constant([0.5, 0.9])
    # R_1 = 2 + 0.9 * 20 = 20; R_0 = 1 + 0.5 * (0.25 * 10 + 0.75 * 20) = 9.75.
    result = tools.lambda_return(reward, next_value, discount, 0.75)
    np.testing.assert_allclose(result, [9.75, 20.0])


def test_lambda_zero_is_one_step():
    reward, value, discount = random(5, 3), random(5, 3, seed=1), random(5, 3, seed=2)
    result = tools.lambda_return(reward, value, discount, 0.0)
    np.testing.assert_allclose(result, reward + discount * value, rtol=1e-5)


def test_lambda_one_is_monte_carlo():
    reward, value = random(5, 3), random(5, 3, seed=1)
    discount = np.full((5, 3), 0.9, np.float32)
    expected = sum(0.9**t * reward[t] for t in range(5)) + 0.9**5 * value[-1]
    result = tools.lambda_return(reward, value, discount, 1.0)
    np.testing.assert_allclose(result[0], expected, rtol=1e-5)


def test_lambda_return_is_the_average_of_k_step_returns():
    """Equations 5 and 6 of the paper, written as they stand."""
    horizon, lambda_, gamma = 6, 0.95, 0.99
    reward, value = random(horizon), random(horizon, seed=1)

    def k_step(k):
        return sum(gamma**n * reward[n] for n in range(k)) + gamma**k * value[k - 1]

    expected = (1 - lambda_) * sum(
        lambda_ ** (k - 1) * k_step(k) for k in range(1, horizon)
    )
    expected += lambda_ ** (horizon - 1) * k_step(horizon)
    discount = np.full(horizon, gamma, np.float32)
    result = tools.lambda_return(reward, value, discount, lambda_)
    np.testing.assert_allclose(result[0], expected, rtol=1e-5)


def test_discount_weights_by_hand_and_stopped():
    discount = tf.Variable([0.5, 0.8, 0.0, 0.9])
    with tf.GradientTape() as tape:
        weights = tools.discount_weights(discount)
    np.testing.assert_allclose(weights, [1, 0.5, 0.4, 0.0])
    assert tape.gradient(weights, discount) is None


def test_kl_and_entropy_agree_with_tfp():
    def stats(seed):
        return dict(
            mean=random(4, 3, seed=seed), std=np.exp(random(4, 3, seed=seed + 1))
        )

    post, prior = stats(0), stats(5)
    dists = [tfd.MultivariateNormalDiag(x['mean'], x['std']) for x in (post, prior)]
    np.testing.assert_allclose(
        tools.gaussian_kl(post, prior), tfd.kl_divergence(*dists), rtol=1e-4
    )
    np.testing.assert_allclose(
        tools.gaussian_entropy(post['std']), dists[0].entropy(), rtol=1e-4
    )


def test_kl_by_hand():
    # log(2) + (1 + 1) / (2 * 4) - 1/2
    post = dict(mean=tf.constant([[1.0]]), std=tf.constant([[1.0]]))
    prior = dict(mean=tf.constant([[0.0]]), std=tf.constant([[2.0]]))
    np.testing.assert_allclose(
        tools.gaussian_kl(post, prior), [np.log(2) - 0.25], rtol=1e-6
    )
    np.testing.assert_allclose(tools.gaussian_kl(post, post), [0.0], atol=1e-6)


@pytest.mark.parametrize('per_step, expected', [(False, 3.0), (True, 4.0)])
def test_free_nats_by_hand(per_step, expected):
    # Mean 2.5, below 3; step by step max(0, 3) and max(5, 3), mean 4.
    kl = tf.constant([[0.0, 5.0]])
    np.testing.assert_allclose(tools.free_nats(kl, 3.0, per_step), expected)


@pytest.mark.parametrize(
    'per_step, expected', [(False, [0.0, 0.0]), (True, [0.0, 0.5])]
)
def test_free_nats_gradient(per_step, expected):
    kl = tf.Variable([[0.0, 5.0]])
    with tf.GradientTape() as tape:
        loss = tools.free_nats(kl, 3.0, per_step)
    np.testing.assert_allclose(tape.gradient(loss, kl)[0], expected)


def test_linear_schedule():
    values = [tools.linear_schedule(0.4, 0.1, 100, step) for step in (0, 50, 100, 900)]
    np.testing.assert_allclose(values, [0.4, 0.25, 0.1, 0.1], rtol=1e-6)
    assert tools.linear_schedule(0.4, 0.1, 0, 12345) == np.float32(0.4)


def test_tanh_normal_log_prob_by_hand():
    dist = tools.TanhNormal(tf.constant([[0.3, -0.2]]), tf.constant([[0.5, 2.0]]))
    action = np.array([[0.1, -0.7]])
    u = np.arctanh(action)
    mean, std = np.array([0.3, -0.2]), np.array([0.5, 2.0])
    normal = -0.5 * ((u - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    expected = (normal - np.log(1 - action**2)).sum(-1)
    np.testing.assert_allclose(
        dist.log_prob(action.astype(np.float32)), expected, rtol=1e-4
    )


def test_tanh_normal_density_integrates_to_one():
    dist = tools.TanhNormal(tf.constant([0.5]), tf.constant([0.8]))
    grid = np.linspace(-0.99999, 0.99999, 200_001, dtype=np.float32)[:, None]
    area = np.exp(dist.log_prob(grid)).mean() * 2
    np.testing.assert_allclose(area, 1.0, atol=2e-3)


@pytest.mark.parametrize('edge', [-1.0, 1.0])
def test_tanh_normal_is_finite_at_the_edges(edge):
    mean = tf.Variable([[0.0, 4.9]])
    with tf.GradientTape() as tape:
        log_prob = tools.TanhNormal(mean, tf.ones((1, 2)) * 0.01).log_prob(
            tf.constant([[edge, edge]])
        )
    assert np.isfinite(log_prob).all()
    assert np.isfinite(tape.gradient(log_prob, mean)).all()


def test_tanh_normal_log_prob_of_a_saturated_sample_is_exact():
    """tanh(12) is 1 in float32; the density at 12 is known all the same."""
    dist = tools.TanhNormal(tf.constant([[12.0]]), tf.constant([[1.0]]))
    log_prob = dist.log_prob(dist.sample(tf.zeros((1, 1))))
    log_derivative = 2 * (np.log(2) - 12 - np.log1p(np.exp(-24)))
    np.testing.assert_allclose(
        log_prob, [-0.5 * np.log(2 * np.pi) - log_derivative], rtol=1e-5
    )


def test_tanh_normal_mode_is_each_rows_own_best_sample():
    mean = tf.constant([[-1.0, 0.5], [2.0, 0.0], [0.1, -0.3]])
    std = tf.constant([[0.5, 1.0], [0.3, 2.0], [1.0, 0.2]])
    dist = tools.TanhNormal(mean, std)
    noise = random(100, 3, 2)
    samples = np.tanh(mean + std * noise)
    scores = np.stack([dist.log_prob(sample) for sample in samples])
    expected = np.stack([samples[scores[:, row].argmax(), row] for row in range(3)])
    assert len(set(scores.argmax(0))) > 1, 'rows should pick different samples'
    np.testing.assert_allclose(dist.mode(noise), expected, rtol=1e-5)


PROBS = np.array([0.5, 0.3, 0.2], np.float32)


def test_one_hot_log_prob_and_mode_by_hand():
    dist = tools.OneHotDist(tf.math.log([PROBS * 7, PROBS[::-1]]))
    np.testing.assert_allclose(
        dist.log_prob(tf.constant([[0.0, 1, 0], [0, 0, 1]])),
        np.log([0.3, 0.5]),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(dist.mode(), [[1, 0, 0], [0, 0, 1]])


def test_one_hot_samples_are_one_hot_and_as_frequent_as_their_probability():
    dist = tools.OneHotDist(tf.math.log(PROBS))
    samples = dist.sample(random(100_000, 3)).numpy()
    np.testing.assert_allclose(np.sort(samples, -1), [[0, 0, 1]] * 100_000, atol=1e-6)
    np.testing.assert_allclose(samples.mean(0), PROBS, atol=0.01)
    entropy = -(PROBS * np.log(PROBS)).sum()
    np.testing.assert_allclose(
        -dist.log_prob(samples).numpy().mean(), entropy, atol=0.01
    )


@pytest.mark.parametrize('noise', [-40.0, -5.0, 0.0, 5.0, 40.0])
def test_one_hot_sample_takes_any_noise(noise):
    """The Gumbel noise of equal numbers is equal and finite: the mode decides."""
    sample = tools.OneHotDist(tf.math.log(PROBS)).sample(tf.fill((3,), noise))
    np.testing.assert_allclose(sample, [1, 0, 0], atol=1e-6)


def test_one_hot_gradient_is_that_of_the_probabilities():
    logits, weight = tf.Variable(np.log(PROBS)), np.array([1.0, -2.0, 5.0], np.float32)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tools.OneHotDist(logits).sample(random(3)) * weight)
    # d softmax_i / d logit_j = p_i (1[i = j] - p_j)
    expected = PROBS * (weight - (PROBS * weight).sum())
    np.testing.assert_allclose(tape.gradient(value, logits), expected, rtol=1e-4)


def test_epsilon_greedy_frequencies():
    rng = tf.random.Generator.from_seed(0)
    greedy = tf.one_hot(tf.zeros(100_000, tf.int32), 4)
    for amount in (0.0, 0.4, 1.0):
        action = tools.epsilon_greedy(greedy, amount, rng).numpy()
        assert (action.sum(-1) == 1).all() and (action.max(-1) == 1).all()
        other = amount / 4
        np.testing.assert_allclose(
            action.mean(0), [1 - 3 * other, other, other, other], atol=0.01
        )


def test_gaussian_exploration_is_clipped_and_has_its_std():
    rng = tf.random.Generator.from_seed(0)
    noisy = tools.add_gaussian(tf.zeros((100_000, 1)), 0.1, rng).numpy()
    np.testing.assert_allclose([noisy.mean(), noisy.std()], [0, 0.1], atol=2e-3)
    clipped = tools.add_gaussian(tf.ones((1000, 1)), 5.0, rng).numpy()
    assert clipped.max() == 1 and clipped.min() == -1


def test_unit_normal_agrees_with_tfp():
    mean, value = random(4, 2, 3), random(4, 2, 3, seed=1)
    for event in (0, 1, 2):
        expected = tfd.Independent(tfd.Normal(mean, 1.0), event).log_prob(value)
        np.testing.assert_allclose(
            tools.UnitNormal(tf.constant(mean), event).log_prob(value),
            expected,
            rtol=1e-4,
        )


def test_unit_normal_has_the_gradients_of_tfp():
    mean, value = (tf.constant(random(4, 2, 3, seed=seed)) for seed in (0, 1))
    for event in (0, 1, 2):
        gradients = []
        for make in (
            tools.UnitNormal,
            lambda mean, event: tfd.Independent(tfd.Normal(mean, 1.0), event),
        ):
            with tf.GradientTape() as tape:
                tape.watch([mean, value])
                log_prob = make(mean, event).log_prob(value)
                loss = tf.reduce_sum(log_prob * random(*log_prob.shape, seed=2))
            gradients.append(tape.gradient(loss, [mean, value]))
        for ours, theirs in zip(*gradients, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def optimizer(values, clip=100.0, scale_loss=False):
    variable = keras.Variable(np.array(values, np.float32))
    return variable, Optimizer('model', [variable], 0.1, clip, scale_loss=scale_loss)


def step(variable, optimizer, slope):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(variable.value * slope)
    return optimizer.apply(tape, loss)


def test_optimizer_returns_the_norm_before_clipping_and_steps_like_adam():
    variable, adam = optimizer([1.0, 2.0], clip=1.0)
    np.testing.assert_allclose(step(variable, adam, [30.0, 40.0]), 50.0)
    # Adam's first step has the size of the learning rate, whatever the gradient's.
    np.testing.assert_allclose(variable, [0.9, 1.9], atol=1e-4)


def test_adam_epsilon_damps_small_gradients():
    """The first step is rate g / (|g| + epsilon / sqrt(1 - b2))."""
    for epsilon in 1e-7, 1e-4:
        expected = 0.1 * 1e-3 / (1e-3 + epsilon / 0.001**0.5)
        variable = keras.Variable(np.zeros(1, np.float32))
        adam = Optimizer('model', [variable], 0.1, 100.0, epsilon)
        step(variable, adam, [1e-3])
        np.testing.assert_allclose(variable, [-expected], rtol=1e-3)


def test_clipping_matters_to_later_steps():
    """Steps with clipped gradients equal Keras' Adam fed with them by hand."""
    variable, ours = optimizer([1.0, 2.0], clip=1.0)
    other = keras.Variable(np.array([1.0, 2.0], np.float32))
    adam = keras.optimizers.Adam(0.1)
    for slope in ([30.0, 40.0], [0.3, 0.4], [-6.0, 8.0]):
        step(variable, ours, slope)
        adam.apply([tf.constant(slope) / max(1.0, np.linalg.norm(slope))], [other])
    np.testing.assert_allclose(variable, other, rtol=1e-5)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_optimizer_skips_and_counts_non_finite_gradients(bad):
    variable, adam = optimizer([1.0, 2.0])
    step(variable, adam, [bad, 1.0])
    step(variable, adam, [bad, 1.0])
    np.testing.assert_array_equal(variable, [1.0, 2.0])
    assert (adam.skipped, adam.skipped_in_a_row) == (2, 2)
    step(variable, adam, [1.0, 1.0])
    np.testing.assert_allclose(variable, [0.9, 1.9], atol=1e-4)
    assert (adam.skipped, adam.skipped_in_a_row) == (2, 0)


def test_a_skipped_step_leaves_adam_as_it_was_to_the_last_bit():
    variable, adam = optimizer([1.0, 2.0])
    for slope in ([3.0, -4.0], [1e-3, 5.0]):
        step(variable, adam, slope)
    before = [tf.convert_to_tensor(x).numpy() for x in adam.weights]
    step(variable, adam, [np.nan, 1.0])
    for old, new in zip(before, adam.weights, strict=True):
        np.testing.assert_array_equal(old, tf.convert_to_tensor(new))
    assert adam.updates == 2


def test_optimizer_skips_a_loss_that_hides_its_nan_from_the_gradient():
    variable, adam = optimizer([1.0, 2.0])
    with tf.GradientTape() as tape:
        loss = tf.maximum(tf.constant(np.nan), 3.0) + tf.reduce_sum(variable)
    adam.apply(tape, loss)
    np.testing.assert_array_equal(variable, [1.0, 2.0])
    assert adam.skipped == 1


def test_loss_scale_halves_and_doubles_and_does_not_change_the_step():
    variable, adam = optimizer([1.0, 2.0], scale_loss=True)
    assert adam.loss_scale == 2.0**15
    step(variable, adam, [np.inf, 1.0])
    assert adam.loss_scale == 2.0**14
    np.testing.assert_allclose(step(variable, adam, [3.0, 4.0]), 5.0)
    np.testing.assert_allclose(variable, [0.9, 1.9], atol=1e-4)
    adam.good_steps.assign(adam.GROW_AFTER - 1)
    step(variable, adam, [1.0, 1.0])
    assert (adam.loss_scale, adam.good_steps) == (2.0**15, 0)


def test_every():
    every = tools.Every(10)
    assert [every(step) for step in (3, 9, 10, 12, 35, 39, 40)] == [
        True,
        False,
        True,
        False,
        True,
        False,
        True,
    ]
    resumed = tools.Every(10, last=12)
    assert [resumed(step) for step in (12, 19, 20)] == [False, False, True]


def test_entropy_by_hand():
    logits = tf.math.log([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]])
    np.testing.assert_allclose(
        tools.OneHotDist(logits).entropy(), [1.5 * np.log(2), 0], atol=1e-6
    )
    # That of a draw is its negative log-density; on average over draws, the entropy.
    policy = tools.TanhNormal(tf.zeros((20_000, 1)), tf.ones((20_000, 1)))
    noise = tf.random.stateless_normal((20_000, 1), (0, 1))
    entropy = policy.entropy(policy.sample(noise))
    x = np.linspace(-8, 8, 100_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    jacobian = np.log(1 - np.tanh(x) ** 2 + 1e-12)
    expected = np.trapezoid(density * (-np.log(density) + jacobian), x)
    np.testing.assert_allclose(tf.reduce_mean(entropy), expected, atol=0.02)


def test_seeds_of_all_draws_of_all_runs_differ():
    seeds = [
        tools.spawn_seed(seed, name, *key)
        for seed in (0, 1, 2, 2**32 - 1)
        for name in tools.DRAWS
        for key in ((), (0,), (1,), (1, 0), (10**9,))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**62
    # By this a run is repeated.
    (spawned,) = np.random.SeedSequence(7).spawn(len(tools.DRAWS))[1:2]
    assert tools.DRAWS[1] == 'noise'
    assert tools.spawn_seed(7, 'noise') == spawned.generate_state(1, np.uint64)[0] >> 1
