"""`--jit true`: the compiled update has the plain one's losses and gradients."""

import numpy as np
import pytest
import tensorflow as tf

import configs
from agent import Dreamer

BATCH, LENGTH, ACTION = 2, 3, 2
TINY = """--configs debug --batch_size 2 --batch_length 3 --horizon 3 --cnn_depth 2
--num_units 8 --reward_layers 1 --actor_layers 1 --free_nats 0 --pcont true""".split()
# How far gradients may be apart, as a share of the norm of all. XLA keeps in float32
# between operations what TensorFlow rounds after each: to 11 digits, or to 8.
APART = {'32': 1e-5, '16': 0.01, 'bfloat16': 0.05}


def make_batch():
    rng = np.random.default_rng(0)
    is_first = np.zeros((BATCH, LENGTH), bool)
    is_first[:, 0] = True
    return {
        key: tf.constant(value)
        for key, value in dict(
            image=rng.integers(0, 256, (BATCH, LENGTH, 64, 64, 3), np.uint8),
            action=rng.uniform(-1, 1, (BATCH, LENGTH, ACTION)).astype(np.float32),
            reward=rng.uniform(0, 1, (BATCH, LENGTH)).astype(np.float32),
            discount=np.ones((BATCH, LENGTH), np.float32),
            is_first=is_first,
        ).items()
    }


def losses_and_gradients(config, jit):
    """Of one update: its metrics, and by optimiser what Adam has of the gradients."""
    agent = Dreamer(config, ACTION)
    for optimizer in agent.optimizers.values():
        optimizer.loss_scale.assign(64.0)
    noise = agent.noise(BATCH, LENGTH)
    update = tf.function(agent.update, autograph=False, jit_compile=jit)
    metrics = {key: float(x) for key, x in update(make_batch(), noise).items()}
    return metrics, {
        name: np.concatenate(
            [np.ravel(tf.convert_to_tensor(x)) for x in optimizer._adam._momentums]
        )
        for name, optimizer in agent.optimizers.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    'representation, precision',
    [
        ('reconstruction', '32'),
        ('reconstruction', '16'),
        ('reconstruction', 'bfloat16'),
        ('contrastive', '32'),
    ],
)
def test_the_compiled_update_is_the_plain_one(representation, precision):
    config = configs.parse(
        [*TINY, '--representation', representation, '--precision', precision]
    )
    plain, compiled = (losses_and_gradients(config, jit) for jit in (False, True))
    apart = APART[precision]
    for name, value in plain[0].items():
        assert compiled[0][name] == pytest.approx(value, rel=apart, abs=apart), name
    for name, gradient in plain[1].items():
        difference = np.linalg.norm(compiled[1][name] - gradient)
        assert 0 < np.linalg.norm(gradient) and difference <= apart * np.linalg.norm(
            gradient
        ), (name, difference / np.linalg.norm(gradient))
