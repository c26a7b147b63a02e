"""Pure functions on tensors, the distributions, and small helpers.

Shapes: B batch, L length, H horizon, A action, N = B*L, S samples. Time is the first
axis of imagined tensors, [H, N, ...], and the second of replayed ones, [B, L, ...].
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions

# The users of random numbers. `spawn_seed` depends on their order.
DRAWS = (
    'networks',
    'noise',
    'eval_noise',
    'replay',
    'prefill',
    'episodes',
    'eval_episodes',
    'evaluate',
)


def lambda_return(reward, next_value, discount, lambda_):
    """Exponentially weighted average of k-step returns (paper, equation 6).

        R_t = r_t + p_t ((1 - lambda) v_{t+1} + lambda R_{t+1}),  R_H = v_H

    Args:
      reward: [H, ...] r_t.
      next_value: [H, ...] v_{t+1}; its last entry bootstraps.
      discount: [H, ...] p_t, gamma or the predicted discount.
      lambda_: 0 gives one-step returns, 1 gives Monte Carlo returns.

    Returns:
      [H, ...] R_t.
    """
    # Terms without R need no loop.
    now = tf.unstack(reward + (1 - lambda_) * discount * next_value)
    later = tf.unstack(lambda_ * discount)
    target = next_value[-1]
    targets = []
    for t in reversed(range(reward.shape[0])):
        target = now[t] + later[t] * target
        targets.append(target)
    return tf.stack(targets[::-1])


def discount_weights(discount):
    """The weight of step t: how likely the trajectory is to reach it.

        w_t = prod_{k < t} p_k,  w_0 = 1

    Args:
      discount: [H, ...] p_t.

    Returns:
      [H, ...] weights without gradient. Otherwise the actor could shrink the weights of
      bad returns, and would learn to end episodes in which it expects to lose.
    """
    shifted = tf.concat([tf.ones_like(discount[:1]), discount[:-1]], 0)
    return tf.stop_gradient(tf.math.cumprod(shifted, 0))


def gaussian_kl(post, prior):
    """KL[post || prior] of diagonal Gaussians, summed over the last axis.

        sum log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2

    Args:
      post, prior: dicts with `mean` and `std` of [..., D].

    Returns:
      [...] nats.
    """
    ratio = post['std'] / prior['std']
    shift = (post['mean'] - prior['mean']) / prior['std']
    return tf.reduce_sum(
        0.5 * (tf.square(ratio) + tf.square(shift) - 1) - tf.math.log(ratio), -1
    )


def gaussian_entropy(std):
    """Entropy of diagonal Gaussians with `std` [..., D]; returns [...] nats."""
    constant = 0.5 * tf.math.log(2 * 3.141592653589793) + 0.5
    return tf.reduce_sum(tf.math.log(std) + constant, -1)


def free_nats(kl, amount, per_step=False, mean=tf.reduce_mean):
    """The KL term of the world model's loss, constant for a KL below `amount`.

    Args:
      kl: [B, L] nats.
      amount: free nats.
      per_step: clip the KL of each step, then take the mean (paper). False clips the
        mean of the batch (2020 TF2 release).
      mean: mean over the whole batch; `kl` may be one replica's part.

    Returns:
      scalar.
    """
    if per_step:
        return tf.reduce_mean(tf.maximum(kl, amount))
    return tf.maximum(mean(kl), amount)


def contrastive(feature, mean, std, window=0):
    """Noise-contrastive estimate of how well an image identifies its state among the
    states of the batch (paper, section 4).

        ln q(s|o) - ln sum_{o'} q(s|o'),  q(s|o) = Normal(s; mean(o), std(o))

    Args:
      feature: [B, L, F] states s.
      mean, std: [B, L, F] of q for the images o.
      window: number of sequences that o' ranges over: a state's sequence and the next
        ones in the batch, where the first follows the last. 0 means all. The densities
        take 4 B L^2 window bytes.

    Returns:
      [B, L] nats, at most 0.
    """
    batch, length, size = feature.shape
    window = window or batch
    if window >= batch:
        # One group holds all: [1, B*L, F].
        feature, mean, std = (
            tf.reshape(x, (1, -1, size)) for x in (feature, mean, std)
        )
        window = 1

    def densities(mean, std):
        # ln q(s|o') of all pairs in a group, without constants, which cancel.
        precision = 1 / tf.square(std)
        pairs = tf.matmul(tf.square(feature), precision, transpose_b=True)
        pairs -= 2 * tf.matmul(feature, mean * precision, transpose_b=True)
        image = tf.reduce_sum(tf.square(mean) * precision + 2 * tf.math.log(std), -1)
        return -0.5 * (pairs + image[:, None])

    pairs = [
        densities(tf.roll(mean, -i, 0), tf.roll(std, -i, 0)) for i in range(window)
    ]
    matched = tf.linalg.diag_part(pairs[0])
    result = matched - tf.reduce_logsumexp(tf.concat(pairs, -1), -1)
    return tf.reshape(result, (batch, length))


def symlog(x):
    """sign(x) ln(1 + |x|): close to x for small numbers, a logarithm for large ones
    (Hafner et al. 2023, *Mastering Diverse Domains through World Models*, equation 9).
    """
    return tf.sign(x) * tf.math.log1p(tf.abs(x))


def symexp(x):
    """sign(x) (exp |x| - 1), the inverse of `symlog`."""
    return tf.sign(x) * tf.math.expm1(tf.abs(x))


def linear_schedule(start, end, duration, step):
    """Move linearly from `start` at step 0 to `end` at `duration`; 0 never moves."""
    if not duration:
        return tf.constant(start, tf.float32)
    fraction = tf.clip_by_value(tf.cast(step, tf.float32) / duration, 0.0, 1.0)
    return start + fraction * (end - start)


def add_gaussian(action, amount, rng):
    """`action` [..., A] plus Gaussian noise of std `amount`, clipped to [-1, 1]."""
    noise = rng.normal(tf.shape(action))
    return tf.clip_by_value(action + amount * noise, -1, 1)


def epsilon_greedy(action, amount, rng):
    """One-hot `action` [..., A]; with probability `amount` a uniformly random one."""
    # Each of A equally distributed numbers is the largest with equal probability.
    scores = rng.normal(tf.shape(action))
    other = tf.one_hot(tf.argmax(scores, -1), action.shape[-1])
    return tf.where(rng.uniform(tf.shape(action[..., :1])) < amount, other, action)


class ClippedTanh(tfp.bijectors.Tanh):
    """tanh with a finite inverse at -1 and 1, which float32 actions do reach."""

    def _inverse(self, y):
        limit = 1 - 2.0**-24  # the largest float32 below 1
        return super()._inverse(tf.clip_by_value(y, -limit, limit))


class TanhNormal:
    """A diagonal Gaussian squashed by tanh to (-1, 1) [..., A] (paper, section 3).

    Callers pass the noise, so that they can repeat or share draws.

    Args:
      mean, std: [..., A] of the Gaussian, before the tanh.
    """

    def __init__(self, mean, std):
        self._normal = tfd.Normal(mean, std)
        self._bijector = ClippedTanh()
        self._squashed = tfd.TransformedDistribution(self._normal, self._bijector)

    def sample(self, noise):
        """Action for standard normal `noise` [..., A], differentiable in mean, std."""
        return self._bijector.forward(self._normal.loc + self._normal.scale * noise)

    def log_prob(self, action):
        """[...] log-density of `action` [..., A]. It is exact for an action of `sample`
        because the bijector remembers the value before the tanh.
        """
        return tf.reduce_sum(self._squashed.log_prob(action), -1)

    def entropy(self, action):
        """[...] nats, estimated from `action` [..., A] of `sample`; differentiable in
        mean and std, also through the action.
        """
        return -self.log_prob(action)

    def mode(self, noise):
        """The most likely [..., A] of the samples for `noise` [S, ..., A].

        A tanh-Gaussian's mode has no closed form. Each row picks one of its samples.
        """
        samples = self.sample(noise)
        best = tf.one_hot(tf.argmax(self.log_prob(samples), 0), noise.shape[0], axis=0)
        return tf.reduce_sum(samples * best[..., None], 0)


class OneHotDist:
    """A categorical over one-hot actions [..., A] with straight-through gradients
    (paper, appendix A).

    Args:
      logits: [..., A].
    """

    def __init__(self, logits):
        self._log_probs = tf.nn.log_softmax(logits)

    def sample(self, noise):
        """One-hot action for standard normal `noise` [..., A]. A draw has no gradient;
        the gradient of the probabilities replaces it.
        """
        # Gumbel-max. The Gaussian distribution function turns `noise` into uniform
        # numbers u; `log_cdf` gives ln u without rounding u to 1.
        gumbel = -tf.math.log(-tfd.Normal(0.0, 1.0).log_cdf(noise))
        probs = tf.exp(self._log_probs)
        action = self._one_hot(self._log_probs + gumbel)
        # The brackets make the second term exactly 0 and the action exactly one-hot.
        return action + (probs - tf.stop_gradient(probs))

    def log_prob(self, action):
        """[...] log-probability of `action` [..., A]."""
        return tf.reduce_sum(self._log_probs * action, -1)

    def entropy(self, action=None):
        """[...] nats, exact; needs no action, unlike a `TanhNormal`."""
        return -tf.reduce_sum(tf.exp(self._log_probs) * self._log_probs, -1)

    def mode(self, noise=None):
        """The most likely action [..., A]; needs no noise, unlike a `TanhNormal`."""
        return self._one_hot(self._log_probs)

    def _one_hot(self, scores):
        return tf.one_hot(tf.argmax(scores, -1), scores.shape[-1])


class UnitNormal:
    """A Gaussian with standard deviation 1 over events of the last `event_ndims` axes.

    Args:
      mean: [..., event] float32.
    """

    def __init__(self, mean, event_ndims=0):
        self._mean = mean
        self._axes = list(range(-event_ndims, 0))

    def mean(self):
        """[..., event], the mean and the mode."""
        return self._mean

    def log_prob(self, value):
        """[...] log-density of `value` [..., event], summed over the event."""
        half_log_2pi = 0.9189385332046727
        size = math.prod(self._mean.shape[axis] for axis in self._axes)
        return -self._half_square(value, self._mean) - half_log_2pi * size

    def _half_square(self, value, mean):
        @tf.custom_gradient
        def half_square(value, mean):
            difference = value - mean

            def gradient(upstream):
                # One pass over the images; TensorFlow's gradients make four.
                for _ in self._axes:
                    upstream = upstream[..., None]
                return upstream * difference, -upstream * difference

            return tf.reduce_sum(tf.square(difference), self._axes) / 2, gradient

        return half_square(value, mean)


class Every:
    """A function of the step: true at the first call, then once every `period` steps.

    Multiples of the period count, not the steps since the last call. A resumed run
    therefore keeps its rhythm.
    """

    def __init__(self, period, last=None):
        self._period = period
        self.last = last

    def __call__(self, step):
        due = self.last is None or step // self._period > self.last // self._period
        if due:
            self.last = step
        return due


def spawn_seed(seed, name, *key):
    """Return a seed for one of `DRAWS`, independent of all others.

    Args:
      seed: the run's seed.
      name: one of `DRAWS`.
      key: whole numbers; each key has another seed.

    Returns:
      an int of 63 bits.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(DRAWS.index(name), *key))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A training phase of the run.

    Attributes:
      number: phases before this one.
      step, episodes: environment steps taken and episodes kept when it was due.
    """

    number: int = 0
    step: int = 0
    episodes: int = 0

    def at(self, step, episodes, config):
        """The phase that is due after `step` environment steps and `episodes`."""
        phase = self
        while (
            step >= phase.step + config.train_every
            and episodes >= phase.episodes + config.train_episodes
        ):
            phase = Phase(
                phase.number + 1,
                # By steps alone, a phase begins at a multiple of `train_every`.
                step if config.train_episodes else phase.step + config.train_every,
                episodes,
            )
        return phase
