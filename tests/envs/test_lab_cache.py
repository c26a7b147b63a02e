"""Tests of the cache of DeepMind Lab's levels, alone and below the stand-in."""

import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import ROOT, STANDINS

import wrappers
from support.acting import workers
from support.envs.lab import LevelCache

TASK = 'dmlab_rooms_watermaze'
KWARGS = {'action_repeat': 4, 'time_limit': 1000}


def test_levels_are_compiled_once(lab, tmp_path):
    for _ in range(2):
        env = wrappers.make(TASK, lab_level_cache=str(tmp_path / 'new' / 'cache'))
        for seed in range(10):
            env.reset(seed=seed)
    assert len(lab.compiled) == 2
    wrappers.make(TASK).reset(seed=0)
    assert len(lab.compiled) == 4


def make_bsp(part):
    """A map of 17 parts, of which the last but one is `part`."""
    table = [144, 0] * 15 + [144, len(part)] + [144 + len(part), 0]
    return struct.pack('<4s35i', b'IBSP', 46, *table) + part


def make_aas(part, version=5):
    """What opponents know of a map, in 14 parts; the last is `part`."""
    table = struct.pack('<29i', 77, *[124, 0] * 13, 124, len(part))
    if version == 5:
        table = bytes(byte ^ (i * 119) & 255 for i, byte in enumerate(table))
    return struct.pack('<4si', b'EAAS', version) + table + part


def make_level(path, text='map', name='maze', number=0, files=None):
    """Write a compiled level; return its key."""
    text = text if isinstance(text, bytes) else text.encode()
    files = files or {'bsp': make_bsp(text)}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for ending, data in files.items():
            archive.writestr(f'maps/{name}.{ending}', data)
    return f'{name}_noaas_{hashlib.md5(b"%d" % number).hexdigest()}'


def test_cache_is_whole_while_many_write(tmp_path):
    """Processes write and read one key; whoever reads sees a whole file."""
    key = make_level(tmp_path / 'level', 'x' * 1_000_000)
    script = """
import pathlib, sys
from support.envs.lab import LevelCache
folder, key, number = sys.argv[1:]
cache = LevelCache(folder)
source, target = (pathlib.Path(folder + name + number) for name in 'st')
source.write_bytes(pathlib.Path(folder).with_name('level').read_bytes())
for _ in range(40):
    cache.write(key, str(source))
    assert cache.fetch(key, str(target))
    assert target.read_bytes() == source.read_bytes()
"""
    folder = tmp_path / 'cache'
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', script, str(folder), key, str(number)],
            env={**os.environ, 'PYTHONPATH': ROOT},
        )
        for number in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert os.listdir(folder) == [key]


def test_failed_write_leaves_nothing(tmp_path, capsys):
    cache = LevelCache(str(tmp_path))
    cache.write('maze_noaas_0', str(tmp_path / 'missing'))
    assert 'warning: the level cache' in capsys.readouterr().err
    assert not cache.fetch('maze_noaas_0', str(tmp_path / 'target'))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('fault', ['a file', 'below a file', 'full'])
def test_cache_that_cannot_be_written_is_a_warning(
    lab, tmp_path, capsys, monkeypatch, fault
):
    (tmp_path / 'file').write_text('')
    folder = {'a file': 'file', 'below a file': 'file/cache', 'full': 'cache'}[fault]
    if fault == 'full':

        def sync(descriptor):  # Where some file systems first say so.
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(os, 'fsync', sync)
    env = wrappers.make(TASK, lab_level_cache=str(tmp_path / folder))
    for seed in range(4):
        env.reset(seed=seed)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('dreamer: warning: the level cache')
    assert line.count(str(tmp_path / folder)) == 1
    assert len(lab.compiled) == 5
    if fault == 'full':
        assert os.listdir(tmp_path / 'cache') == []


