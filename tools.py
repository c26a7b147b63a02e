"""Pure functions on tensors, the distributions, and small helpers.

Shapes: B batch, L length, H horizon, A action, N = B*L, S samples. Times run along
the first axis of what is imagined, [H, N, ...], and along the second of what comes
from replay, [B, L, ...].
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions

# What draws random numbers; see `spawn_seed`, for which the order counts.
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
      lambda_: 0 gives one-step, 1 gives Monte-Carlo returns.

    Returns:
      [H, ...] R_t.
    """
    # All that needs no R, for all steps at once.
    now = tf.unstack(reward + (1 - lambda_) * discount * next_value)
    later = tf.unstack(lambda_ * discount)
    target = next_value[-1]
    targets = []
    for t in reversed(range(reward.shape[0])):
        target = now[t] + later[t] * target
        targets.append(target)
    return tf.stack(targets[::-1])


def discount_weights(discount):
    """How much step t counts: the probability-like chance that it is reached at all.

        w_t = prod_{k < t} p_k,  w_0 = 1

    Args:
      discount: [H, ...] p_t.

    Returns:
      [H, ...] weights, stopped: an actor that could shrink its own weights would learn
      to end episodes in which it expects to lose.
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
    """The KL term of the world model's loss, free below `amount`.

    Args:
      kl: [B, L] nats.
      amount: free nats.
      per_step: the maximum at each step, then the mean (paper); else the maximum of
        the batch mean (2020 TF2 release).
      mean: over the whole batch, of which `kl` may be one replica's part.

    Returns:
      scalar.
    """
    if per_step:
        return tf.reduce_mean(tf.maximum(kl, amount))
    return tf.maximum(mean(kl), amount)


def contrastive(feature, mean, std, window=0):
    """How well each state can be told from the batch's others by its image (paper,
    section 4; noise-contrastive estimation).

        ln q(s|o) - ln sum_{o'} q(s|o'),  q(s|o) = Normal(s; mean(o), std(o))

    Args:
      feature: [B, L, F] states s.
      mean, std: [B, L, F] of q for the images o.
      window: o' are the images of a sequence and of the window - 1 next ones in the
        batch (after the last comes the first); 0 is the whole batch. The densities
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
        # ln q(s|o') of all pairs in a group as matrix products; constants cancel.
        precision = 1 / tf.square(std)
        pairs = tf.matmul(tf.square(feature), precision, transpose_b=True)
        pairs -= 2 * tf.matmul(feature, mean * precision, transpose_b=True)
        own = tf.reduce_sum(tf.square(mean) * precision + 2 * tf.math.log(std), -1)
        return -0.5 * (pairs + own[:, None])

    pairs = [
        densities(tf.roll(mean, -i, 0), tf.roll(std, -i, 0)) for i in range(window)
    ]
    matched = tf.linalg.diag_part(pairs[0])
    result = matched - tf.reduce_logsumexp(tf.concat(pairs, -1), -1)
    return tf.reshape(result, (batch, length))


def symlog(x):
    """sign(x) ln(1 + |x|), which keeps small numbers and tames large ones; `symexp`
    takes it back (Hafner et al. 2023, *Mastering Diverse Domains through World Models*,
    equation 9).
    """
    return tf.sign(x) * tf.math.log1p(tf.abs(x))


def symexp(x):
    """sign(x) (exp |x| - 1)."""
    return tf.sign(x) * tf.math.expm1(tf.abs(x))


def linear_schedule(start, end, duration, step):
    """From `start` at step 0 to `end` at `duration`; constant if duration is 0."""
    if not duration:
        return tf.constant(start, tf.float32)
    fraction = tf.clip_by_value(tf.cast(step, tf.float32) / duration, 0.0, 1.0)
    return start + fraction * (end - start)


def add_gaussian(action, amount, rng):
    """`action` [..., A] plus Gaussian noise of std `amount`, clipped to [-1, 1]."""
    noise = rng.normal(tf.shape(action))
    return tf.clip_by_value(action + amount * noise, -1, 1)


def epsilon_greedy(action, amount, rng):
    """One-hot `action` [..., A], or with probability `amount` any, uniformly."""
    # The largest of equally distributed numbers is any of them equally often.
    scores = rng.normal(tf.shape(action))
    other = tf.one_hot(tf.argmax(scores, -1), action.shape[-1])
    return tf.where(rng.uniform(tf.shape(action[..., :1])) < amount, other, action)


class ClippedTanh(tfp.bijectors.Tanh):
    """tanh whose inverse is finite at -1 and 1, where float32 actions do arrive."""

    def _inverse(self, y):
        limit = 1 - 2.0**-24  # the largest float32 below 1
        return super()._inverse(tf.clip_by_value(y, -limit, limit))


class TanhNormal:
    """A diagonal Gaussian squashed by tanh to (-1, 1) [..., A] (paper, section 3).

    Noise is passed in, so that draws are the caller's to repeat or to share.

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
        """[...] log-density of `action` [..., A]; exact for an action of `sample`, for
        which the bijector remembers the value before the tanh.
        """
        return tf.reduce_sum(self._squashed.log_prob(action), -1)

    def entropy(self, action):
        """[...] nats, estimated from the draw `action` [..., A] of `sample`, through
        which it is differentiable in mean and std.
        """
        return -self.log_prob(action)

    def mode(self, noise):
        """The most likely of the samples that `noise` [S, ..., A] gives: [..., A].

        A tanh-Gaussian's mode has no closed form. Each row picks its own sample.
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
        """One-hot action for standard normal `noise` [..., A]. Its gradient is that of
        the probabilities: the draw itself has none.
        """
        # Gumbel-max, with Gumbel noise from the uniform number that is the Gaussian
        # distribution function of `noise`; in logarithms, where it cannot reach 1.
        gumbel = -tf.math.log(-tfd.Normal(0.0, 1.0).log_cdf(noise))
        probs = tf.exp(self._log_probs)
        action = self._one_hot(self._log_probs + gumbel)
        # In this order, so that the action is exactly one-hot.
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
    """A Gaussian of standard deviation 1 over events of `event_ndims` last axes.

    Args:
      mean: [..., event] float32.
    """

    def __init__(self, mean, event_ndims=0):
        self._mean = mean
        self._axes = list(range(-event_ndims, 0))

    def mean(self):
        """[..., event], which is also the mode."""
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
                # One pass over images, where TensorFlow's gradients are four.
                for _ in self._axes:
                    upstream = upstream[..., None]
                return upstream * difference, -upstream * difference

            return tf.reduce_sum(tf.square(difference), self._axes) / 2, gradient

        return half_square(value, mean)


class Every:
    """True once for every `period` steps, at the first call and after it.

    Multiples of the period count, not the time since the last call, so that a run that
    was resumed keeps its rhythm.
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
    """The seed of one of `DRAWS`, independent of the others' and of those of all other
    seeds.

    Args:
      seed: of the run.
      name: of the draws.
      key: whole numbers, where draws begin anew: another seed for each.

    Returns:
      an int of 63 bits.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(DRAWS.index(name), *key))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A training phase: how many were due before it, and the environment steps taken
    and the episodes kept when it was due.
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
