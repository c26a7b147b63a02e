"""Time one update of the agent against the floor that its arithmetic sets.

    python benchmarks/train_step.py [--task_actions 6] [--repeats 5]
        [--plain_allocator] [dreamer.py flags]

Sizes are the paper's unless flags change them. The last line is one JSON object:

    update_s     median seconds of an update (world model, actor, value network)
    gemm_gflops  best rate of a 4096x4096x4096 float32 matrix product, run between the
                 timed updates
    floor_s      floating point operations of one update / gemm_gflops
    ratio        update_s / floor_s
    policy_ms    median milliseconds of a policy call in one environment
    policy_16_ms
                 median milliseconds of a policy call in 16 environments
    policy_16_bound_ms
                 policy_ms, and 1.5 times the floor of 15 more environments
    build_s      seconds of construction and tracing, before the first update
    peak_rss_mb  peak resident memory of the process in three updates, without replay
                 and matrices; glibc keeps freed memory as in dreamer.py, or has its
                 defaults with --plain_allocator
    launches, launches_16
                 kernels that a GPU would start in one update in float32 and in float16;
                 with _to_host and _to_device, copies between the two (see launches.py)
"""

import dataclasses
import json
import pathlib
import resource
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from support.run import startup  # noqa: F401 (first: it imports TensorFlow without its chatter)

# isort: split
import numpy as np
import tensorflow as tf

import configs
from agent import Dreamer, Policy
from benchmarks import launches
from support.system import command_line