def test_warning_comes_once_for_all_workers(tmp_path, capfd, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('PYTHONPATH', STANDINS)
    kwargs = {**KWARGS, 'lab_level_cache': str(tmp_path / 'file')}
    group = workers.make_workers(TASK, 3, kwargs, evaluation=1)
    workers.close_workers(group)
    assert capfd.readouterr().err.count('warning: the level cache') == 1


def test_warning_that_nobody_hears_ends_nothing(tmp_path):
    """Its pipe may be broken, as of `2>&1 | head`."""
    (tmp_path / 'file').write_text('')
    script = (
        'import sys, wrappers; '
        f"env = wrappers.make('{TASK}', lab_level_cache=sys.argv[1]); "
        "print(env.reset(seed=0)[0]['image'].shape)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, '-c', script, str(tmp_path / 'file')],
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{STANDINS}'},
        stdout=subprocess.PIPE,
        stderr=writer,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert done.stdout == b'(64, 64, 3)\n'


def test_damaged_levels_are_left_out(tmp_path):
    generator = random.Random(0)
    cache, target = LevelCache(str(tmp_path / 'cache')), tmp_path / 'target'
    source = tmp_path / 'source'
    key = make_level(source, ''.join(map(str, range(5000))))
    cache.write(key, str(source))
    whole, path = source.read_bytes(), tmp_path / 'cache' / key
    assert cache.fetch(key, str(target)) and target.read_bytes() == whole
    target.unlink()
    damaged = [b'', b'no archive', whole[:-1], whole[: len(whole) // 2], whole[1:]]
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(20):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        assert not cache.fetch(key, str(target)) and not target.exists()
    make_level(path, name='another')
    assert not cache.fetch(key, str(target)) and not target.exists()
    cache.write(key, str(source))
    assert cache.fetch(key, str(target)) and target.read_bytes() == whole


def test_whole_archives_of_files_that_are_not(tmp_path):
    """A zip whose checksums are right may hold half a map."""
    cache = LevelCache(str(tmp_path / 'cache'))
    source, target = tmp_path / 'source', tmp_path / 'target'
    bsp, part = make_bsp(b'map' * 1000), b'aas' * 1000
    whole = {'bsp': bsp, 'aas': make_aas(part)}

    def fetched(files, kind):
        key = make_level(source, files=files).replace('noaas', kind)
        cache.write(key, str(source))
        return cache.fetch(key, str(target))

    for cut in 0, 3, 100, 143, 144, len(bsp) // 2, len(bsp) - 1:
        assert not fetched({'bsp': bsp[:cut]}, 'noaas')
        assert not fetched({**whole, 'bsp': bsp[:cut]}, 'aas')
    assert not fetched({'bsp': b'JBSP' + bsp[4:]}, 'noaas')
    assert not fetched({'bsp': bsp[:8] + b'\xff' * 4 + bsp[12:]}, 'noaas')
    for version in 4, 5:
        aas = make_aas(part, version)
        for cut in 0, 4, 60, 123, 124, len(aas) // 2, len(aas) - 1:
            assert not fetched({**whole, 'aas': aas[:cut]}, 'aas')
        assert fetched({**whole, 'aas': aas}, 'aas')
    assert not fetched({'bsp': bsp}, 'aas') and not fetched({'aas': aas}, 'aas')
    assert fetched({'bsp': bsp}, 'noaas') and fetched(whole, 'noaas')


def test_level_without_what_its_opponents_know_is_compiled_anew(lab, tmp_path):
    task = 'dmlab_lasertag_one_opponent_small'
    for compiled in 1, 2, 2:
        wrappers.make(task, lab_level_cache=str(tmp_path))
        assert len(lab.compiled) == compiled
        (entry,) = tmp_path.iterdir()
        if compiled == 1:
            with zipfile.ZipFile(entry) as archive:
                bsp = archive.read('maps/lasertag_one_opponent_small.bsp')
            name = 'lasertag_one_opponent_small'
            make_level(entry, name=name, files={'bsp': bsp})


@pytest.mark.parametrize('damage', ['half the archive', 'half the map'])
def test_damaged_level_does_not_end_the_process(lab, tmp_path, damage):
    kwargs = {**KWARGS, 'lab_level_cache': str(tmp_path)}
    wrappers.make(TASK, **kwargs)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    if damage == 'half the map':
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            bsp = archive.read('maps/rooms_watermaze.bsp')
        files = {'bsp': bsp[: len(bsp) // 2]}
        make_level(entry, name='rooms_watermaze', files=files)
    worker = workers.Worker(TASK, kwargs, env={'PYTHONPATH': STANDINS})
    worker.start_reset(0)
    worker.result()
    worker.close()
    assert LevelCache(str(tmp_path)).fetch(entry.name, str(tmp_path / 'target'))


def test_cache_has_a_bound(tmp_path, monkeypatch):
    """What was used longest ago goes; what is no level stays."""
    monkeypatch.setattr(LevelCache, 'CHECK_EVERY', 5)
    folder, source = tmp_path / 'cache', tmp_path / 'source'
    key = make_level(source, random.Random(0).randbytes(10_000))
    cache = LevelCache(str(folder), limit=20 * source.stat().st_size)
    (folder / 'thesis.txt').write_text('x' * 1_000_000)
    (folder / 'notes').mkdir()
    keys = [make_level(source, b'x' * 10_000, number=number) for number in range(100)]
    make_level(source, random.Random(0).randbytes(10_000))
    left_behind = folder / f'.{key}.killed'
    left_behind.write_bytes(source.read_bytes())
    os.utime(left_behind, (0, 0))
    for number, key in enumerate(keys):
        cache.write(key, str(source))
        os.utime(folder / key, (number, number))
        # The first one is used again and again.
        assert cache.fetch(keys[0], str(tmp_path / 'target'))
        levels = [path for path in folder.iterdir() if '_noaas_' in path.name]
        assert len(levels) <= 20 + 5
    assert (folder / keys[0]).stat().st_mtime > time.time() - 100
    assert {'thesis.txt', 'notes'} < set(os.listdir(folder))
    assert not left_behind.exists()
    assert all((folder / key).exists() for key in keys[-19:])
