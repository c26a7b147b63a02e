"""The networks, in Keras: encoder, RSSM, decoder, heads and actor.

Shapes: B batch, L length, A action, V state vector, E embedding, S stochastic, D
deterministic, F = S + D feature; `...` are any leading axes. Layers are built in
constructors. They compute in the dtype policy and return float32.
"""

import math

import keras
import tensorflow as tf
import tensorflow_probability as tfp

import tools
from support.learning import layers

tfd = tfp.distributions


def normalize_image(image, noise=None):
    """Convert uint8 [...] to float32 in [-0.5, 0.5].

    Args:
      image: [...], values v.
      noise: [...] u, uniform in [0, 1); it makes the discrete values continuous.

    Returns:
      v / 255 - 0.5 (2020 TF2 release); with noise (v + u) / 256 - 0.5 (TF1 release).
    """
    image = tf.cast(image, tf.float32)
    if noise is None:
        return image / 255 - 0.5
    return (image + noise) / 256 - 0.5


def normalize(batch, image_noise=None):
    """Return the dict `batch` with its images, if it has any, normalized."""
    if 'image' not in batch:
        return batch
    return dict(batch, image=normalize_image(batch['image'], image_noise))


def _normalized(image):
    """Normalize images [...], unless they already are."""
    return normalize_image(image) if image.dtype == tf.uint8 else image


class Encoder(keras.layers.Layer):
    """Images, state vectors, or both to one embedding.

    Args:
      config: `configs.Config`.
      state_size: V; 0 without observed state vectors.

    Attributes:
      specs: shapes and dtypes of the observations by name.
      size: E.
    """

    def __init__(self, config, state_size=0):
        super().__init__(name='encoder')
        self.specs, self.parts = {}, {}
        if 'image' in config.observes:
            self.specs['image'] = tf.TensorSpec((64, 64, 3), tf.uint8)
            self.parts['image'] = ImageEncoder(config.cnn_depth, config.cnn_act)
        if 'state' in config.observes:
            self.specs['state'] = tf.TensorSpec((state_size,), tf.float32)
            self.parts['state'] = StateEncoder(
                state_size, config.num_units, config.dense_act
            )
        self.size = sum(part.size for part in self.parts.values())
        self.built = True

    def call(self, observation):
        """Dict with image [..., 64, 64, 3], uint8 or normalized, state [..., V], or
        both, to [..., E] float32. Other keys are ignored.
        """
        return tf.concat(
            [part(observation[name]) for name, part in self.parts.items()], -1
        )


def make_decoders(config, feature_size, state_size=0):
    """Return a dict of decoders, for `image`, `state`, or both as `config` observes."""
    decoders = {}
    if 'image' in config.observes:
        decoders['image'] = ImageDecoder(feature_size, config.cnn_depth, config.cnn_act)
    if 'state' in config.observes:
        decoders['state'] = StateDecoder(
            feature_size, state_size, config.num_units, config.dense_act
        )
    return decoders


class ImageEncoder(keras.layers.Layer):
    """Four convolutions: image to embedding (paper, appendix A).

    Args:
      depth: channels of the first convolution; 2, 4 and 8 times as many follow.
      act: activation.
    """

    def __init__(self, depth=32, act='relu'):
        super().__init__(name='image_encoder')
        settings = dict(kernel_size=4, strides=2, activation=act)
        self._convs = [
            layers.Conv2D(depth, **settings),
            layers.Conv2D(2 * depth, **settings),
            layers.Conv2D(4 * depth, **settings),
            layers.WinogradConv2D(8 * depth, **settings),
        ]
        for conv, size, channels in zip(
            self._convs, (64, 31, 14, 6), (3, depth, 2 * depth, 4 * depth), strict=True
        ):
            conv.build((None, size, size, channels))
        self.size = 2 * 2 * 8 * depth
        self.built = True

    def call(self, image):
        """[..., 64, 64, 3], uint8 or normalized, to [..., E] float32."""
        image = _normalized(image)
        x = tf.cast(tf.reshape(image, (-1, 64, 64, 3)), self.compute_dtype)
        for conv in self._convs:
            x = conv(x)
        shape = tf.concat([tf.shape(image)[:-3], [self.size]], 0)
        x = tf.reshape(tf.cast(x, tf.float32), shape)
        return tf.ensure_shape(x, (*image.shape[:-3], self.size))


