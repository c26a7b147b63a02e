"""`--jit auto`: which form of an update a run takes, and that none is lost."""

import dataclasses
import json
import time

import numpy as np
import pytest
from conftest import batch_of_noise

import configs
from agent import Dreamer, Policy
from support.run import updates

# isort: split
import tensorflow as tf

BATCH, LENGTH, ACTION = 2, 3, 2
TINY = """--configs debug --batch_size 2 --batch_length 3 --horizon 3 --cnn_depth 2
--num_units 8 --reward_layers 1 --actor_layers 1""".split()


@dataclasses.dataclass
class Sleeper:
    """An agent of which only the time matters: seconds of an update in graph and XLA,
    beside what the first of each takes to compile.
    """

    seconds: tuple
    gradient_step: int = 0
    compiled: bool = False
    forms: list = dataclasses.field(default_factory=list)

    def train(self, data):
        time.sleep(self.seconds[self.compiled] + 0.1 * (len(self.forms) < 2))
        self.gradient_step += 1
        self.forms.append(self.compiled)
        return dict(loss=0.0)


@pytest.mark.parametrize(
    'flags, gpus, replicas, expected',
    [
        ([], 1, 1, True),
        (['--jit', 'auto'], 1, 1, True),
        ([], 0, 1, False),
        ([], 2, 2, False),
        # Several machines with a GPU each.
        ([], 1, 2, False),
        (['--jit'], 1, 1, False),
        (['--jit', 'false'], 1, 1, False),
        # Another run of the same command could choose otherwise.
        (['--deterministic'], 1, 1, False),
    ],
)
def test_where_auto_may_compile(flags, gpus, replicas, expected):
    assert updates.may_compile(configs.parse(flags), gpus, replicas) is expected


@pytest.mark.parametrize('seconds', [(0.0, 0.02), (0.02, 0.0)])
def test_the_faster_form_stays(seconds):
    agent, kept = Sleeper(seconds), []
    update = updates.Updates(agent, True, keep=kept.append)
    update.begin(20)
    for _ in range(20):
        update({})
    faster = seconds[1] < seconds[0]
    assert agent.forms == [False, True] * 6 + [faster] * 8
    assert kept == [update.choice]
    assert update.choice['compiled'] is faster and update.choice['start'] == 0
    # To compile does not count.
    assert 20 <= max(update.choice['graph_ms'], update.choice['xla_ms']) < 100
    assert f'{"" if faster else "not "}compiled' in updates.describe(kept[0])


def test_a_trial_waits_for_a_phase_that_has_enough_updates():
    agent = Sleeper((0.002, 0.0))
    update = updates.Updates(agent, True)
    for count in 11, 12, 3:
        update.begin(count)
        for _ in range(count):
            update({})
    assert agent.forms == [False] * 11 + [False, True] * 6 + [True] * 3
    assert update.choice['start'] == 11


def test_a_trial_that_was_broken_off_is_made_anew():
    agent = Sleeper((0.002, 0.0))
    for count in 5, 20:
        update = updates.Updates(agent, True)
        update.begin(20)
        for _ in range(count):
            update({})
    assert agent.gradient_step == 25 and update.choice['start'] == 5


def test_nothing_is_tried_where_auto_may_not_compile():
    agent = Sleeper((0.002, 0.0), compiled=True)
    update = updates.Updates(agent, False, dict(compiled=False))
    update.begin(20)
    update({})
    assert agent.forms == [True] and update.choice is None


def make_agent(*flags):
    tf.config.experimental.enable_op_determinism()
    return Dreamer(configs.parse([*TINY, '--precision', '32', *flags]), ACTION)


def weights(agent):
    agent_weights = (x for o in agent.optimizers.values() for x in o.weights)
    return np.concatenate([np.ravel(x) for x in agent_weights])


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_numbers_of_one_that_was_not_interrupted():
    """Both forms are real; from before the trial, from within it, and from behind."""
    data = batch_of_noise(BATCH, LENGTH, ACTION)
    words = '--method planet --representation reward --log_images false'
    agent, kept, saved = make_agent(*words.split()), [], {}
    update = updates.Updates(agent, True, keep=kept.append)
    update.begin(14)
    for number in range(14):
        if number in (0, 7, 13):
            saved[number] = (
                agent.rng.state.numpy(),
                [
                    [tf.convert_to_tensor(x).numpy() for x in optimizer.weights]
                    for optimizer in agent.optimizers.values()
                ],
            )
        metrics = update(data)
    assert agent.gradient_step == 14
    assert {int(o.updates) for o in agent.optimizers.values()} == {14}
    expected = weights(agent), {key: float(x) for key, x in metrics.items()}
    (choice,) = kept
    # As a file has it.
    choice = json.loads(json.dumps(choice))
    for number, (noise, values) in saved.items():
        agent.rng.state.assign(noise)
        agent.gradient_step = number
        for optimizer, arrays in zip(agent.optimizers.values(), values, strict=True):
            for weight, array in zip(optimizer.weights, arrays, strict=True):
                weight.assign(array)
        update = updates.Updates(agent, True, choice)
        update.begin(14 - number)
        for _ in range(number, 14):
            metrics = update(data)
        np.testing.assert_array_equal(weights(agent), expected[0])
        assert {key: float(x) for key, x in metrics.items()} == expected[1]


@pytest.mark.slow
def test_what_xla_cannot_compile_goes_on_without(monkeypatch, capfd):
    """`numpy_function` is Python, of which XLA knows nothing."""
    update, choose = Dreamer.update, Policy.choose

    def python(x):
        return tf.ensure_shape(tf.numpy_function(np.copy, [x], x.dtype), x.shape)

    monkeypatch.setattr(
        Dreamer,
        'update',
        lambda self, batch: update(self, dict(batch, reward=python(batch['reward']))),
    )
    monkeypatch.setattr(
        Policy,
        'choose',
        lambda self, embed, *others: choose(self, python(embed), *others),
    )
    agent, kept = make_agent(), []
    data = batch_of_noise(BATCH, LENGTH, ACTION)
    tried = updates.Updates(agent, True, keep=kept.append)
    tried.begin(14)
    for _ in range(14):
        tried(data)
    assert agent.gradient_step == 14
    assert {int(o.updates) for o in agent.optimizers.values()} == {14}
    assert kept == [dict(compiled=False)] == [tried.choice]
    assert 'XLA cannot' in updates.describe(tried.choice)
    image, first = np.zeros((1, 64, 64, 3), np.uint8), np.ones(1, bool)
    for _ in range(2):
        policy = Policy(agent, 1, training=False)
        for _ in range(2):
            assert np.isfinite(policy({'image': image}, first)).all()
    lines = [
        line for line in capfd.readouterr().err.splitlines() if 'XLA cannot' in line
    ]
    assert len(lines) == 2
    assert 'the training step' in lines[0] and 'the policy' in lines[1]
    assert all('PyFunc' in line for line in lines)
