"""`--jit true`: the compiled update has the plain one's losses and gradients, and where
XLA cannot compile, one line says why.
"""

import forks
import numpy as np
import pytest
from conftest import CLEAN, batch_of_noise, short_run

# isort: split
import tensorflow as tf

import configs
from agent import Dreamer

BATCH, LENGTH, ACTION = 2, 3, 2
# XLA takes most of a case's time to compile 250 kernels and more, and 0.1 s to execute
# them. Smaller sizes would save hardly anything.
TINY = """--configs debug --batch_size 2 --batch_length 3 --horizon 3 --cnn_depth 2
--num_units 8 --reward_layers 1 --actor_layers 1 --free_nats 0 --pcont true""".split()
# Method and representation know nothing of each other, and each of these pairs has all
# parts of one. The decoder that only draws is trained in the second. PlaNet's update is
# a part of the others, as is the one by rewards alone.
PAIRS = {
    'dreamer': ['--representation', 'reconstruction'],
    'no_value': ['--representation', 'contrastive'],
    'planet': ['--representation', 'contrastive', '--log_images', 'false'],
}
# How far losses, gradients and norms of gradients may be apart: gradients as a share of
# the norm of all, the others absolutely or as a share. XLA keeps in float32 between
# operations what TensorFlow rounds after each, to 8 digits. Measured were at most
# 1.3e-7 (one rounding) and 2.5e-6 for losses and gradients in float32, and 2.6e-3,
# 1.5e-2 and 7e-3 in bfloat16, which some processors emulate. In float16 an agent learns
# by the compiled update.
APART = {'32': (1e-6, 5e-6, 1e-6), 'bfloat16': (6e-3, 0.045, 0.02)}


def losses_and_gradients(config, jit):
    """Of one update: its metrics, and by optimiser what Adam has of the gradients. Then
    the metrics of a second one.
    """
    agent = Dreamer(config, ACTION)
    for optimizer in agent.optimizers.values():
        optimizer.loss_scale.assign(64.0)
    noise = agent.noise(BATCH, LENGTH)
    update = tf.function(agent.update, autograph=False, jit_compile=jit)
    data = batch_of_noise(BATCH, LENGTH, ACTION)

    def metrics():
        return {key: float(x) for key, x in update(data, noise).items()}

    first = metrics()
    gradients = {
        name: np.concatenate(
            [np.ravel(tf.convert_to_tensor(x)) for x in optimizer._adam._momentums]
        )
        for name, optimizer in agent.optimizers.items()
    }
    return first, gradients, metrics()


@pytest.mark.slow
@pytest.mark.parametrize(
    'method, precision', [('dreamer', '32'), ('no_value', '32'), ('planet', 'bfloat16')]
)
def test_the_compiled_update_is_the_plain_one(method, precision):
    config = configs.parse(
        [*TINY, '--method', method, *PAIRS[method], '--precision', precision]
    )
    plain, compiled = (losses_and_gradients(config, jit) for jit in (False, True))
    loss_apart, gradient_apart, norm_apart = APART[precision]
    assert plain[0].keys() == compiled[0].keys()
    for name, value in plain[0].items():
        bound = norm_apart if name.endswith('_grad_norm') else loss_apart
        close = pytest.approx(value, rel=bound, abs=bound)
        assert compiled[0][name] == close, name
    assert plain[1].keys() == compiled[1].keys()
    for name, gradient in plain[1].items():
        norm = np.linalg.norm(gradient)
        apart = np.linalg.norm(compiled[1][name] - gradient)
        assert 0 < norm and apart <= gradient_apart * norm, (name, apart / norm)
    if precision == '32':
        assert compiled[2] == pytest.approx(plain[2], rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_what_xla_cannot_compile_is_one_line(tmp_path):
    # XLA's own cache, in a folder that cannot be: as any failure to compile. The
    # planner acts without XLA.
    file = tmp_path / 'file'
    file.write_text('')
    _, script, *words = short_run(tmp_path / 'run')
    flags = f'--tf_xla_persistent_cache_directory={file}/cache'
    process = forks.Program(
        script,
        [*words, *forks.QUICK, '--jit', 'true'],
        env={**CLEAN, 'TF_XLA_FLAGS': flags},
    )
    output = process.finish()
    assert process.returncode == 1, output
    lines = [line for line in output.splitlines() if 'dreamer: stopped' in line]
    assert len(lines) == 1 and 'Traceback' not in output, output
    assert f'{file}' in lines[0] and 'without --jit' in lines[0], lines
    assert 'saved; the same command continues' in output
