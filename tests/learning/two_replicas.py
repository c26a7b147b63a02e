"""Updates on one device and on two, compared; run by test_replicas.py.

A program of its own, because TensorFlow makes logical devices at its start only. Prints
a JSON object: for each case how far the two agents' numbers are apart, and more.
"""

import functools
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import configs  # noqa: E402
import tools  # noqa: E402
from agent import Dreamer  # noqa: E402
from support.learning import replicas

BATCH, LENGTH, ACTION, STATE = 4, 5, 2, 3
FLAGS = f'--configs debug --batch_size {BATCH} --batch_length {LENGTH}'.split()
FLAGS += ['--precision', '32']


def make_data():
    """A batch whose second half is unlike the first."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (BATCH, LENGTH, 64, 64, 3), np.uint8)
    image[BATCH // 2 :] //= 8
    action = rng.uniform(-1, 1, (BATCH, LENGTH, ACTION)).astype(np.float32)
    is_first = np.zeros((BATCH, LENGTH), bool)
    is_first[:, 0] = True
    reward = rng.uniform(0, 1, (BATCH, LENGTH)).astype(np.float32)
    reward[BATCH // 2 :] *= 5
    return {
        key: tf.constant(value)
        for key, value in dict(
            image=image,
            state=rng.normal(size=(BATCH, LENGTH, STATE)).astype(np.float32),
            action=action,
            reward=reward,
            is_first=is_first,
            discount=np.ones((BATCH, LENGTH), np.float32),
        ).items()
    }


@functools.cache
def strategy():
    """One for all: TensorFlow confuses the collectives of several."""
    devices = [device.name for device in tf.config.list_logical_devices('CPU')]
    return replicas.make_strategy(configs.parse(FLAGS), devices)


def make_agents(flags):
    """One agent on one device and one on two, alike."""
    config = configs.parse([*FLAGS, *map(str, flags)])
    agents = [Dreamer(config, ACTION, x, STATE) for x in (None, strategy())]
    assert apart(*map(numbers, agents)) == 0
    return agents


def variables(agent):
    """Weights, Adam's state, loss scales and counters, by a name for each."""
    result = {}
    for name, optimizer in agent.optimizers.items():
        for kind, group in dict(
            weight=optimizer._variables,
            adam=optimizer._adam.variables,
            own=[
                optimizer.loss_scale,
                optimizer.good_steps,
                optimizer.skipped,
                optimizer.skipped_in_a_row,
            ],
        ).items():
            for i, variable in enumerate(group):
                keras_made = isinstance(variable, keras.Variable)
                result[name, kind, i] = variable.value if keras_made else variable
    return result


def numbers(agent, replica=0):
    """Their values on one replica."""
    return {
        key: strategy().experimental_local_results(x)[replica].numpy()
        for key, x in variables(agent).items()
    }


def differences(ours, theirs, kind=None):
    """Largest difference in each array, ascending; of Adam's averages of gradients
    relative to the array's largest number: they show what Adam's quotient hides.
    """
    return sorted(
        float(
            np.abs(ours[key] - theirs[key]).max()
            / (np.abs(ours[key]).max() + 1e-30 if key[1] == 'adam' else 1)
        )
        for key in ours
        if kind in (None, key[1])
    )


def apart(*args):
    """The largest of `differences`."""
    return differences(*args)[-1]


def compare(*flags, updates=2, change=None, scale=None, graph=False):
    """Make the same updates with both, from a given loss scale of the model on, the
    last one with a changed batch; returns what is to be asserted on.
    """
    agents, data = make_agents(flags), make_data()
    before, metrics = numbers(agents[0]), []
    for agent in agents:
        if scale:
            agent.optimizers['model'].loss_scale.assign(scale)
        update = tf.function(agent.update, autograph=False) if graph else agent.update
        for i in range(updates):
            batch = change(data) if change and i == updates - 1 else data
            batch = {key: x.numpy() for key, x in batch.items()}
            values = update(agent.on_device(batch), agent.noise(BATCH, LENGTH))
            if i == updates - 2:
                middle = numbers(agent, -1)
        metrics.append({key: float(value) for key, value in values.items()})
    one, two, other = numbers(agents[0]), numbers(agents[1]), numbers(agents[1], 1)
    return dict(
        weights=apart(one, two, 'weight'),
        adam=apart(one, two, 'adam'),
        own=apart(one, two, 'own'),
        replicas=apart(two, other),
        moved=apart(one, before, 'weight'),
        last_moved=apart(other, middle, 'weight'),
        metrics=metrics,
        skipped=[
            [int(x.skipped.numpy()) for x in agent.optimizers.values()]
            for agent in agents
        ],
    )


def kl_halves():
    """KL of the two halves' means, at the start."""
    agent, data = make_agents(['--free_nats', 0])[0], make_data()
    noise = agent.noise(BATCH, LENGTH)['post']
    kl = tools.gaussian_kl(
        *agent.world.rssm.observe(
            agent.world.encoder(data), data['action'], data['is_first'], noise
        )
    ).numpy()
    return sorted([float(kl[: BATCH // 2].mean()), float(kl[BATCH // 2 :].mean())])


def poisoned(data):
    """Not a number in the last row, which is the second replica's."""
    action = data['action'].numpy()
    action[-1, 0, 0] = np.nan
    return dict(data, action=tf.constant(action))


def main():
    (cpu,) = tf.config.list_physical_devices('CPU')
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    low, high = kl_halves()
    mean = (low + high) / 2
    # Where the world model matters alone.
    planet = '--method', 'planet'
    contrastive = *planet, '--representation', 'contrastive', '--log_images', 'false'
    whole = '--free_nats', 0, '--pcont', 'true', '--observation', 'both'
    loud, smooth = (*planet, '--kl_scale', 1e4), ('--cnn_act', 'elu')
    results = dict(
        graph=compare(*whole, '--grad_clip', 0.05, graph=True),
        above=compare('--free_nats', (low + mean) / 2, *loud),
        below=compare('--free_nats', (high + mean) / 2, *loud),
        # A graph does not know the number of gathered rows by itself.
        contrastive=compare(*contrastive, graph=True),
        window=compare(*contrastive, '--contrastive_window', 3),
        nan=compare(change=poisoned),
        # Smooth: which side of a ReLU's kink a number is on, float16 leaves open, and
        # the second update, in weights that Adam moves by a gradient's sign, takes it.
        float16=compare(*smooth, '--precision', '16', '--free_nats', 0, scale=64.0),
        kl=[low, high],
    )
    print(json.dumps(results))


if __name__ == '__main__':
    main()
