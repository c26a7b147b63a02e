"""Seconds of a run's phases."""

import pytest

from support.run import timing


class Run:
    """Collects, and saves meanwhile."""

    def __init__(self, clock):
        self.stopwatch, self.clock = timing.Stopwatch(), clock

    @timing.timed('collect')
    def collect(self):
        self.clock[0] += 1
        self.save()
        self.clock[0] += 2

    @timing.timed('save')
    def save(self):
        self.clock[0] += 10

    @timing.timed('train')
    def fail(self):
        self.clock[0] += 5
        raise OSError


def test_a_phase_within_another_counts_for_itself_alone(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(timing.time, 'monotonic', lambda: clock[0])
    run = Run(clock)
    run.collect()
    clock[0] += 7  # Between phases.
    with pytest.raises(OSError):
        run.fail()
    with run.stopwatch.phase('log'):
        clock[0] += 0.5
        first = run.stopwatch.lap()
        clock[0] += 0.25
    run.collect()
    second = run.stopwatch.lap()
    zero = dict.fromkeys((f'time_{name}' for name in timing.PHASES), 0)
    assert first == zero | dict(
        time_collect=3, time_save=10, time_train=5, time_log=0.5
    )
    # What follows a lap within a phase belongs to the next one.
    assert second == zero | dict(time_collect=3, time_save=10, time_log=0.25)
