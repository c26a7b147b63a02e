"""A checkpoint of before counters were Python numbers and Adam one operation a variable
goes on as it did then (`golden/README.md`).
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import configs
from agent import Dreamer
from run import checkpoints

BEFORE = pathlib.Path(__file__).parent / 'golden' / 'before'
BATCH, LENGTH, ACTION, STOCH, HORIZON = 2, 3, 2, 3, 4


def draw(rng):
    """The next batch and noise."""
    is_first = np.zeros((BATCH, LENGTH), bool)
    is_first[:, 0] = True
    data = dict(
        image=rng.integers(0, 256, (BATCH, LENGTH, 64, 64, 3), np.uint8),
        action=rng.uniform(-1, 1, (BATCH, LENGTH, ACTION)).astype(np.float32),
        reward=rng.uniform(0, 1, (BATCH, LENGTH)).astype(np.float32),
        discount=np.ones((BATCH, LENGTH), np.float32),
        is_first=is_first,
    )
    noise = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in dict(
            post=(BATCH, LENGTH, STOCH),
            latent=(HORIZON, BATCH * LENGTH, STOCH),
            action=(HORIZON, BATCH * LENGTH, ACTION),
        ).items()
    }
    return [{key: tf.constant(x) for key, x in each.items()} for each in (data, noise)]


def test_it_goes_on(tmp_path):
    """Three updates before it was written, and the same three after."""
    shutil.copytree(BEFORE, tmp_path / 'checkpoints')
    stored = json.loads((BEFORE / 'next.json').read_text())
    agent = Dreamer(configs.parse(stored['flags']), ACTION)
    saved = checkpoints.Checkpoints(tmp_path / 'checkpoints', agent)
    assert saved.restore() == dict(a=1)
    counters = agent.gradient_step, agent.env_step, agent.train_start
    assert [*counters] == [3, 1234, 1000]
    rng = np.random.default_rng(0)
    for _ in range(3):
        draw(rng)
    for before in stored['metrics']:
        metrics = agent.update(*draw(rng))
        assert {key: float(x) for key, x in metrics.items()} == pytest.approx(
            before, rel=1e-4, abs=1e-5
        )