def dense(*sizes):
    """Return the multiply-adds of a chain of dense layers, for one row."""
    return sum(a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def multiply_adds(config, action_size):
    """Return the multiply-adds of one forward pass, for one row, by part.

    `first` is the encoder's first convolution, which needs no input gradient.
    """
    depth, units, hidden = config.cnn_depth, config.num_units, config.rssm_units
    stoch, deter = config.stoch_size, config.deter_size
    feature = stoch + deter
    channels = (3, depth, 2 * depth, 4 * depth, 8 * depth)
    convs = [
        size**2 * 4**2 * channels[i] * channels[i + 1]
        for i, size in enumerate((31, 14, 6, 2))
    ]
    channels = (32 * depth, 4 * depth, 2 * depth, depth, 3)
    shapes = (1, 5), (5, 5), (13, 6), (30, 6)
    transposed = [
        size**2 * kernel**2 * channels[i] * channels[i + 1]
        for i, (size, kernel) in enumerate(shapes)
    ]
    dynamics = (
        dense(stoch + action_size, hidden)
        + 3 * deter * (hidden + deter)
        + dense(deter, hidden, 2 * stoch)
    )
    return dict(
        first=convs[0],
        encoder=sum(convs),
        decoder=dense(feature, 32 * depth) + sum(transposed),
        dynamics=dynamics,
        posterior=dense(deter + 32 * depth, hidden, 2 * stoch),
        reward=dense(feature, *config.reward_layers * [units], 1),
        pcont=dense(feature, units, units, units, 1) if config.pcont else 0,
        actor=dense(feature, *config.actor_layers * [units], 2 * action_size),
        value=dense(feature, units, units, units, 1),
    )


def update_flops(config, action_size):
    """Return the floating point operations of one update, 2 for each multiply-add.

    The world model needs a forward product and both gradients (weights and inputs),
    except the input gradient of the first convolution. In imagination, the actor needs
    forward and weight gradient; dynamics, heads and value network need forward and
    input gradient. The value loss needs forward and both gradients of its network.
    """
    one = multiply_adds(config, action_size)
    rows = config.batch_size * config.batch_length
    world = 3 * sum(
        one[name]
        for name in ('encoder', 'decoder', 'dynamics', 'posterior', 'reward', 'pcont')
    )
    imagined = (
        2 * sum(one[name] for name in ('actor', 'dynamics', 'reward', 'pcont', 'value'))
        + 3 * one['value']
    )
    return 2 * rows * (world - one['first'] + config.horizon * imagined)


def random_batch(config, action_size):
    """Return a replay batch of noise, [B, L, ...]."""
    rng = np.random.default_rng(0)
    shape = config.batch_size, config.batch_length
    is_first = np.zeros(shape, bool)
    is_first[:, 0] = True
    return dict(
        image=rng.integers(0, 256, (*shape, 64, 64, 3), np.uint8),
        action=rng.uniform(-1, 1, (*shape, action_size)).astype(np.float32),
        reward=rng.uniform(0, 1, shape).astype(np.float32),
        discount=np.ones(shape, np.float32),
        is_first=is_first,
    )


def seconds(function):
    """Return the wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(config, action_size, repeats):
    """Build the agent and time it; return the figures of the last line."""
    start = time.perf_counter()
    agent = Dreamer(config, action_size)
    batch = random_batch(config, action_size)
    agent.form.get_concrete_function(
        {key: tf.TensorSpec(x.shape, x.dtype) for key, x in batch.items()}
    )
    build = time.perf_counter() - start

    def update():
        [float(value) for value in agent.train(batch).values()]

    for _ in range(3):
        update()
    # Training does not have the matrices below.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # The machine's best rate may be NumPy's, or TensorFlow's with its GPU.
    matrix = tf.random.normal((4096, 4096))
    array = matrix.numpy()
    multiply = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)[0]))
    multiply().numpy()
    updates, products = [], []
    for _ in range(repeats):
        updates.append(seconds(update))
        products += [
            seconds(lambda: multiply().numpy()),
            seconds(lambda: array @ array),
        ]
        print(
            f'update {updates[-1]:.2f} s, '
            f'{2 * 4096**3 / min(products[-2:]) / 1e9:.0f} GFLOP/s',
            flush=True,
        )
    gflops = 2 * 4096**3 / min(products) / 1e9
    floor = update_flops(config, action_size) / gflops / 1e9
    update_s = statistics.median(updates)
    one, many = policy_ms(agent, 1), policy_ms(agent, 16)
    bound = one + 1.5 * 15 * policy_flops(config, action_size) / gflops / 1e6
    return dict(
        update_s=update_s,
        gemm_gflops=gflops,
        floor_s=floor,
        ratio=update_s / floor,
        policy_ms=one,
        policy_16_ms=many,
        policy_16_bound_ms=bound,
        build_s=build,
        peak_rss_mb=peak,
    )


def policy_flops(config, action_size):
    """Return the floating point operations of acting in one environment."""
    one = multiply_adds(config, action_size)
    # The posterior needs no prior.
    prior = dense(config.deter_size, config.rssm_units, 2 * config.stoch_size)
    return 2 * (
        one['encoder'] + one['dynamics'] - prior + one['posterior'] + one['actor']
    )


def policy_ms(agent, envs, calls=300):
    """Return the median milliseconds of acting in `envs` environments."""
    rng = np.random.default_rng(0)
    observation = {'image': rng.integers(0, 256, (envs, 64, 64, 3), np.uint8)}
    first = np.zeros(envs, bool)
    policy = Policy(agent, envs, training=True)
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        policy(observation, first)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[10:])


def main():
    """Run the command line."""
    parser = command_line.Parser(
        prog='train_step.py', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--task_actions',
        type=command_line.number(int, 1),
        default=6,
        help='action size',
    )
    parser.add_argument(
        '--repeats', type=command_line.number(int, 1), default=5, help='timed updates'
    )
    parser.add_argument('--plain_allocator', action='store_true')
    with command_line.refusing('train_step'):
        args, flags = parser.parse_known_args()
        config = configs.parse(flags)
    if not args.plain_allocator:
        startup.keep_freed_memory()
    config, _ = startup.set_up_devices(config)
    figures = measure(config, args.task_actions, args.repeats)
    for name, precision in dict(launches='32', launches_16='16').items():
        counted = dataclasses.replace(config, precision=precision)
        totals = launches.count(counted, args.task_actions).totals
        figures[name] = totals.pop('kernels')
        figures |= {f'{name}_{way}': number for way, number in totals.items()}
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
