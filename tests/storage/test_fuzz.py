"""Damaged files, 1,000 of them and more: none crashes a reader or is taken for data."""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.storage import episodes, metrics, replay

ROWS = 3
RANDOM = np.random.default_rng(0)
EPISODE = {
    'image': RANDOM.integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8),
    'action': RANDOM.normal(size=(ROWS, 2)).astype(np.float32),
    'reward': RANDOM.normal(size=ROWS).astype(np.float32),
    'discount': np.ones(ROWS, np.float32),
}
LINES = b''.join(
    json.dumps({'step': step, 'test/return': step / 7}).encode() + b'\n'
    for step in range(100, 500, 100)
)


def content(save):
    file = io.BytesIO()
    save(file, **EPISODE)
    return file.getvalue()


STORED, PACKED = content(np.savez), content(np.savez_compressed)


@st.composite
def damages(draw, data):
    """`data` with up to three cuts, changed or added bytes, mostly where its structure
    lies: near the ends.
    """
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(
            st.one_of(
                st.integers(0, min(600, len(data))),
                st.integers(max(0, len(data) - 1200), len(data)),
                st.integers(0, len(data)),
            )
        )
        kind = draw(st.sampled_from(['flip', 'set', 'cut', 'remove', 'insert']))
        if kind == 'flip' and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 'set':
            new = draw(st.binary(min_size=1, max_size=8))
            data[place : place + len(new)] = new
        elif kind == 'cut':
            del data[place:]
        elif kind == 'remove':
            del data[place : place + draw(st.integers(1, 2000))]
        elif kind == 'insert':
            data[place:place] = draw(st.binary(min_size=1, max_size=50))
    return bytes(data)


def fuzz(count):
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@pytest.mark.parametrize('whole', [STORED, PACKED], ids=['stored', 'compressed'])
def test_damaged_episodes_are_refused_or_harmless(folder, whole):
    """Served is only what is equal to the episode, as where a date was damaged."""
    path = folder / f'20200401T101112-0a1b-{ROWS}.npz'
    served = []

    @fuzz(500)
    @given(damages(whole))
    def check(data):
        path.write_bytes(data)
        reader = replay.Replay(folder, length=ROWS, memory=0)
        try:
            batches = [reader.sample(1) for _ in range(3)]  # As a whole, then by rows.
        except FileNotFoundError:
            assert reader.skipped == 1
            return
        served.append(data != whole)
        for batch in batches:
            for key in ('image', *episodes.KEYS):
                np.testing.assert_array_equal(batch[key][0], EPISODE[key])

    check()
    path.unlink()
    assert 0 < sum(served) < 250


@fuzz(500)
@given(damages(LINES))
def test_damaged_metrics_lines_are_counted_or_harmless(folder, data):
    path = folder / 'metrics.jsonl'
    path.write_bytes(data)
    steps, values, counts = metrics.read_points(folder, 'test/return')
    assert len(steps) == len(values)
    assert np.isfinite(steps).all() and np.isfinite(values).all() and (steps >= 0).all()
    assert len(steps) + sum(counts.values()) <= len(data.splitlines())
    # Lines that the damage left alone are all there.
    good = set(data.splitlines()) & set(LINES.splitlines())
    found = set(zip(steps, values))
    assert {(row['step'], row['test/return']) for row in map(json.loads, good)} <= found


@pytest.mark.parametrize(
    'line',
    [
        b'{"step": 1e400, "test/return": 1}',
        b'{"step": NaN, "test/return": 1}',
        b'[' * 100_000,
        b'"step"',
        b'\xff\xfe',
        b'{"step": ' + b'9' * 5000 + b'}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": "1"}',
        b'null',
        b'\x00' * 50,
    ],
)
def test_lines_that_are_no_metrics(folder, line):
    path = folder / 'metrics.jsonl'
    path.write_bytes(line + b'\n' + LINES)
    steps, _, counts = metrics.read_points(folder, 'test/return')
    assert len(steps) == 4 and counts['damaged'] == 1
