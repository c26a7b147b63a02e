"""The file of metrics: appended to, cut back to a checkpoint, and read."""

import math

import pytest

from support.storage import metrics


def steps(folder, **kwargs):
    return [row and row['step'] for row in metrics.read(folder, **kwargs)]


def test_lines_behind_the_checkpoint_are_moved(tmp_path):
    first = metrics.File(tmp_path)
    first.append(1, {'x': 1})
    size = first.sync()
    assert first.append(2, {'x': math.nan, 'y': 2}) == {'x': None, 'y': 2.0}
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "x')
    metrics.File(tmp_path, size).append(4, {'x': 1})
    assert steps(tmp_path) == [1, 4]
    undone = (tmp_path / 'metrics_undone.jsonl').read_text()
    assert undone == '{"step": 2, "x": null, "y": 2.0}\n{"step": 3, "x\n'


def test_a_half_line_does_not_swallow_the_next(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"st')
    metrics.File(tmp_path, 1000).append(2, {})
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert text == '{"step": 1}\n{"st\n{"step": 2}\n'
    assert steps(tmp_path) == [1, None, 2]


def test_the_end_of_a_file_alone_can_be_read(tmp_path):
    file = metrics.File(tmp_path)
    for step in range(100):
        file.append(step, {'x': step})
    line = len('{"step": 99, "x": 99.0}\n')
    assert steps(tmp_path, tail=3 * line + 5) == [None, 97, 98, 99]
    assert steps(tmp_path, tail=10**6) == steps(tmp_path) == list(range(100))


def test_without_a_file_there_is_an_error(tmp_path):
    with pytest.raises(OSError):
        steps(tmp_path)
    assert metrics.File(tmp_path).sync() == 0
