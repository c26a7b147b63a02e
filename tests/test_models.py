"""The networks: sizes, shapes, and the identities of the recurrent model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from support.learning import layers
from support.run import startup

BATCH, LENGTH, ACTION, EMBED = 3, 7, 2, 12


@pytest.fixture(autouse=True)
def float32():
    keras.config.set_dtype_policy('float32')


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 64, 64, 3), np.uint8)


@pytest.fixture
def rssm():
    keras.utils.set_random_seed(0)
    return models.RSSM(ACTION, EMBED, stoch=4, deter=6, units=8)


@pytest.fixture
def sequence():
    """embed, action, is_first, noise of [B, L, ...]."""
    is_first = np.zeros((BATCH, LENGTH), bool)
    is_first[:, 0] = True
    return (
        random(BATCH, LENGTH, EMBED),
        random(BATCH, LENGTH, ACTION, seed=1),
        is_first,
        random(BATCH, LENGTH, 4, seed=2),
    )


def at(state, index):
    return {key: value[:, index] for key, value in state.items()}


def assert_equal(actual, expected):
    for key in expected:
        np.testing.assert_allclose(actual[key], expected[key], atol=1e-5, err_msg=key)


def test_parameter_counts_of_the_paper():
    """With 6-dim actions, as in the walker and cheetah tasks."""
    encoder = models.ImageEncoder()
    rssm = models.RSSM(6, encoder.size)
    size = rssm.feature_size
    counts = {
        'encoder': encoder.count_params(),
        'rssm': rssm.count_params(),
        'decoder': models.ImageDecoder(size).count_params(),
        'reward': models.ScalarHead(size, 2, 400).count_params(),
        'actor': models.Actor(size, 6).count_params(),
        'value': models.ScalarHead(size, 3, 400).count_params(),
    }
    assert counts == {
        'encoder': 690_144,
        'rssm': 557_920,
        'decoder': 3_795_555,
        'reward': 253_201,
        'actor': 578_412,
        'value': 413_601,
    }
    assert (
        sum(counts[name] for name in ('encoder', 'rssm', 'decoder', 'reward'))
        == 5_296_820
    )


def test_normalize_image():
    image = tf.constant([0, 51, 255], tf.uint8)
    np.testing.assert_allclose(
        models.normalize_image(image), [-0.5, -0.3, 0.5], atol=1e-6
    )


def test_shapes():
    encoder = models.ImageEncoder(depth=2)
    assert encoder(images(2, 5)).shape == (2, 5, 64)
    assert encoder(images(2)).shape == (2, 64)
    feature = tf.zeros((2, 5, 10))
    decoder = models.ImageDecoder(10, depth=2)
    assert decoder(feature).shape == (2, 5, 64, 64, 3)
    assert decoder.dist(feature).log_prob(tf.zeros((2, 5, 64, 64, 3))).shape == (2, 5)
    for kind in ('normal', 'binary'):
        dist = models.ScalarHead(10, 2, 8, kind=kind).dist(feature)
        assert dist.mean().shape == (2, 5)
        assert dist.log_prob(tf.zeros((2, 5))).shape == (2, 5)
    dist = models.Actor(10, 3, 8).dist(feature)
    assert dist.sample(tf.zeros((2, 5, 3))).shape == (2, 5, 3)
    assert dist.mode(tf.zeros((100, 2, 5, 3))).shape == (2, 5, 3)


def test_actor_starts_wide_and_its_mean_is_bounded():
    actor = models.Actor(10, 3, 8, init_std=5.0)
    for weight in actor.trainable_weights:
        weight.assign(tf.zeros_like(weight))
    normal = actor.dist(tf.zeros((1, 10)))._normal
    np.testing.assert_allclose(normal.scale, 5.0, rtol=1e-4)
    actor.trainable_weights[-1].assign([1e6] * 3 + [-1e6] * 3)
    normal = actor.dist(tf.zeros((1, 10)))._normal
    np.testing.assert_allclose(normal.loc, 5.0)
    np.testing.assert_allclose(normal.scale, 1e-4, rtol=1e-3)


PLAIN, TRANSPOSED = keras.layers.Conv2D, keras.layers.Conv2DTranspose
REWRITTEN = [
    (fast, plain, dict(filters=n, kernel_size=k, strides=2, activation=act), shape)
    for fast, plain, n, k, act, shape in (
        (layers.Conv2D, PLAIN, 5, 4, 'relu', (3, 7, 7, 4)),
        (layers.WinogradConv2D, PLAIN, 5, 4, 'relu', (3, 6, 6, 4)),
        (layers.WinogradConv2D, PLAIN, 5, 4, None, (100, 6, 6, 4)),
        (layers.SubPixelConv2DTranspose, TRANSPOSED, 3, 6, None, (2, 5, 5, 4)),
        (layers.Conv2DTranspose, TRANSPOSED, 5, 6, 'relu', (3, 5, 5, 4)),
        (layers.Conv2DTranspose, TRANSPOSED, 5, 5, 'relu', (3, 5, 5, 4)),
        (layers.ProjectConv2DTranspose, TRANSPOSED, 5, 5, 'relu', (3, 1, 1, 4)),
    )
]


def values_and_gradients(layer, *inputs):
    """What `layer` makes of `inputs`, and gradients of inputs and weights, float32."""
    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = layer(*inputs)
        y = tf.cast(y[0] if isinstance(y, tuple) else y, tf.float32)
        loss = tf.reduce_sum(y * random(*y.shape, seed=3))
    weights = [weight.value for weight in layer.trainable_weights]
    return [y, *tape.gradient(loss, [*inputs, *weights])]


@pytest.mark.parametrize('fast, plain, settings, shape', REWRITTEN)
def test_rewritten_layers_equal_keras(fast, plain, settings, shape):
    pair = [cls(**settings, bias_initializer='normal') for cls in (fast, plain)]
    for layer in pair:
        layer.build((None, *shape[1:]))
    pair[1].set_weights(pair[0].get_weights())
    results = [values_and_gradients(layer, random(*shape)) for layer in pair]
    for ours, keras_result in zip(*results, strict=True):
        np.testing.assert_allclose(ours, keras_result, rtol=1e-4, atol=1e-4)


def apart(results, exact):
    """Distances of results from exact ones, as parts of the latter's lengths."""
    return [
        float(tf.norm(a - b) / tf.norm(b)) for a, b in zip(results, exact, strict=True)
    ]