class ImageDecoder(keras.layers.Layer):
    """Dense layer and four transposed convolutions: feature to image distribution
    (paper, appendix A).

    Args:
      feature_size: F.
      depth: channels of the last hidden layer.
      act: activation.
    """

    def __init__(self, feature_size, depth=32, act='relu'):
        super().__init__(name='decoder')
        self._dense = layers.Dense(32 * depth)
        self._dense.build((None, feature_size))
        self._convs = [
            layers.ProjectConv2DTranspose(4 * depth, 5, 2, activation=act),
            layers.Conv2DTranspose(2 * depth, 5, 2, activation=act),
            layers.Conv2DTranspose(depth, 6, 2, activation=act),
            layers.SubPixelConv2DTranspose(3, 6, 2),
        ]
        for conv, size, channels in zip(
            self._convs,
            (1, 5, 13, 30),
            (32 * depth, 4 * depth, 2 * depth, depth),
            strict=True,
        ):
            conv.build((None, size, size, channels))
        self.built = True

    def call(self, feature):
        """[..., F] to [..., 64, 64, 3] float32, mean of the normalized image."""
        x = self._dense(tf.reshape(feature, (-1, feature.shape[-1])))
        x = tf.reshape(x, (-1, 1, 1, x.shape[-1]))
        for conv in self._convs:
            x = conv(x)
        shape = tf.concat([tf.shape(feature)[:-1], [64, 64, 3]], 0)
        x = tf.reshape(tf.cast(x, tf.float32), shape)
        return tf.ensure_shape(x, (*feature.shape[:-1], 64, 64, 3))

    def dist(self, feature):
        """[..., F] to a unit Gaussian over images [..., 64, 64, 3]."""
        return tools.UnitNormal(self(feature), 3)

    def loss(self, feature, image):
        """Mean negative log-likelihood of images [..., 64, 64, 3], uint8 or normalized,
        given features [..., F].
        """
        return -tf.reduce_mean(self.dist(feature).log_prob(_normalized(image)))

    def predict(self, feature):
        """[..., F] to images [..., 64, 64, 3] float32 in [0, 1]."""
        return tf.clip_by_value(self(feature) + 0.5, 0, 1)


class MLP(keras.layers.Layer):
    """Hidden dense layers and a linear one: the shape of all heads.

    Args:
      inputs: size of the input.
      hidden: number of hidden layers.
      units: of each hidden layer.
      outputs: size of the output.
      act: activation of the hidden layers.
    """

    def __init__(self, inputs, hidden, units, outputs, act='elu', name=None):
        super().__init__(name=name)
        self._layers = [layers.Dense(units, act) for _ in range(hidden)]
        self._layers.append(layers.Dense(outputs))
        for layer in self._layers:
            layer.build((None, inputs))
            inputs = layer.units
        self.outputs = outputs
        self.built = True

    def call(self, x):
        """[..., inputs] to [..., outputs] float32."""
        shape = tf.concat([tf.shape(x)[:-1], [self._layers[-1].units]], 0)
        static = (*x.shape[:-1], self._layers[-1].units)
        # TensorFlow fuses product, bias and activation only for a matrix.
        x = tf.reshape(x, (-1, x.shape[-1]))
        for layer in self._layers:
            x = layer(x)
        return tf.ensure_shape(tf.reshape(tf.cast(x, tf.float32), shape), static)


class StateEncoder(MLP):
    """The symlog of a state vector to an embedding (Hafner et al. 2023, *Mastering
    Diverse Domains through World Models*); the paper observes images alone.

    Args:
      state_size: V.
      units, act: of three layers; the last one outputs the embedding.
    """

    def __init__(self, state_size, units, act='elu'):
        super().__init__(state_size, 2, units, units, act, name='state_encoder')
        self.size = units

    def call(self, state):
        """[..., V] float32 to [..., E] float32."""
        return super().call(tools.symlog(state))


class StateDecoder(MLP):
    """Feature to a unit Gaussian over the symlog of state vectors.

    Args:
      feature_size: F.
      state_size: V.
      units, act: of three hidden layers.
    """

    def __init__(self, feature_size, state_size, units, act='elu'):
        super().__init__(feature_size, 3, units, state_size, act, name='state_decoder')

    def loss(self, feature, state):
        """Mean negative log-likelihood of state vectors [..., V], summed over V, given
        features [..., F].
        """
        dist = tools.UnitNormal(self(feature), 1)
        return -tf.reduce_mean(dist.log_prob(tools.symlog(state)))

    def predict(self, feature):
        """[..., F] to state vectors [..., V] float32."""
        return tools.symexp(self(feature))


