"""The benchmark's count of operations, derived once more from the layers themselves."""

import json
import pathlib
import subprocess
import sys

import forks
import numpy as np
import pytest
import tensorflow as tf

import configs
from agent import Dreamer
from benchmarks import launches, train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Fewer steps of both kinds make the graph smaller that is traced and optimised.
SMALL = '--configs debug --batch_length 3 --horizon 2'.split()
WAYS = '', '_to_host', '_to_device'
OUTPUT_SIZES = {'encoder': (31, 14, 6, 2), 'decoder': (1, 5, 13, 30)}


def kernels(part):
    return [
        weight.shape
        for weight in part.trainable_weights
        if weight.name.endswith('kernel')
    ]


def products(part, sizes=()):
    """Multiply-adds: every kernel once for each place where it is applied."""
    sizes = iter(sizes)
    return [
        int(np.prod(shape)) * (next(sizes) ** 2 if len(shape) == 4 else 1)
        for shape in kernels(part)
    ]


@pytest.mark.parametrize(
    'flags', [(), ('--pcont', 'true', '--num_units', '100'), ('--configs', 'debug')]
)
def test_flops_follow_from_the_layers(flags):
    config = configs.parse([*flags, '--precision', '32'])
    agent = Dreamer(config, 6)
    world = agent.world
    one = {
        part.name: products(part, OUTPUT_SIZES.get(part.name, ()))
        for part in (*world.parts, agent.behavior.actor, agent.behavior.value)
    }
    prior = sum(
        int(np.prod(shape))
        for layer in (
            world.rssm._input,
            world.rssm._cell,
            world.rssm._prior_hidden,
            world.rssm._prior_stats,
        )
        for shape in kernels(layer)
    )
    rows = config.batch_size * config.batch_length
    model = 3 * sum(sum(one[part.name]) for part in world.parts)
    model -= one['encoder'][0]
    heads = sum(one['reward']) + sum(one.get('pcont', [0]))
    value, actor = sum(one['value']), sum(one['actor'])
    imagined = 2 * (actor + prior + heads + value) + 3 * value
    expected = 2 * rows * (model + config.horizon * imagined)
    assert train_step.update_flops(config, 6) == expected


def test_paper_sizes_need_what_the_facts_say():
    config = configs.parse([])
    assert train_step.update_flops(config, 6) == pytest.approx(0.91e12, rel=0.01)


@pytest.mark.slow
def test_last_line_is_the_contract():
    process = forks.Program(
        'benchmarks/train_step.py', [*SMALL, '--repeats', 1], cwd='/'
    )
    output = process.finish()
    assert process.returncode == 0, output
    figures = json.loads(output.splitlines()[-1])
    assert set(figures) == {
        'update_s',
        'gemm_gflops',
        'floor_s',
        'ratio',
        'policy_ms',
        'policy_16_ms',
        'policy_16_bound_ms',
        'build_s',
        'peak_rss_mb',
        *(f'launches{half}{way}' for half in ('', '_16') for way in WAYS),
    }
    assert all(
        value >= 0 if name.endswith('_to_device') else value > 0
        for name, value in figures.items()
    )
    assert figures['ratio'] == pytest.approx(figures['update_s'] / figures['floor_s'])


def test_launches_of_a_loop_are_multiplied_and_what_starts_no_kernel_is_left_out():
    """h_t = tanh(h_{t-1} w), 7 times, and its gradient."""
    weight = tf.Variable(tf.eye(3))

    @tf.function(autograph=False)
    def slope(rows):
        with tf.GradientTape() as tape:
            states = tf.scan(
                lambda state, _: tf.tanh(tf.reshape(state @ weight, (2, 3))),
                tf.zeros(7),
                rows,
            )
            loss = tf.reduce_sum(states[-1])
        return tape.gradient(loss, weight)

    counts = launches.tally(
        launches.optimised(slope.get_concrete_function(tf.TensorSpec((2, 3))))
    )
    counted = counts.kernels
    assert {loop for loop, _ in counted} == {
        '',
        'scan/while',
        'gradient_tape/scan/while/scan/while_grad',
    }
    forward = {kind: n for (loop, kind), n in counted.items() if loop == 'scan/while'}
    assert forward == {'MatMul': 7, 'Tanh': 7, 'LogicalAnd': 7}
    backward = {
        kind: n for (loop, kind), n in counted.items() if loop.endswith('_grad')
    }
    # Of state and weight, whose gradient is summed from step to step.
    assert backward['MatMul'] == 14 and backward['TanhGrad'] == 7
    assert backward['AddN'] in (7, 14)
    # Whether there is another turn is decided on the host, by two comparisons that are
    # made there, and by their conjunction, which is made on the device.
    assert counts.to_host['LogicalAnd', 'LoopCond'] == 7
    assert counts.to_device['Less', 'LogicalAnd'] == 14


def count_small(*flags):
    flags = ['--cnn_depth', '4', '--num_units', '16', *flags]
    config = configs.parse(flags)
    return launches.count(configs.fit_to_actions(config, 'discrete' in flags), 6)


REST = dict(marks=pytest.mark.slow)


@pytest.mark.parametrize(
    'flags, copies',
    [
        (['--precision', '32'], 1),
        pytest.param('--precision bfloat16 --configs discrete'.split(), 1, **REST),
        pytest.param(
            '--precision 16 --method no_value --representation reward'.split(),
            1,
            **REST,
        ),
        # Of what is beside a diagonal, too.
        pytest.param(
            '--precision 32 --method planet --representation contrastive'.split(),
            2,
            **REST,
        ),
    ],
)
def test_an_update_on_a_gpu_waits_for_the_host_once(flags, copies):
    """Whatever the lengths, which are small here: there is no loop."""
    counts = count_small('--batch_length', '4', '--horizon', '3', *flags)
    assert {loop for loop, _ in counts.kernels} == {''}
    # How much noise is drawn.
    assert counts.to_host['Const', 'RngReadAndSkip'] == 1
    assert counts.to_host.total() == copies
    assert not counts.to_device


@pytest.mark.slow
def test_an_update_of_the_papers_lengths_is_at_most_6500_launches():
    """Operations do not grow with the networks' sizes, which are small here. In float16
    there are casts and a loss scale besides.
    """
    assert count_small('--precision', '16').kernels.total() <= 6500


@pytest.mark.slow
def test_a_gpu_is_measured_in_one_table_and_one_file(tmp_path):
    """Without one, and at sizes that take seconds."""
    out = tmp_path / 'found.json'
    small = '--task dummy_continuous --prefill 100 --train_every 50'
    done = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / 'gpu.py', '--out', out]
        + '--precisions 32 --updates 2 --seconds 60 --minutes 30'.split()
        + [*SMALL, *small.split(), *forks.QUICK]
        + '--log_every 50 --steps 600'.split(),
        capture_output=True,
        text=True,
        check=True,
        cwd='/',
    )
    found = json.loads(out.read_text())
    assert set(found) == {'machine', 'updates', 'loop'}
    assert set(found['updates']) == {'32 graph', '32 xla'}
    for part in found['updates'].values():
        assert set(part['figures']) == {
            'compile_s',
            'update_ms',
            'peak_mb',
            'policy_ms',
        }
        assert all(value > 0 for value in part['figures'].values())
    assert found['loop']['steps_per_s'] > 0 and found['loop']['precision'] == '32'
    assert found['machine']['tensorflow'] == tf.__version__
    rows = [line for line in done.stdout.splitlines() if line.startswith('| 32 |')]
    assert [row.split(' | ')[1] for row in rows] == ['graph', 'xla']
    assert 'paper, on a V100: 93' in done.stdout
