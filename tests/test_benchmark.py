"""The benchmark's count of operations, derived once more from the layers themselves."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import configs
from agent import Dreamer
from benchmarks import train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
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


def test_last_line_is_the_contract():
    output = subprocess.run(
        [
            sys.executable,
            ROOT / 'benchmarks' / 'train_step.py',
            '--configs',
            'debug',
            '--repeats',
            '1',
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd='/',
    ).stdout
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
    }
    assert all(value > 0 for value in figures.values())
    assert figures['ratio'] == pytest.approx(figures['update_s'] / figures['floor_s'])