class ScalarHead(MLP):
    """Feature to a number: reward or value (unit Gaussian), discount (Bernoulli)."""

    def __init__(self, inputs, hidden, units, act='elu', kind='normal', name=None):
        super().__init__(inputs, hidden, units, 1, act, name)
        self._kind = kind

    def dist(self, feature):
        """[..., F] to a distribution over [...]."""
        x = tf.squeeze(self(feature), -1)
        return tfd.Bernoulli(x) if self._kind == 'binary' else tools.UnitNormal(x)


class GaussianHead(MLP):
    """Vector to a diagonal Gaussian over `size` numbers. The contrastive objective
    (paper, section 4) predicts the state from an image's embedding with it.
    """

    MIN_STD = 0.01
    RAW_INIT_STD = math.log(math.expm1(1.0))  # softplus(RAW_INIT_STD) = 1

    def __init__(self, inputs, hidden, units, size, act='elu'):
        super().__init__(inputs, hidden, units, 2 * size, act, name='state_model')

    def call(self, x):
        """[..., inputs] to mean and standard deviation, [..., size] each. An output of
        zero means a standard deviation of 1.01 (TF1 release).
        """
        mean, std = tf.split(super().call(x), 2, -1)
        return mean, tf.nn.softplus(std + self.RAW_INIT_STD) + self.MIN_STD


class Actor(MLP):
    """The policy: tanh-Gaussian, or one-hot categorical for discrete actions (paper,
    section 3 and appendix A).

    Args:
      inputs: F.
      action_size: A.
      units, hidden, act: size, number and activation of the hidden layers.
      kind: 'tanh_normal' or 'onehot'.
      init_std: standard deviation before the tanh when the network outputs zero.
    """

    MIN_STD = 1e-4
    MEAN_SCALE = 5.0

    def __init__(
        self,
        inputs,
        action_size,
        units=400,
        hidden=4,
        act='elu',
        kind='tanh_normal',
        init_std=5.0,
    ):
        outputs = action_size if kind == 'onehot' else 2 * action_size
        super().__init__(inputs, hidden, units, outputs, act, name='actor')
        self._kind = kind
        self.actions = action_size
        # The inverse softplus, in a form that does not overflow.
        self._raw_init_std = init_std + math.log(-math.expm1(-init_std))

    def dist(self, feature):
        """[..., F] to a `TanhNormal` or `OneHotDist` over actions [..., A]."""
        return self.dist_of(self(feature))

    def dist_of(self, outputs):
        """The distribution of `dist`, given the network's outputs [..., outputs]."""
        if self._kind == 'onehot':
            return tools.OneHotDist(outputs)
        mean, std = tf.split(outputs, 2, -1)
        # Beyond 5 the action's tanh is flat, and no gradient could pull the mean back.
        mean = self.MEAN_SCALE * tf.tanh(mean / self.MEAN_SCALE)
        std = tf.nn.softplus(std + self._raw_init_std) + self.MIN_STD
        return tools.TanhNormal(mean, std)


