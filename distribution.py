"""One run on all visible GPUs: the batch is split among replicas that stay equal.

TensorFlow's `MirroredStrategy` keeps a copy of every weight on every GPU. Each replica
takes the losses of its part of the batch, their gradients are averaged, and all clip
and apply the same. That is the update of one GPU with the whole batch if two things
hold: what is not linear in the batch (free nats, contrasted images) is computed from
the whole batch, and noise is drawn once, for all.

Without a strategy every function here hands through what it is given.

Shapes: B batch, L length, H horizon.
"""

import tensorflow as tf

# Along which axis the rows of the batch lie: [B, ...], or [H, B*L, ...].
NOISE_AXES = dict(post=0, latent=1, action=1)


def make_strategy(config, devices=None):
    """The strategy for `devices`, by default all visible GPUs; None for a single one.

    Raises ValueError if `config` cannot run on so many.
    """
    if devices is None:
        devices = [device.name for device in tf.config.list_logical_devices('GPU')]
    count = len(devices)
    if count < 2:
        return None
    if config.batch_size % count:
        raise ValueError(
            f'--batch_size {config.batch_size} cannot be split among {count} GPUs; '
            f'possible: multiples of {count}, or fewer GPUs (CUDA_VISIBLE_DEVICES=0)')
    if config.jit:
        raise ValueError(f'--jit compiles for one GPU and there are {count}; leave it '
                         'out, or set CUDA_VISIBLE_DEVICES=0')
    return tf.distribute.MirroredStrategy(devices)


def run(strategy, update, data, noise):
    """`update(data, noise)`, each replica with its part of the batch.

    Args:
      strategy: of `make_strategy`, or None.
      update: returns scalar metrics by name.
      data: batch of replay, [B, L, ...].
      noise: of `Dreamer.noise`, for the whole batch.

    Returns:
      metrics, their means over replicas.
    """
    if strategy is None:
        return update(data, noise)

    def part(context):
        def rows(x, axis=0):
            return tf.split(x, context.num_replicas_in_sync, axis)[
                context.replica_id_in_sync_group]

        return ({key: rows(x) for key, x in data.items()},
                {key: rows(x, NOISE_AXES[key]) for key, x in noise.items()})

    parts = strategy.experimental_distribute_values_from_function(part)
    metrics = strategy.run(lambda parts: update(*parts), (parts,))
    return {name: strategy.reduce('MEAN', value, axis=None)
            for name, value in metrics.items()}


def mean(values):
    """Means over replicas of tensors, for each of them; differentiable."""
    context = _replica()
    return context.all_reduce('MEAN', values) if context else values


def whole_batch(values):
    """All replicas' rows of tensors [B, ...], for each of them; differentiable."""
    context = _replica()
    return context.all_gather(values, 0) if context else values


def together(step, gradients, finite):
    """`step(gradients, finite)` once for all replicas, which have come to equal values:
    only there a step may depend on a condition."""
    context = _replica()
    if not context:
        step(gradients, finite)
        return

    def merged(strategy, gradients, finite):
        step(gradients, strategy.experimental_local_results(finite)[0])

    context.merge_call(merged, (gradients, finite))


def apply(optimizer, gradients, variables):
    """One step of a Keras optimiser, inside `together`."""
    if not tf.distribute.in_cross_replica_context():
        optimizer.apply(gradients, variables)
        return

    # Keras' own `apply` would sum the replicas' gradients, and cannot be called here.
    def update(variable, gradient):
        optimizer.update_step(gradient, variable, optimizer.learning_rate)

    for gradient, variable in zip(gradients, variables, strict=True):
        tf.distribute.get_strategy().extended.update(
            variable.value, update, (gradient,), group=False)
    optimizer.iterations.assign_add(1)


def _replica():
    context = tf.distribute.get_replica_context()
    return context if context and context.num_replicas_in_sync > 1 else None