@pytest.mark.parametrize('fast, plain, settings, shape', REWRITTEN)
def test_rewritten_layers_in_bfloat16_are_near_float32(fast, plain, settings, shape):
    """A number of bfloat16 is off by 2^-9 of itself at most. A layer takes in, and
    returns, such numbers: 0.3 % in all, twice that where Winograd's sums of pixels and
    of weights are rounded as well. With ELU for ReLU, which would turn on and off with
    what is rounded. Without AVX-512, TensorFlow's convolutions round more: gradients of
    kernels are off by 3 %, however many images there are.
    """
    shape = 100, *shape[1:]
    settings = dict(settings, bias_initializer='normal')
    if settings['activation']:
        settings['activation'] = 'elu'
    exact = plain(**settings)
    keras.config.set_dtype_policy('mixed_bfloat16')
    ours = fast(**settings)
    for layer in (exact, ours):
        layer.build((None, *shape[1:]))
    ours.set_weights(exact.get_weights())
    expected, result = (
        values_and_gradients(layer, random(*shape)) for layer in (exact, ours)
    )
    distances = apart(result, expected)
    assert distances[0] > 0
    kernel = 0.01 if 'avx512f' in (startup.cpu_flags() or ()) else 0.05
    assert distances.pop(2) < kernel
    assert max(distances) < 0.01