class RSSM(keras.layers.Layer):
    """Recurrent state space model (paper, section 2; Hafner et al. 2019).

    A state is a dict of `deter` [..., D], the GRU's memory, and `stoch` [..., S], a
    sample of the Gaussian with `mean` and `std` [..., S]. The action of a step is the
    action that led to it. Callers draw the noise, which is standard normal.

    Args:
      action_size: A.
      embed_size: E.
      stoch, deter, units: sizes of the states and of hidden layers.
      act: activation of hidden layers.
    """

    MIN_STD = 0.1

    def __init__(
        self, action_size, embed_size, stoch=30, deter=200, units=200, act='elu'
    ):
        super().__init__(name='rssm')
        self.action_size = action_size
        self.stoch_size, self.deter_size = stoch, deter
        self.feature_size = stoch + deter
        self._input = layers.JoinedDense(units, act)
        self._cell = layers.GRUCell(deter, reset_after=True)
        self._prior_hidden = layers.Dense(units, act)
        self._prior_stats = layers.Dense(2 * stoch)
        self._post_hidden = layers.JoinedDense(units, act)
        self._post_stats = layers.Dense(2 * stoch)
        for layer, size in (
            (self._input, stoch + action_size),
            (self._cell, units),
            (self._prior_hidden, deter),
            (self._prior_stats, units),
            (self._post_hidden, deter + embed_size),
            (self._post_stats, units),
        ):
            layer.build((None, size))
        self.built = True

    def initial(self, batch):
        """The zero state, [B, ...] with B = `batch`."""
        stoch = tf.zeros((batch, self.stoch_size))
        return dict(
            mean=stoch, std=stoch, stoch=stoch, deter=tf.zeros((batch, self.deter_size))
        )

    @staticmethod
    def feature(state):
        """Feature [..., F] of a state, the input of all heads: `stoch` and `deter`."""
        return tf.concat([state['stoch'], state['deter']], -1)

    def observe_step(self, state, action, embed, is_first, noise):
        """Posterior [B, ...] after one step.

        Args:
          state: of the previous step, [B, ...].
          action: [B, A], led to this step.
          embed: [B, E], from this step's observation.
          is_first: [B] bool; true zeroes state and action, because they are from
            another episode.
          noise: [B, S].
        """
        keep = 1 - tf.cast(is_first, tf.float32)[:, None]
        hidden = self._input(tf.concat([state['stoch'] * keep, action * keep], -1))
        deter = self._recur(hidden, state['deter'] * keep)
        hidden = self._post_hidden(tf.concat([deter, embed], -1))
        return self._state(self._post_stats(hidden), deter, noise)

    def imagine_step(self, state, action, noise):
        """Prior [B, ...] after one step; arguments as in `observe_step`."""
        hidden = self._input(tf.concat([state['stoch'], action], -1))
        return self._prior(self._recur(hidden, state['deter']), noise)

    def observe(self, embed, action, is_first, noise):
        """Posteriors and priors along sequences, from the zero state.

        Args:
          embed: [B, L, E].
          action: [B, L, A].
          is_first: [B, L] bool.
          noise: [B, L, S], shared by posterior and prior.

        Returns:
          posterior, prior: states [B, L, ...].
        """
        embed, action, is_first, noises = map(_swap, (embed, action, is_first, noise))
        keep = 1 - tf.cast(is_first, self._cell.state_dtype)[..., None]
        # Products with actions and embeddings need no state: all steps at once.
        from_stoch, actions, *kernels = self._input.split(
            tf.cast(action, keep.dtype) * keep
        )
        from_deter, images, kernel = self._post_hidden.split(embed)
        kernels.append(kernel)

        def step(state, inputs, *kernels):
            action, image, keep, noise = inputs
            stoch = tf.cast(state['stoch'], keep.dtype) * keep
            hidden = from_stoch(stoch, action, kernels[0])
            deter, _ = self._cell(hidden, state['deter'] * keep)
            stats = self._post_stats(from_deter(deter, image, kernels[1]))
            # `deter` keeps the layers' dtype, which saves a cast in every step.
            return dict(self._state(stats, deter, noise), deter=deter)

        initial = self.initial(tf.shape(embed)[1])
        initial['deter'] = tf.cast(initial['deter'], keep.dtype)
        inputs = actions, images, keep, noises
        post = layers.scan(step, inputs, initial, [self], kernels)
        post = {key: _swap(tf.cast(x, tf.float32)) for key, x in post.items()}
        # No later state depends on the prior's sample: all steps at once.
        return post, self._prior(post['deter'], noise)

    def imagine(self, state, action, noise):
        """Priors [B, L, ...] of an open loop from `state` [B, ...], given `action`
        [B, L, A] and `noise` [B, L, S].
        """
        prior = layers.scan(
            lambda state, step: self.imagine_step(state, *step),
            [_swap(action), _swap(noise)],
            state,
            [self],
        )
        return {key: _swap(value) for key, value in prior.items()}

    def _recur(self, hidden, deter):
        return tf.cast(self._cell(hidden, deter)[0], tf.float32)

    def _prior(self, deter, noise):
        return self._state(self._prior_stats(self._prior_hidden(deter)), deter, noise)

    def _state(self, stats, deter, noise):
        mean, std = tf.split(tf.cast(stats, tf.float32), 2, -1)
        std = tf.nn.softplus(std) + self.MIN_STD
        return dict(mean=mean, std=std, stoch=mean + std * noise, deter=deter)


def _swap(x):
    """Swap the first two axes."""
    return tf.transpose(x, (1, 0, *range(2, len(x.shape))))
