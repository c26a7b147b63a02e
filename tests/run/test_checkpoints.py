"""Checkpoints that are whole or absent, the lock, and the metrics that go with them."""

import errno
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import keras
import pytest
import tensorflow as tf

import evaluate
from support.learning.optimizer import Optimizer
from support.run import checkpoints, logger
from support.system import faults
from support.system.command_line import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def make(folder, value=0.0, size=1000, keep=2):
    """Return the checkpoints of an agent whose weights are `value`."""
    agent = tf.Module()
    agent.weight = keras.Variable(tf.fill((size,), float(value)))
    agent.optimizers = {'model': Optimizer('model', [agent.weight], 1e-3, 100.0)}
    agent.gradient_step, agent.env_step, agent.train_start = 0, 0, -1
    return agent, checkpoints.Checkpoints(folder, agent, keep)


def fill(folder, count=3):
    """Save checkpoints with the weights and the state 1, 2, and so on."""
    agent, saved = make(folder)
    for number in range(1, count + 1):
        agent.weight.assign(tf.fill((1000,), float(number)))
        saved.save({'number': number})


def restored(folder):
    agent, saved = make(folder)
    state = saved.restore()
    return state.get('number'), float(agent.weight[0])


def test_newest_two_are_kept_and_the_newest_is_restored(tmp_path):
    assert restored(tmp_path / 'none') == (None, 0)
    fill(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        'checkpoint',
        'ckpt-2.data-00000-of-00001',
        'ckpt-2.index',
        'ckpt-3.data-00000-of-00001',
        'ckpt-3.index',
    ]
    assert restored(tmp_path) == (3, 3)
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'ckpt-3')


@pytest.mark.parametrize(
    'keep, names', [(1, ['ckpt-4']), (3, ['ckpt-2', 'ckpt-3', 'ckpt-4'])]
)
def test_as_many_are_kept_as_asked_for(tmp_path, keep, names):
    _, saved = make(tmp_path, keep=keep)
    for number in range(4):
        saved.save({'number': number})
    assert [path.stem for path in sorted(tmp_path.glob('*.index'))] == names


ODD = ['a [b] c', 'a\\b', 'a*?b', '[!a]', os.fsdecode(b'a\xff')]


@pytest.mark.parametrize('name', ODD)
def test_names_of_folders_are_not_patterns(tmp_path, monkeypatch, name):
    # One that it would match as a pattern, with other numbers.
    fill(tmp_path / 'a b c', 1)
    fill(tmp_path / name)
    assert restored(tmp_path / name) == (3, 3)
    assert checkpoints.read(tmp_path / name / 'ckpt-2') == {'number': 2}
    with checkpoints.plain(tmp_path / name / 'ckpt-3') as prefix:
        assert tf.train.load_checkpoint(prefix).has_tensor(checkpoints.STATE)
    # A relative name, and a place for temporary files that is no better.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / name))
    agent, saved = make(pathlib.Path(name))
    assert saved.restore() == {'number': 3}
    writer = logger.Logger(pathlib.Path(name))
    writer.scalars(1, {'loss': 2.0})
    writer.text(1, 'config', f'in {name}')
    writer.close()
    assert list(pathlib.Path(name).glob('events.out.tfevents.*'))


@pytest.mark.parametrize('suffix', [checkpoints.INDEX, checkpoints.DATA])
@pytest.mark.parametrize('damage', ['truncated', 'emptied', 'flipped', 'removed'])
def test_damaged_newest_is_named_kept_and_passed_over(tmp_path, capfd, suffix, damage):
    fill(tmp_path)
    path = tmp_path / f'ckpt-3{suffix}'
    content = bytearray(path.read_bytes())
    if damage == 'removed':
        path.unlink()
    elif damage == 'flipped':
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-50] if damage == 'truncated' else b'')
    assert restored(tmp_path) == (2, 2)
    if (damage, suffix) == ('removed', checkpoints.INDEX):
        return  # Without it, it looks like a checkpoint that never became whole.
    lines = [line for line in capfd.readouterr().err.splitlines() if 'dreamer' in line]
    assert len(lines) == 1 and 'ckpt-3 is damaged' in lines[0] and 'ckpt-2' in lines[0]
    kept = tmp_path / f'damaged-3{suffix}'
    assert kept.exists() != (damage == 'removed')
    # Its number is not used again, and it outlives later checkpoints.
    before = kept.exists() and kept.read_bytes()
    fill(tmp_path)
    assert sorted(path.name for path in tmp_path.glob('ckpt-*.index')) == [
        'ckpt-5.index',
        'ckpt-6.index',
    ]
    assert (kept.exists() and kept.read_bytes()) == before