@pytest.mark.parametrize('policy', ['mixed_bfloat16', 'mixed_float16'])
def test_gradients_of_biases_are_summed_in_float32(policy):
    """Of every layer that the networks have: as many ones as there are rows, of which
    half precision can count 256 or 2,048.
    """
    keras.config.set_dtype_policy(policy)
    encoder, decoder = models.ImageEncoder(depth=2), models.ImageDecoder(6, depth=2)
    cases = [
        (layer, (100, *layer._build_shapes_dict['input_shape'][1:]))
        for layer in [*encoder._convs, *decoder._convs]
    ]
    rssm = models.RSSM(ACTION, EMBED, stoch=4, deter=6, units=8)
    for layer in (
        decoder._dense,
        rssm._input,
        rssm._prior_hidden,
        rssm._prior_stats,
        rssm._post_hidden,
        rssm._post_stats,
        *models.ScalarHead(10, 1, 8)._layers,
        *models.GaussianHead(10, 1, 8, 3)._layers,
        *models.Actor(10, ACTION, 8, 1)._layers,
    ):
        cases.append((layer, (10_000, layer.kernel.shape[0])))
    for layer, shape in cases:
        layer.activation = keras.activations.linear
        with tf.GradientTape() as tape:
            y = tf.cast(layer(tf.zeros(shape)), tf.float32)
        (gradient,) = tape.gradient(y, [layer.bias.value], tf.ones_like(y) / 64)
        count = np.prod(y.shape[:-1]) / 64
        np.testing.assert_allclose(gradient, count, rtol=0.005, err_msg=layer.name)


def test_gradient_of_the_image_bias_does_not_overflow_in_float16():
    """As the loss scale makes it: larger than float16's largest number, 65,504."""
    keras.config.set_dtype_policy('mixed_float16')
    decoder = models.ImageDecoder(10, depth=2)
    with tf.GradientTape() as tape:
        loss = 100 * tf.reduce_sum(decoder(tf.zeros((5, 10))))
    gradient = tape.gradient(loss, decoder.trainable_weights)[-1]
    np.testing.assert_allclose(gradient, [100 * 5 * 64 * 64] * 3, rtol=1e-3)


def test_gru_cell_equals_keras():
    cells = [
        cls(4, reset_after=True, bias_initializer='normal')
        for cls in (layers.GRUCell, keras.layers.GRUCell)
    ]
    for cell in cells:
        cell.build((None, 3))
    cells[1].set_weights(cells[0].get_weights())
    results = [
        values_and_gradients(cell, random(5, 3), random(5, 4, seed=1)) for cell in cells
    ]
    for ours, keras_result in zip(*results, strict=True):
        np.testing.assert_allclose(ours, keras_result, rtol=1e-4, atol=1e-5)


def test_gru_cell_keeps_its_state_in_float32_under_bfloat16():
    """A gate that is nearly shut changes the state by less than bfloat16 can tell: over
    many steps Keras' cell in bfloat16 loses what ours adds up.
    """
    inputs, state = tf.zeros((1, 3)), tf.fill((1, 4), 0.5)
    weights = [np.zeros((3, 12), 'f'), np.zeros((4, 12), 'f'), np.zeros((2, 12), 'f')]
    weights[2][0, :4] = 6.0  # The gate that keeps the state: sigmoid(6) = 0.9975.
    ends = {}
    for cls, policy in (
        (keras.layers.GRUCell, 'float32'),
        (keras.layers.GRUCell, 'mixed_bfloat16'),
        (layers.GRUCell, 'mixed_bfloat16'),
    ):
        keras.config.set_dtype_policy(policy)
        cell = cls(4, reset_after=True)
        cell.build((None, 3))
        cell.set_weights(weights)
        end = state
        for _ in range(50):
            end = tf.cast(cell(inputs, end)[0], tf.float32)
        ends[cls, policy] = end.numpy()
    exact, keras_half, ours = ends.values()
    np.testing.assert_allclose(exact, 0.5 * (1 / (1 + np.exp(-6.0))) ** 50, rtol=1e-4)
    np.testing.assert_allclose(ours, exact, rtol=1e-3)
    assert abs(keras_half - exact).min() > 0.01


def test_observe_equals_stepping_one_by_one(rssm, sequence):
    embed, action, is_first, noise = sequence
    post, _ = rssm.observe(*sequence)
    state = rssm.initial(BATCH)
    for t in range(LENGTH):
        state = rssm.observe_step(
            state, action[:, t], embed[:, t], is_first[:, t], noise[:, t]
        )
        assert_equal(at(post, t), state)


