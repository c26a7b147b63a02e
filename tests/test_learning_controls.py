"""Learning with one thing broken must miss the bar that the agent has to pass.

These controls run only when they are asked for:

    python -m pytest tests/test_learning_controls.py -m controls -s
"""

import types

import numpy as np
import pytest
import tensorflow as tf
from learners import BAR, CONTINUOUS, DISCRETE, check_discounts, make_run, train

import tools
import wrappers
from support.storage import replay


def blank_images(run, monkeypatch):
    for dummy in wrappers.DummyContinuous, wrappers.DummyDiscrete:
        monkeypatch.setattr(
            dummy, 'render', lambda self: np.zeros((64, 64, 3), np.uint8)
        )


def turn_actor_gradient_around(run, monkeypatch):
    actor = run.agent.optimizers['actor']
    apply = actor.apply

    def turned(tape, loss):
        def gradient(*args, output_gradients):
            return tape.gradient(*args, output_gradients=-output_gradients)

        return apply(types.SimpleNamespace(gradient=gradient), loss)

    monkeypatch.setattr(actor, 'apply', turned)


def block_straight_through(run, monkeypatch):
    sample = tools.OneHotDist.sample
    monkeypatch.setattr(
        tools.OneHotDist,
        'sample',
        lambda self, noise: tf.stop_gradient(sample(self, noise)),
    )


def never_mark_ends(run, monkeypatch):
    sample = replay.Replay.sample

    def unmarked(self, batch):
        data = sample(self, batch)
        return dict(data, discount=np.ones_like(data['discount']))

    monkeypatch.setattr(replay.Replay, 'sample', unmarked)


CONTROLS = [
    (CONTINUOUS, blank_images),
    (CONTINUOUS, turn_actor_gradient_around),
    (DISCRETE, blank_images),
    (DISCRETE, block_straight_through),
    (DISCRETE, never_mark_ends),
]


def test_what_the_controls_break_is_there(tmp_path, monkeypatch):
    """A change of the code can outdate them, which nobody notices who does not ask."""
    for i, (flags, control) in enumerate(CONTROLS):
        control(make_run(tmp_path / str(i), 0, flags), monkeypatch)


@pytest.mark.slow
@pytest.mark.controls
@pytest.mark.parametrize('flags, control', CONTROLS)
def test_control(tmp_path, monkeypatch, flags, control):
    run = make_run(tmp_path, 0, flags)
    control(run, monkeypatch)
    assert train(run) < BAR
    if control is never_mark_ends:
        with pytest.raises(AssertionError):
            check_discounts(run)