def test_a_checkpoint_that_claims_more_than_there_is_is_not_read(tmp_path):
    fill(tmp_path, 1)
    data = tmp_path / f'ckpt-1{checkpoints.DATA}'
    os.truncate(data, 3999)
    with pytest.raises(ValueError, match='claims 12... bytes'):
        checkpoints.read(tmp_path / 'ckpt-1')


def test_nothing_but_damaged_ones_is_refused(tmp_path):
    fill(tmp_path)
    for path in tmp_path.glob('*.index'):
        path.write_bytes(b'')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match='no checkpoint in .* is whole') as e:
        make(tmp_path)[1].restore()
    assert '\n' not in str(e.value)
    assert sorted(tmp_path.iterdir()) == before


def test_another_network_is_refused_and_not_taken_for_damage(tmp_path):
    fill(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match='another network'):
        make(tmp_path, size=7)[1].restore()
    assert sorted(tmp_path.iterdir()) == before


def test_evaluation_passes_over_what_a_run_refuses_or_renames(tmp_path, capfd):
    """Of another network, and damaged: each is named, and nothing is changed."""
    fill(tmp_path, 1)
    make(tmp_path, size=7)[1].save({})
    make(tmp_path, size=9)[1].write(tmp_path / 'ckpt-10')
    os.truncate(tmp_path / f'ckpt-10{checkpoints.DATA}', 9)

    def contents():
        return {path: path.read_bytes() for path in tmp_path.iterdir()}

    before = contents()
    agent, _ = make(tmp_path)
    assert evaluate.load_checkpoint(agent, tmp_path) == tmp_path / 'ckpt-1'
    assert agent.weight[0] == 1 and contents() == before
    damaged, other = capfd.readouterr().err.splitlines()
    assert damaged.startswith(f'evaluate: cannot be used: {tmp_path}/ckpt-10: ')
    assert other.startswith(f'evaluate: cannot be used: {tmp_path}/ckpt-2 is of anoth')
    for name in 'ckpt-1', 'ckpt-10':
        (tmp_path / f'{name}.index').write_bytes(b'')
    before = contents()
    with pytest.raises(UserError, match='no checkpoint .* can be used') as e:
        evaluate.load_checkpoint(agent, tmp_path)
    assert '\n' not in str(e.value)
    assert contents() == before


@pytest.mark.parametrize('place', ['written', 'checkpoint'])
def test_failed_save_leaves_those_before(tmp_path, monkeypatch, place):
    fill(tmp_path)
    agent, saved = make(tmp_path, 4)
    with monkeypatch.context() as patch:
        for name, value in ('_place', place), ('_kind', 'full'), ('_left', 1):
            patch.setattr(faults, name, value)
        with pytest.raises(OSError) as error:
            saved.save({'number': 4})
    assert error.value.errno == errno.ENOSPC
    assert restored(tmp_path) == (3, 3)
    saved.save({'number': 4})
    assert restored(tmp_path) == (4, 4)


@pytest.mark.parametrize('passed', [1, 2, 3])
def test_folder_that_vanishes_during_a_save(tmp_path, monkeypatch, passed):
    folder = tmp_path / 'checkpoints'
    fill(folder, 1)
    agent, saved = make(folder, 2)
    places = []

    def vanish(place):
        places.append(place)
        if len(places) == passed:
            folder.rename(tmp_path / 'gone')

    monkeypatch.setattr(faults, 'reach', vanish)
    with pytest.raises(FileNotFoundError, match=str(folder)):
        saved.save({'number': 2})
    assert places == ['written', 'checkpoint', 'checkpoint'][:passed]
    assert not folder.exists()


def test_tensorflows_own_errors_arrive_as_oserror(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='could not be written'):
        make(tmp_path)[1].write(tmp_path / 'file' / 'ckpt')


def test_lock_names_its_holder_and_ends_with_it(tmp_path):
    script = (
        'import sys, pathlib\n'
        'from support.run import checkpoints\n'
        'lock = checkpoints.Lock(pathlib.Path(sys.argv[1]))\n'
        'print("held", flush=True); sys.stdin.read()\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script, str(tmp_path / 'run')],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(UserError, match=f'process {process.pid} on \\S+;'):
        checkpoints.Lock(tmp_path / 'run')
    process.kill()
    process.communicate()
    lock = checkpoints.Lock(tmp_path / 'run')
    assert re.fullmatch(r'process \d+ on \S+\n', (tmp_path / 'run/lock').read_text())
    lock.release()


def test_lock_removes_what_a_killed_write_left(tmp_path):
    (tmp_path / 'episodes').mkdir()
    for name in ('.20200401T101112-0-5.npz.tmp', '20200401T101112-0-5.npz'):
        (tmp_path / 'episodes' / name).write_bytes(b'part')
    checkpoints.Lock(tmp_path).release()
    assert [path.name for path in (tmp_path / 'episodes').iterdir()] == [
        '20200401T101112-0-5.npz'
    ]