def test_imagined_step_from_a_posterior_is_the_next_prior(rssm, sequence):
    _, action, _, noise = sequence
    post, prior = rssm.observe(*sequence)
    for t in range(1, LENGTH):
        step = rssm.imagine_step(at(post, t - 1), action[:, t], noise[:, t])
        assert_equal(step, at(prior, t))


def test_open_loop_equals_feeding_priors_back(rssm, sequence):
    _, action, _, noise = sequence
    post, _ = rssm.observe(*sequence)
    state = at(post, 0)
    prior = rssm.imagine(state, action[:, 1:], noise[:, 1:])
    for t in range(1, LENGTH):
        state = rssm.imagine_step(state, action[:, t], noise[:, t])
        assert_equal(at(prior, t - 1), state)


def test_is_first_in_the_middle_equals_two_sequences(rssm, sequence):
    cut = 4
    sequence[2][1, cut] = True  # In the second row of the batch only.
    post, prior = rssm.observe(*sequence)
    halves = [
        rssm.observe(*[x[:, part] for x in sequence])
        for part in (slice(None, cut), slice(cut, None))
    ]
    for whole, first, second in zip((post, prior), *halves, strict=True):
        for key in whole:
            parts = np.concatenate([first[key], second[key]], 1)
            np.testing.assert_allclose(whole[key][1], parts[1], atol=1e-5)
            assert not np.allclose(whole[key][0, cut:], parts[0, cut:], atol=1e-3)


def test_action_at_a_first_step_is_ignored(rssm, sequence):
    embed, action, is_first, noise = sequence
    post, _ = rssm.observe(*sequence)
    changed = action.copy()
    changed[:, 0] += 1
    other, _ = rssm.observe(embed, changed, is_first, noise)
    assert_equal(other, post)


def test_posterior_sees_no_future(rssm, sequence):
    embed, action, is_first, noise = sequence
    post, _ = rssm.observe(*sequence)
    changed = embed.copy()
    changed[:, 4:] += 1
    other, _ = rssm.observe(changed, action, is_first, noise)
    for key in post:
        np.testing.assert_allclose(other[key][:, :4], post[key][:, :4], atol=1e-6)
    assert not np.allclose(other['mean'][:, 4], post['mean'][:, 4])


def test_prior_does_not_see_its_own_image(rssm, sequence):
    embed, action, is_first, noise = sequence
    _, prior = rssm.observe(*sequence)
    changed = embed.copy()
    changed[:, 4] += 1
    _, other = rssm.observe(changed, action, is_first, noise)
    np.testing.assert_allclose(other['mean'][:, 4], prior['mean'][:, 4], atol=1e-6)
    assert not np.allclose(other['mean'][:, 5], prior['mean'][:, 5])


def test_everything_returned_is_float32_under_float16():
    keras.config.set_dtype_policy('mixed_float16')
    encoder = models.ImageEncoder(depth=2)
    rssm = models.RSSM(ACTION, encoder.size, 4, 6, 8)
    embed = encoder(images(BATCH, LENGTH))
    post, prior = rssm.observe(
        embed,
        random(BATCH, LENGTH, ACTION),
        np.zeros((BATCH, LENGTH), bool),
        random(BATCH, LENGTH, 4),
    )
    feature = rssm.feature(post)
    image = models.ImageDecoder(10, depth=2).dist(feature)
    outputs = [
        embed,
        feature,
        *post.values(),
        *prior.values(),
        image.mean(),
        image.log_prob(models.normalize_image(images(BATCH, LENGTH))),
        models.ScalarHead(10, 2, 8).dist(feature).mean(),
        models.Actor(10, ACTION, 8).dist(feature)._normal.scale,
    ]
    assert {x.dtype for x in outputs} == {tf.float32}
    assert encoder.compute_dtype == 'float16'
    for x in outputs:
        assert np.isfinite(x).all()
