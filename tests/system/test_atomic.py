"""Files are written whole or not at all, by all of the project in one way."""

import ast
import contextlib
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

from support.run import logger
from support.system import atomic


@contextlib.contextmanager
def small_files():
    """Let no file grow beyond 1000 bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_written_and_replaced(tmp_path):
    for data in b'first', b'', b'second':
        atomic.write(tmp_path / 'file', data)
        assert contents(tmp_path) == {'file': data}


def test_others_may_read_what_the_user_lets_them(tmp_path):
    atomic.write(tmp_path / 'file', b'')
    (tmp_path / 'usual').touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_an_error_leaves_what_was_there(tmp_path):
    atomic.write(tmp_path / 'file', b'before')
    with pytest.raises(KeyboardInterrupt):
        with atomic.writing(tmp_path / 'file') as file:
            file.write(b'part')
            raise KeyboardInterrupt
    assert contents(tmp_path) == {'file': b'before'}


def test_a_disk_without_room_leaves_what_was_there(tmp_path):
    atomic.write(tmp_path / 'file', b'before')
    with small_files(), pytest.raises(OSError):
        atomic.write(tmp_path / 'file', b'x' * 2000)
    assert contents(tmp_path) == {'file': b'before'}


def test_a_video_without_room_is_no_video(tmp_path):
    log = logger.Logger(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with small_files(), pytest.raises(OSError):
        log.video(1, 'eval', frames)
    assert not list((tmp_path / 'videos').iterdir())
    log.video(1, 'eval', frames)
    assert [path.name for path in (tmp_path / 'videos').iterdir()] == [
        'eval-000000001.gif'
    ]


@pytest.mark.parametrize('place', ['os.fsync', 'os.replace'])
def test_a_killed_writer_leaves_a_part_that_is_no_result(tmp_path, place):
    atomic.write(tmp_path / 'file.npz', b'before')
    script = (
        'import os, pathlib, sys\n'
        'from support.system import atomic\n'
        f'{place} = lambda *args: os.kill(os.getpid(), 9)\n'
        'atomic.write(pathlib.Path(sys.argv[1]), b"after")\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script, tmp_path / 'file.npz'], cwd=ROOT
    )
    assert done.returncode == -9
    (part,) = set(contents(tmp_path)) - {'file.npz'}
    assert part.startswith('.file.npz.') and part.endswith('.tmp')
    assert (tmp_path / 'file.npz').read_bytes() == b'before'
    atomic.clean(tmp_path, 'other')
    assert part in contents(tmp_path)
    atomic.clean(tmp_path)
    assert contents(tmp_path) == {'file.npz': b'before'}


def test_writers_at_the_same_time_each_write_a_whole_file(tmp_path):
    inside = threading.Barrier(8)

    def write(number):
        with atomic.writing(tmp_path / 'file') as file:
            inside.wait()
            file.write(bytes([number]) * 100_000)
            file.flush()
            inside.wait()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (data,) = contents(tmp_path).values()
    assert len(data) == 100_000 and len(set(data)) == 1


def renames(path):
    """Lines on which a file gives a file another name, or one that is not its last."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = getattr(node.func.value, 'id', ''), node.func.attr
        if name == 'replace':  # Of a string it takes two, of a dataclass names.
            found = owner == 'os' or len(node.args) == 1 and not node.keywords
        else:
            found = name in ('rename', 'mkstemp', 'write_text') and owner != 'atomic'
        if found:
            yield f'{path.relative_to(ROOT)}:{node.lineno}'


def test_there_is_no_other_way():
    files = [*ROOT.glob('*.py'), *ROOT.glob('[a-su-z]*/**/*.py')]
    assert {path.parent.name for path in files} > {'storage', 'run', 'envs'}
    found = [line for path in files for line in renames(path)]
    assert len(found) == 1 and found[0].startswith('support/system/atomic.py:'), found
