"""One run on several GPUs or machines: the batch is split among replicas that stay
equal.

TensorFlow's `MirroredStrategy`, or `MultiWorkerMirroredStrategy` for several machines,
keeps a copy of every weight on every GPU. Each replica takes the losses of its part of
the batch, their gradients are averaged, and all clip and apply the same. That is the
update of one GPU with the whole batch if two things hold: what is not linear in the
batch (free nats, contrasted images) is computed from the whole batch, and noise is
drawn once, for all.

Without a strategy every function here hands through what it is given.

Shapes: B batch, L length, H horizon.
"""

import signal
import socket
import time

import tensorflow as tf

PATIENCE = 60  # Seconds in which all machines' names have to get an address.

# Along which axis the rows of the batch lie: [B, ...], or [H, B*L, ...].
NOISE_AXES = dict(post=0, latent=1, action=1, image=0)


def make_strategy(config, devices=None, addresses=None):
    """The strategy for `devices`, by default all visible GPUs, on each machine of
    `addresses` (`machines.Addresses`); None for a single device.

    Raises:
      ValueError: `config` cannot run on so many, or a machine's name has no address.
      RuntimeError: this machine cannot be reached by the others.
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
    # TensorFlow waits where Python's own handler is not heard.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise RuntimeError(
            f'machine {addresses.rank} at {addresses.hosts[addresses.rank]}, its '
            'address in TF_CONFIG, cannot join the others '
            f'({str(error.message).splitlines()[0]})'
        ) from None
    # It has put a handler there that waits for its own ways of saving.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return strategy


def _resolve(hosts):
    """Raise ValueError where a HOST:PORT has no address, and gets none while machines
    start: TensorFlow would wait for it without end.
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
    """A batch of arrays as tensors on the device that trains on them, of several each
    replica's rows on its own. To be done ahead, in another thread: it takes time, and
    GPUs have no kernel that would split images.

    Args:
      strategy: of `make_strategy`, or None.
      batch: batch of replay, [B, L, ...]; of several machines, this one's rows of it.
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
    """B and L of what `place` has placed, on all replicas together."""
    if strategy is None:
        return batch['reward'].shape
    rows, length = strategy.experimental_local_results(batch['reward'])[0].shape
    return rows * strategy.num_replicas_in_sync, length


def run(strategy, update, batch, noise):
    """`update(batch, noise)`, each replica with its part of the batch.

    Args:
      strategy: of `make_strategy`, or None.
      update: returns scalar metrics by name.
      batch: of `place`; without a strategy any batch of replay.
      noise: of `Dreamer.noise`, for the whole batch of all machines.

    Returns:
      metrics, their means over replicas.
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
    """Means over replicas of float32 tensors, for each of them; differentiable."""
    context = _replica()
    if not context:
        return values
    # As one: on a network each takes a round trip, however small it is.
    sizes = [value.shape.num_elements() for value in values]
    packed = tf.concat([tf.reshape(value, (-1,)) for value in values], 0)
    means = tf.split(context.all_reduce('MEAN', packed), sizes)
    return [tf.reshape(x, value.shape) for x, value in zip(means, values, strict=True)]


def batch_mean(values):
    """The mean of float32 `values` [...] over all replicas' rows; differentiable."""
    return mean([tf.reduce_mean(values)])[0]


def gather_batch(values):
    """All replicas' rows of tensors [B, ...], for each of them; differentiable."""
    context = _replica()
    return context.all_gather(values, 0) if context else values


def once_for_all(step, gradients, finite):
    """`step(gradients, finite)` once for all replicas, which have come to equal
    values: only there can counters be assigned to that they share.
    """
    context = _replica()
    if not context:
        step(gradients, finite)
        return

    def merged(strategy, gradients, finite):
        step(gradients, strategy.experimental_local_results(finite)[0])

    context.merge_call(merged, (gradients, finite))


def for_each_copy(update, variable, *others):
    """`update(variable, *others)` with each replica's copies of variables and values,
    inside `once_for_all`.
    """
    if not tf.distribute.in_cross_replica_context():
        update(variable, *others)
        return
    tf.distribute.get_strategy().extended.update(variable, update, others, group=False)


def _replica():
    context = tf.distribute.get_replica_context()
    return context if context and context.num_replicas_in_sync > 1 else None
