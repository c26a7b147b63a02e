"""The PlaNet baseline: planning by the cross-entropy method in latent space (Hafner et
al. 2019, *Learning Latent Dynamics for Planning from Pixels*, algorithm 2).

Shapes: E environments, C candidates, K elites, H planning horizon, A action.
"""

import tensorflow as tf


def plan(score, shape, rng, candidates=1000, iterations=10, elites=100):
    """Find good action sequences with the cross-entropy method.

    The search distribution starts as N(0, 1). Each iteration draws candidates, clips
    them to [-1, 1], scores them, and fits the distribution to the best.

    Args:
      score: function from actions [E, C, H, A] to scores [E, C], the higher the better.
      shape: (E, H, A).
      rng: `tf.random.Generator`.
      candidates: C in each iteration.
      iterations: number of iterations.
      elites: K, the best candidates, which the distribution is fitted to.

    Returns:
      [E, H, A], the final mean, in [-1, 1].
    """
    envs, horizon, size = shape

    def iterate(i, mean, std):
        noise = rng.normal((envs, candidates, horizon, size))
        actions = tf.clip_by_value(mean[:, None] + std[:, None] * noise, -1, 1)
        return i + 1, *refit(actions, score(actions), elites)

    _, mean, _ = tf.while_loop(
        lambda i, mean, std: i < iterations,
        iterate,
        (0, tf.zeros(shape), tf.ones(shape)),
    )
    return mean


def choose(world, state, rng, config):
    """Plan in a world model, by the sum of predicted rewards; return the first actions
    [E, A] of the plans.

    Args:
      world: `agent.WorldModel`.
      state: of `models.RSSM`, [E, ...], where the plans start.
      rng: `tf.random.Generator`.
      config: `configs.Config` with the settings `plan_...`.
    """
    envs, horizon = state['deter'].shape[0], config.plan_horizon
    size, rows = world.rssm.action_size, envs * config.plan_candidates
    start = {
        key: tf.repeat(value, config.plan_candidates, 0) for key, value in state.items()
    }

    def score(actions):
        rewards = world.rewards(
            start,
            tf.reshape(actions, (rows, horizon, size)),
            rng.normal((rows, horizon, config.stoch_size)),
        )
        return tf.reshape(tf.reduce_sum(rewards, 1), (envs, -1))

    return plan(
        score,
        (envs, horizon, size),
        rng,
        config.plan_candidates,
        config.plan_iterations,
        config.plan_elites,
    )[:, 0]


def refit(actions, scores, elites):
    """Fit a diagonal Gaussian to the best candidates.

        mean = 1/K sum a_k,  std = sqrt(1/K sum (a_k - mean)^2 + 1e-6)

    Args:
      actions: [E, C, H, A].
      scores: [E, C], the higher the better.
      elites: K.

    Returns:
      mean and std [E, H, A].
    """
    best = tf.gather(actions, tf.math.top_k(scores, elites).indices, batch_dims=1)
    mean, variance = tf.nn.moments(best, 1)
    # The constant keeps the search from collapsing to one sequence.
    return mean, tf.sqrt(variance + 1e-6)
