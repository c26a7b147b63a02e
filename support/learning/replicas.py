"""One run on several GPUs or machines: replicas with equal weights share each batch.

TensorFlow's `MirroredStrategy`, or `MultiWorkerMirroredStrategy` for several machines,
keeps a copy of every weight on every GPU. Each replica computes the gradients of its
part of the batch. All replicas clip and apply the mean of these gradients. The result
equals the update of one GPU with the whole batch, on two conditions: free nats and
the contrastive objective use the whole batch, and all noise is drawn at once.

Without a strategy, every function here treats its arguments as the whole batch.

Shapes: B batch, L length, H horizon.
"""

import signal
import socket
import time

import tensorflow as tf

PATIENCE = 60  # Seconds to wait until all machines' names have an address.

# The axis of each noise with the rows of the batch: [B, ...], or [H, B*L, ...].
NOISE_AXES = dict(post=0, latent=1, action=1, image=0)


def make_strategy(config, devices=None, addresses=None):
    """Make the strategy for `devices`, by default all visible GPUs, on each machine of
    `addresses` (`machines.Addresses`); None for a single device.

    Raises:
      ValueError: `config` cannot run on so many, or a machine's name has no address.
      RuntimeError: the other machines cannot reach this one.
    """
    if devices is None:
        gpus = tf.config.list_physical_devices('GPU')
        devices = [f'GPU:{i}' for i in range(len(gpus))]
    count, where, fewer = (len(devices), 'GPUs', 'fewer GPUs (CUDA_VISIBLE_DEVICES=0)')
    if addresses:
        count = len(addresses.hosts) * max(1, count)
        where, fewer = 'replicas of all machines', 'fewer machines in TF_CONFIG'
    if count < 2:
        return None
    if config.batch_size % count:
        raise ValueError(
            f'--batch_size {config.batch_size} cannot be split among {count} {where}; '
            f'possible: multiples of {count}, or {fewer}'
        )
    if config.jit == 'true':
        raise ValueError(
            f'--jit compiles for one device and there are {count} '
            f'{where}; leave it out, or take {fewer}'
        )
    if config.deterministic:
        raise ValueError(
            f'--deterministic holds for one device and there are {count} {where}, '
            f'whose sums have no fixed order; leave it out, or take {fewer}'
        )
    if not addresses:
        return tf.distribute.MirroredStrategy(devices)
    _resolve(addresses.hosts)
    print(
        f'machine {addresses.rank} of {len(addresses.hosts)}, waiting for the others: '
        f'{", ".join(addresses.hosts)}',
        flush=True,
    )
    # Python's handler would not run while TensorFlow waits for the other machines.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise RuntimeError(
            f'machine {addresses.rank} at {addresses.hosts[addresses.rank]}, its '
            'address in TF_CONFIG, cannot join the others '
            f'({str(error.message).splitlines()[0]})'
        ) from None
    # TensorFlow has set a handler that waits for a checkpoint of its kind.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return strategy


def _resolve(hosts):
    """Wait until each HOST:PORT has an address. Raise ValueError if one has none after
    `PATIENCE`: TensorFlow would wait for it without end.
    """
    deadline = time.monotonic() + PATIENCE
    for host in hosts:
        name = host.rsplit(':', 1)[0].strip('[]')
        while True:
            try:
                socket.getaddrinfo(name, None)
                break
            except (OSError, UnicodeError) as error:
                if time.monotonic() >= deadline:
                    raise ValueError(
                        f'TF_CONFIG names {host}, and {name} has no address here '
                        f'({getattr(error, "strerror", None) or error})'
                    ) from None
            print(f'waiting for an address of {name}', flush=True)
            time.sleep(5)


def place(strategy, batch):
    """Copy a batch of arrays to the device that trains, or each replica's rows to its
    device: GPUs have no kernel that could split images. Copying takes time; call it
    ahead, in another thread.

    Args:
      strategy: from `make_strategy`, or None.
      batch: from replay, [B, L, ...]; on several machines, this one's rows.
    """

    def upload(device, rows):
        with tf.device(device):
            return {key: tf.identity(x[rows]) for key, x in batch.items()}

    if strategy is None:
        gpu = tf.config.list_physical_devices('GPU')
        return upload('GPU:0' if gpu else 'CPU:0', slice(None))
    devices = strategy.extended.worker_devices

    def part(context):
        index = context.replica_id_in_sync_group % len(devices)
        rows = len(batch['reward']) // len(devices)
        return upload(devices[index], slice(index * rows, (index + 1) * rows))

    return strategy.experimental_distribute_values_from_function(part)


def batch_shape(strategy, batch):
    """Return B and L of a batch of `place`, all replicas together."""
    if strategy is None:
        return batch['reward'].shape
    rows, length = strategy.experimental_local_results(batch['reward'])[0].shape
    return rows * strategy.num_replicas_in_sync, length


def run(strategy, update, batch, noise):
    """Call `update(batch, noise)` on each replica with its part of the batch.

    Args:
      strategy: from `make_strategy`, or None.
      update: returns scalar metrics by name.
      batch: from `place`; without a strategy, any batch of replay.
      noise: from `Dreamer.noise`, for the whole batch of all machines.

    Returns:
      means of the metrics over replicas.
    """
    if strategy is None:
        return update(batch, noise)

    def part(context):
        count, index = context.num_replicas_in_sync, context.replica_id_in_sync_group
        return {
            key: tf.split(x, count, NOISE_AXES[key])[index] for key, x in noise.items()
        }

    def step(batch, noise):
        metrics = update(batch, noise)
        return dict(zip(metrics, mean(list(metrics.values())), strict=True))

    parts = strategy.experimental_distribute_values_from_function(part)
    return {
        name: strategy.experimental_local_results(value)[0]
        for name, value in strategy.run(step, (batch, parts)).items()
    }


def mean(values):
    """Return each float32 tensor's mean over all replicas; differentiable."""
    context = _replica()
    if not context:
        return values
    # Packed, because every transfer over a network takes a round trip.
    sizes = [value.shape.num_elements() for value in values]
    packed = tf.concat([tf.reshape(value, (-1,)) for value in values], 0)
    means = tf.split(context.all_reduce('MEAN', packed), sizes)
    return [tf.reshape(x, value.shape) for x, value in zip(means, values, strict=True)]


def batch_mean(values):
    """Return the mean of float32 `values` [...] over all replicas; differentiable."""
    return mean([tf.reduce_mean(values)])[0]


def gather_batch(values):
    """Return tensors [B, ...] with the rows of all replicas; differentiable."""
    context = _replica()
    if not context:
        return values
    count = context.num_replicas_in_sync
    # A graph does not know how many rows come together.
    return [
        tf.ensure_shape(rows, (count * x.shape[0], *x.shape[1:]))
        for rows, x in zip(context.all_gather(values, 0), values, strict=True)
    ]


def once_for_all(step, gradients, finite):
    """Call `step(gradients, finite)` once for all replicas, whose values are equal.
    Only there can `step` assign to counters that replicas share.
    """
    context = _replica()
    if not context:
        step(gradients, finite)
        return

    def merged(strategy, gradients, finite):
        step(gradients, strategy.experimental_local_results(finite)[0])

    context.merge_call(merged, (gradients, finite))


def for_each_copy(update, variable, *others):
    """Call `update(variable, *others)` with each replica's copies (`once_for_all`)."""
    if not tf.distribute.in_cross_replica_context():
        update(variable, *others)
        return
    tf.distribute.get_strategy().extended.update(variable, update, others, group=False)


def _replica():
    context = tf.distribute.get_replica_context()
    return context if context and context.num_replicas_in_sync > 1 else None
