"""The replay: files that survive crashes and damage, and how often a row is drawn.

Every row of an episode says where it comes from: image channel 0, action 1 and reward
hold the number of the episode, image channel 1, action 0 and reward that of the row.
"""

import io
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest

from support.storage import episodes
from support.storage import replay as replay_module
from support.storage.replay import Replay

KEYS = ('image', *episodes.KEYS)
ROW_BYTES = 64 * 64 * 3 + 4 * (2 + 1 + 1)


def make_episode(number, rows, dtype=np.float32):
    row = np.arange(rows)
    image = np.zeros((rows, 64, 64, 3), np.uint8)
    image[..., 0] = number
    image[..., 1] = row[:, None, None]
    action = np.stack([row, np.full(rows, number)], -1).astype(dtype)
    action[0] = 0
    return {
        'image': image,
        'action': action,
        'reward': (100 * number + row).astype(dtype),
        'discount': (row < rows - 1).astype(dtype),
    }


def fill(directory, rows, **kwargs):
    """Return a replay with one new episode for each number of rows."""
    kwargs = {'length': 6, **kwargs}
    replay = Replay(directory, **kwargs)
    for number, count in enumerate(rows):
        replay.add(make_episode(number, count))
    replay.flush()
    return replay


def store(directory, episode, name='20200401T101112-0a1b-5.npz', save=np.savez):
    save(directory / name, **episode)
    return directory / name


def origins(batch):
    """Return the numbers of episode and row behind each position, both [B, L]."""
    return np.divmod(batch['reward'].astype(int), 100)


def draw(replay, count):
    """Return the origins [N, L] and is_first [N, L] of N = count sequences."""
    batches = [replay.sample(100) for _ in range(count // 100)]
    episodes, rows = zip(*(origins(batch) for batch in batches))
    first = np.concatenate([batch['is_first'] for batch in batches])
    return np.concatenate(episodes), np.concatenate(rows), first


def assert_uniform(counts, expected):
    """Five standard deviations of a Poisson count, for every cell."""
    assert np.abs(np.asarray(counts) - expected).max() < 5 * np.sqrt(expected), counts


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
        np.testing.assert_array_equal(value, other[key], key)


# Files


def test_round_trip(tmp_path):
    episode = make_episode(7, 5)
    replay = Replay(tmp_path / 'new', length=5)
    path = replay.add(episode)
    replay.flush()
    with np.load(path, allow_pickle=False) as stored:
        assert set(stored) == set(KEYS)
        assert {stored[key].dtype.name for key in KEYS} == {'uint8', 'float32'}
        for key in KEYS:
            np.testing.assert_array_equal(stored[key], episode[key])
    loaded = Replay(tmp_path / 'new', length=5)
    assert (loaded.episodes, loaded.rows, loaded.steps, loaded.skipped) == (1, 5, 4, 0)
    batch = loaded.sample(1)
    assert batch.pop('is_first').tolist() == [[True, False, False, False, False]]
    assert_equal(batch, {key: value[None] for key, value in episode.items()})


def with_states(index, rows, size=3):
    """An episode with a state vector beside the image."""
    episode = make_episode(index, rows)
    state = 10 * np.arange(rows)[:, None] + np.arange(size)
    return dict(episode, state=state.astype(np.float32))


@pytest.mark.parametrize('observes', [('state',), ('image', 'state')])
def test_round_trip_of_states(tmp_path, observes):
    episode = with_states(7, 5)
    replay = Replay(tmp_path / 'new', length=5, observes=observes)
    path = replay.add(episode)
    replay.flush()
    with np.load(path) as stored:
        assert set(stored) == {*observes, *episodes.KEYS}
    # The rows of a file, whose image is not read, and those in memory.
    for memory in 10**9, 0:
        loaded = Replay(path.parent, length=5, observes=observes, memory=memory)
        assert (loaded.action_size, loaded.state_size, loaded.skipped) == (2, 3, 0)
        for _ in range(2):
            batch = loaded.sample(1)
            del batch['is_first']
            assert_equal(batch, {key: episode[key][None] for key in batch})
            assert set(batch) == {*observes, *episodes.KEYS}


def test_states_of_another_size_are_refused(tmp_path):
    replay = Replay(tmp_path, length=2, observes=('state',))
    replay.add(with_states(0, 4))
    with pytest.raises(ValueError, match='state has 5 values, those before 3'):
        replay.add(with_states(1, 4, size=5))


def test_vectors_of_other_names_are_told(tmp_path, capsys):
    """Of other people's files, which have the vector under another name."""
    episode = with_states(0, 4)
    episode['orientations'] = episode.pop('state')
    np.savez(tmp_path / '20200101T000000-abc-4.npz', **episode)
    assert Replay(tmp_path, length=2, observes=('state',)).skipped == 1
    assert (
        'no state in the episode; it has vectors of other names: orientations (3)'
        in (capsys.readouterr().err)
    )


def test_batch_has_the_documented_shapes_and_dtypes(tmp_path):
    batch = fill(tmp_path, [9, 4]).sample(3)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        'image': ((3, 6, 64, 64, 3), 'uint8'),
        'action': ((3, 6, 2), 'float32'),
        'reward': ((3, 6), 'float32'),
        'discount': ((3, 6), 'float32'),
        'is_first': ((3, 6), 'bool'),
    }


def test_added_episode_is_a_copy(tmp_path):
    replay = Replay(tmp_path, length=5)
    episode = make_episode(1, 5)
    replay.add(episode)
    episode['reward'][:] = 0
    assert replay.sample(1)['reward'].tolist() == [[100, 101, 102, 103, 104]]


def test_names_are_those_of_the_2020_code_and_sort_as_added(tmp_path):
    replay = Replay(tmp_path, length=6)
    names = [
        replay.add({**make_episode(number, 5), 'origin': (1, number, 400)}).name
        for number in range(20)
    ]
    replay.flush()
    assert all(re.fullmatch(r'\d{8}T\d{6}-\w{8,}-5\.npz', name) for name in names)
    assert names == sorted(names)
    assert Replay(tmp_path, length=6)._entries[7].origin == (1, 7, 400)
    later = Replay(tmp_path, length=6).add(make_episode(20, 3)).name
    assert later > names[-1] and later.endswith('-3.npz')


def test_resumed_replay_draws_as_the_one_that_went_on(tmp_path):
    replay = fill(tmp_path, [9, 4, 8, 7, 12])
    replay.sample(10)
    state = json.loads(json.dumps(replay.get_state()))
    resumed = Replay(tmp_path, length=6, seed=99)
    resumed.set_state(state)
    for one in (replay, resumed):
        one.add(make_episode(5, 10))
        # Both write the same file, each in its own thread.
        one.flush()
    assert_equal(replay.sample(20), resumed.sample(20))


def test_order_of_the_directory_does_not_matter(tmp_path, monkeypatch):
    replay = fill(tmp_path, [9, 4, 8])
    glob = pathlib.Path.glob
    monkeypatch.setattr(
        pathlib.Path, 'glob', lambda *args: sorted(glob(*args), reverse=True)
    )
    assert_equal(replay.sample(20), Replay(tmp_path, length=6).sample(20))


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError('disk full')

    replay = fill(tmp_path, [5])
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', fail)
        replay.add(make_episode(1, 5))
        with pytest.raises(OSError, match='disk full'):
            replay.flush()
    # It is told again and again, whatever is asked for.
    for call in (
        replay.flush,
        lambda: replay.add(make_episode(1, 5)),
        lambda: replay.sample(1),
    ):
        with pytest.raises(OSError, match='disk full'):
            call()
    assert len(list(tmp_path.iterdir())) == 1
    assert Replay(tmp_path, length=6).episodes == 1


@pytest.mark.parametrize('memory', [0, 2**30])
def test_episodes_are_served_while_they_are_written(tmp_path, monkeypatch, memory):
    """And those that leave memory only when they have a file to be read from."""
    replay, slow = fill(tmp_path, [9], memory=memory), episodes.write

    def write(*args):
        time.sleep(0.2)
        slow(*args)

    monkeypatch.setattr(episodes, 'write', write)
    path = replay.add(make_episode(1, 9))
    assert not path.exists()
    assert set(origins(replay.sample(50))[0].flat) == {0, 1}
    assert path.exists() == (memory == 0)
    for number in range(2, 4 + replay.PENDING):
        replay.add(make_episode(number, 9))
        waiting = replay.episodes - len(list(tmp_path.glob('*.npz')))
        assert waiting <= replay.PENDING + 1
    replay.flush()
    assert Replay(tmp_path, length=6).episodes == replay.episodes


def test_killed_write_leaves_only_an_ignored_part(tmp_path, capsys):
    script = (
        'import os, sys, numpy as np\n'
        'from support.storage import replay\n'
        'os.replace = lambda *args: os._exit(9)\n'
        'replay.Replay(sys.argv[1], length=6).add({"image": np.zeros((5, 64, 64, 3),'
        ' np.uint8), "action": np.zeros((5, 2)), "reward": np.zeros(5),'
        ' "discount": np.ones(5)})\n'
    )
    root = pathlib.Path(replay_module.__file__).parents[2]
    done = subprocess.run([sys.executable, '-c', script, tmp_path], cwd=root)
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    replay = Replay(tmp_path, length=6)
    assert (replay.episodes, replay.skipped, capsys.readouterr().err) == (0, 0, '')


@pytest.mark.parametrize(
    'change, message',
    [
        ({'reward': None}, 'no reward'),
        ({'image': np.zeros((5, 32, 32, 3), np.uint8)}, 'image has the shape'),
        (
            {'image': np.zeros((5, 64, 64, 3), np.float32)},
            'image has the dtype float32',
        ),
        ({'action': np.zeros(5)}, 'action has the shape'),
        ({'action': np.zeros((5, 3))}, 'action has 3 values, those before 2'),
        ({'reward': np.zeros(4)}, 'reward has the shape'),
        ({'reward': np.full(5, None)}, 'reward has the dtype object'),
        (
            {'reward': np.array([0, 0, np.nan, 0, 0])},
            'reward has values that are not fin',
        ),
        ({'discount': np.full(5, 1e300)}, 'discount has values that are not finite'),
    ],
)
def test_add_refuses_what_does_not_fit(tmp_path, change, message):
    replay = fill(tmp_path, [5])
    episode = {**make_episode(1, 5), **change}
    episode = {key: value for key, value in episode.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        replay.add(episode)
    assert replay.episodes == len(list(tmp_path.iterdir())) == 1


def test_add_refuses_an_episode_without_a_step(tmp_path):
    with pytest.raises(ValueError, match='no step'):
        Replay(tmp_path, length=6).add(make_episode(0, 1))


# Files of others, and damaged ones


def test_folders_of_the_2020_code_load(tmp_path):
    episode = make_episode(3, 8, np.float16)
    extra = {'position': np.zeros((8, 4), np.float16), 'velocity': np.zeros(8)}
    store(
        tmp_path,
        {**extra, **episode},
        save=np.savez_compressed,
        name='20200401T101112-f81d4fae7dec11d0a76500a0c91e6bf6-8.npz',
    )
    batch = Replay(tmp_path, length=8).sample(2)
    assert set(batch) == {*KEYS, 'is_first'}
    assert batch['action'].dtype == batch['reward'].dtype == np.float32
    assert batch['reward'][1].tolist() == list(range(300, 308))
    np.testing.assert_array_equal(batch['image'][0], episode['image'])


class Trap:
    """Make a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def zip_with_header(shape):
    """Return a npz whose image claims a shape that its few bytes do not have."""
    data = io.BytesIO()
    np.savez(data, **{**make_episode(0, 5), 'image': np.zeros(1, np.uint8)})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
    )
    forged = io.BytesIO()
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(forged, 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, header.getvalue() if name[0] == 'i' else content)
    return forged.getvalue()


def good_bytes():
    data = io.BytesIO()
    np.savez(data, **make_episode(0, 5))
    return data.getvalue()


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'not a zip file'),
        (b'garbage' * 100, 'not a zip file'),
        (good_bytes()[:-500], 'not a zip file'),
        (zip_with_header((10**9, 64, 64, 3)), 'its header says'),
        (zip_with_header((-5, 64, 64, 3)), 'its header says'),
    ],
)
def test_unreadable_file_is_named_and_kept(tmp_path, capsys, content, message):
    fill(tmp_path, [9])
    path = tmp_path / '20200401T101112-0a1b-5.npz'
    path.write_bytes(content)
    assert_skipped(tmp_path, path, message, capsys)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'discount': None}, 'no discount'),
        ({'image': np.zeros((5, 3, 64, 64), np.uint8)}, 'image has the shape'),
        ({'image': np.zeros((5, 64, 64, 3), np.int16)}, 'image has the dtype int16'),
        ({'action': np.zeros((5, 3))}, 'action has 3 values, others 2'),
        ({'action': np.zeros((5, 0))}, 'action has the shape'),
        ({'reward': np.zeros((5, 1))}, 'reward has the shape'),
        ({'reward': np.zeros(5, complex)}, 'reward has the dtype complex128'),
        ({key: value[:4] for key, value in make_episode(0, 5).items()}, 'says 5 rows'),
    ],
)
def test_file_that_does_not_fit_is_named_and_kept(tmp_path, capsys, change, message):
    fill(tmp_path, [9, 9])
    episode = {**make_episode(1, 5), **change}
    path = store(
        tmp_path, {key: value for key, value in episode.items() if value is not None}
    )
    assert_skipped(tmp_path, path, message, capsys)


def test_file_of_another_name_is_named_and_kept(tmp_path, capsys):
    fill(tmp_path, [9])
    path = store(tmp_path, make_episode(0, 5), 'zzz-5.npz')
    assert_skipped(tmp_path, path, 'its name is not', capsys)


def test_small_numbers_count_as_what_they_become(tmp_path, capsys, monkeypatch):
    """Bytes that become four times as many when they are served as float32."""
    fill(tmp_path, [9])
    monkeypatch.setattr(episodes, 'MAX_BYTES', 150_000)
    path = store(tmp_path, {**make_episode(0, 5), 'action': np.zeros((5, 5000), 'i1')})
    assert_skipped(tmp_path, path, '5 rows need 161', capsys)


def test_a_pipe_is_named_and_not_waited_for(tmp_path, capsys):
    fill(tmp_path, [9])
    path = tmp_path / '20200401T101112-0a1b-5.npz'
    os.mkfifo(path)
    replay = Replay(tmp_path, length=6)
    assert (replay.episodes, replay.skipped) == (1, 1)
    assert str(path) in capsys.readouterr().err


def test_pickles_are_not_opened(tmp_path, capsys):
    fill(tmp_path, [9])
    trap = np.array([Trap(tmp_path / 'sprung')] * 5)
    path = store(tmp_path, {**make_episode(0, 5), 'reward': trap})
    assert_skipped(tmp_path, path, 'reward', capsys)
    assert not (tmp_path / 'sprung').exists()


def test_too_large_file_is_refused_before_it_is_read(tmp_path, capsys, monkeypatch):
    fill(tmp_path, [9])
    path = store(
        tmp_path,
        make_episode(0, 11),
        '20200401T101112-0a1b-11.npz',
        np.savez_compressed,
    )
    monkeypatch.setattr(episodes, 'MAX_BYTES', 10 * ROW_BYTES)
    assert_skipped(tmp_path, path, f'11 rows need {11 * ROW_BYTES} bytes', capsys)


def assert_skipped(directory, path, message, capsys):
    content = path.read_bytes()
    loaded = Replay(directory, length=6)
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and str(path) in error and message in error
    assert loaded.skipped == 1
    assert loaded.episodes == len(list(directory.glob('*.npz'))) - 1
    assert path.read_bytes() == content
    assert loaded.sample(5)['reward'].shape == (5, 6)


@pytest.mark.parametrize('damage', ['flipped', 'truncated', 'removed', 'not finite'])
def test_file_damaged_later_is_named_and_another_drawn(tmp_path, capsys, damage):
    replay = fill(tmp_path, [9, 5, 9], memory=0)
    path = sorted(tmp_path.iterdir())[1]
    content = bytearray(path.read_bytes())
    if damage == 'flipped':
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == 'truncated':
        path.write_bytes(content[:-100])
    elif damage == 'removed':
        path.unlink()
    else:
        store(tmp_path, {**make_episode(1, 5), 'reward': np.full(5, np.inf)}, path.name)
    episodes, _, _ = draw(replay, 100)
    assert set(episodes.ravel()) == {0, 2}
    assert (replay.episodes, replay.skipped, replay.rows) == (2, 1, 18)
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and str(path) in error
    assert path.exists() == (damage != 'removed')


def test_nothing_to_sample_is_a_clear_error(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match='no episode'):
        Replay(tmp_path / 'missing', length=6).sample(1)
    replay = fill(tmp_path, [5], memory=0)
    replay.add(make_episode(1, 5))
    replay.flush()  # What is still being written would come after.
    for path in tmp_path.iterdir():
        path.write_bytes(b'')
    replay.sample(1)  # The newest is in memory.
    with pytest.raises(FileNotFoundError, match='no episode'):
        fill(tmp_path, []).sample(1)


def test_length_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match='at least 1 row'):
        Replay(tmp_path, length=0)


# Sampling


@pytest.mark.parametrize('balance', [False, True])
def test_rows_follow_each_other_unless_first(tmp_path, balance):
    replay = fill(tmp_path, [9, 2, 4, 30], length=7, balance=balance)
    batch = replay.sample(300)
    episode, row = origins(batch)
    first = batch['is_first']
    assert first[:, 0].all()
    np.testing.assert_array_equal(row[:, 1:][first[:, 1:]], 0)
    goes_on = ~first[:, 1:]
    assert (episode[:, 1:] == episode[:, :-1])[goes_on].all()
    assert (row[:, 1:] == row[:, :-1] + 1)[goes_on].all()
    # Every array tells the same story as the reward.
    np.testing.assert_array_equal(batch['image'][..., 9, 9, 0], episode)
    np.testing.assert_array_equal(batch['image'][..., 9, 9, 1], row)
    np.testing.assert_array_equal(batch['action'][..., 0], row)
    np.testing.assert_array_equal(batch['action'][..., 1], episode * (row > 0))
    last = np.array([9, 2, 4, 30])[episode] - 1
    np.testing.assert_array_equal(batch['discount'], row < last)
    # A sequence changes episode only behind the last row of the one before.
    np.testing.assert_array_equal(row[:, :-1][~goes_on], last[:, :-1][~goes_on])


def test_episodes_and_starts_are_uniform_and_the_last_row_is_drawn(tmp_path):
    lengths = [6, 9, 20]
    episode, row, first = draw(fill(tmp_path, lengths), 6000)
    assert_uniform(np.bincount(episode[:, 0], minlength=3), 2000)
    assert not first[:, 1:].any()
    for number, count in enumerate(lengths):
        chosen = row[episode[:, 0] == number]
        starts = np.bincount(chosen[:, 0], minlength=count - 5)
        assert len(starts) == count - 5
        assert_uniform(starts, 2000 / (count - 5))
        assert chosen.max() == count - 1


def test_balance_draws_every_row_equally_often(tmp_path):
    episode, row, first = draw(fill(tmp_path, [15] * 4, balance=True), 6000)
    counts = np.bincount(15 * episode.ravel() + row.ravel(), minlength=60)
    assert len(counts) == 60
    assert_uniform(counts, 6000 * 6 / 60)
    assert_uniform(np.bincount(row[:, 0], minlength=15), 6000 / 15)
    joined = episode[:, 1:][first[:, 1:]]
    assert_uniform(np.bincount(joined, minlength=4), len(joined) / 4)


def test_short_episodes_are_joined_and_every_row_is_drawn_equally_often(tmp_path):
    episode, row, first = draw(fill(tmp_path, [4, 4, 4]), 3000)
    counts = np.bincount(4 * episode.ravel() + row.ravel(), minlength=12)
    assert_uniform(counts, 3000 * 6 / 12)
    assert_uniform(np.bincount(row[:, 0], minlength=4), 3000 / 4)
    assert first.sum(1).min() == 2 and first.sum(1).max() == 3


@pytest.mark.parametrize('length', [6, 15, 20])
def test_terminal_rows_are_drawn_as_often_as_others(tmp_path, length):
    """With balance, episodes of one length, some of which were merely cut short."""
    replay = Replay(tmp_path, length=length, balance=True)
    for number in range(6):
        episode = make_episode(number, 15)
        episode['discount'][-1] = number % 2
        replay.add(episode)
    batches = [replay.sample(100) for _ in range(30)]
    episode, row = np.concatenate([origins(batch) for batch in batches], 1)
    discount = np.concatenate([batch['discount'] for batch in batches])
    np.testing.assert_array_equal(discount == 0, (row == 14) & (episode % 2 == 0))
    expected = 3000 * length / (6 * 15)
    assert_uniform(np.bincount(15 * episode.ravel() + row.ravel()), expected)
    assert_uniform((discount == 0).sum(), 3 * expected)


def test_one_short_episode_follows_itself(tmp_path):
    batch = fill(tmp_path, [2], length=5).sample(20)
    _, row = origins(batch)
    assert {*map(tuple, row)} == {(0, 1, 0, 1, 0), (1, 0, 1, 0, 1)}


def test_same_seed_same_batches(tmp_path):
    fill(tmp_path, [9, 4, 8])
    same, again, other = (
        Replay(tmp_path, length=6, seed=seed).sample(50) for seed in (1, 1, 2)
    )
    assert_equal(same, again)
    assert (same['reward'] != other['reward']).any()


def test_successive_batches_differ(tmp_path):
    replay = fill(tmp_path, [20])
    assert (replay.sample(20)['reward'] != replay.sample(20)['reward']).any()


# Memory and prefetching


@pytest.mark.parametrize('memory', [0, 20 * ROW_BYTES, 45 * ROW_BYTES])
def test_memory_is_bounded_and_changes_no_draw(tmp_path, memory):
    plenty = fill(tmp_path, [20, 20, 9, 20, 15])
    for replay in (
        Replay(tmp_path, length=6, memory=memory),
        fill(tmp_path / 'added', [20, 20, 9, 20, 15], memory=memory),
    ):
        plenty.set_state(replay.get_state())
        for _ in range(30):
            assert_equal(replay.sample(3), plenty.sample(3))
            held = [
                value.nbytes for one in replay._cache.values() for value in one.values()
            ]
            assert sum(held) == replay._cached_bytes
            assert sum(held) <= memory or len(replay._cache) == 1
    assert len(plenty._cache) == 5


def test_oldest_episode_leaves_memory(tmp_path):
    replay = fill(tmp_path, [9, 9], memory=18 * ROW_BYTES)
    _, second = sorted(tmp_path.iterdir())
    third = replay.add(make_episode(2, 9))
    replay.flush()
    assert list(replay._cache) == [second, third]


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('dtype', [np.float32, np.float16, np.float64])
def test_rows_from_disk_are_those_from_memory(tmp_path, save, dtype):
    """Files of others, and one whose arrays lie in Fortran's order."""
    for number in range(3):
        store(
            tmp_path,
            make_episode(number, 20, dtype),
            save=save,
            name=f'20200401T101112-{number}-20.npz',
        )
    episode = make_episode(3, 20)
    store(
        tmp_path,
        {**episode, 'action': np.asfortranarray(episode['action'])},
        name='20200401T101112-3-20.npz',
    )
    memory, disk = (Replay(tmp_path, length=6, memory=size) for size in (2**30, 0))
    for _ in range(20):
        assert_equal(memory.sample(4), disk.sample(4))
    by_rows = [arrays is not None for _, arrays in disk._stored.values()]
    assert by_rows.count(True) == (3 if save is np.savez else 0)


def test_only_the_rows_that_are_drawn_are_read(tmp_path, monkeypatch):
    replay = fill(tmp_path, [20, 20], memory=0)
    draw(replay, 100)
    monkeypatch.setattr(episodes, 'load', None)
    draw(replay, 100)
    assert replay.skipped == 0


def test_capacity_deletes_the_oldest_and_keeps_one(tmp_path):
    replay = fill(tmp_path, [11, 11, 11, 11], capacity=25)
    assert (replay.episodes, replay.steps) == (2, 20)
    assert set(origins(replay.sample(50))[0].ravel()) == {2, 3}
    assert len(list(tmp_path.iterdir())) == 2
    assert Replay(tmp_path, length=6).episodes == 2
    long = replay.add(make_episode(4, 60))
    replay.flush()
    assert list(tmp_path.iterdir()) == [long]
    # Numbers go on, though there are fewer files than before.
    resumed = Replay(tmp_path, length=6)
    assert resumed.add(make_episode(5, 5)).name > long.name


def test_refresh_follows_another_process(tmp_path, capsys):
    writer = fill(tmp_path, [5, 6], capacity=12)
    reader = Replay(tmp_path, length=3)
    store(tmp_path, make_episode(3, 4), name='zzz.npz')
    reader.refresh()
    assert (reader.episodes, reader.newest) == (2, writer.newest)
    writer.add(make_episode(2, 7))
    writer.flush()
    reader.refresh()
    assert (reader.episodes, reader.rows, reader.newest) == (2, 13, writer.newest)
    assert set(origins(reader.sample(50))[0].flat) == {1, 2}
    assert not capsys.readouterr().err


def test_newer_episodes_in_order(tmp_path, capsys):
    replay = fill(tmp_path, [5, 6, 7, 8])
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / names[2]).write_bytes(b'')
    assert [
        (entry.path.name, len(episode['reward']))
        for _, entry, episode in replay.newer(names[0])
    ] == [(names[1], 6), (names[3], 8)]
    assert names[2] in capsys.readouterr().err
    assert list(replay.newer(replay.newest)) == []


def test_a_header_that_claims_a_long_header_is_not_read(tmp_path, capsys):
    """A zip bomb: a few bytes that unpack to a header of 4 GB."""
    fill(tmp_path, [9])
    path = tmp_path / '20200401T101112-0a1b-5.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for key, value in make_episode(0, 5).items():
            data = io.BytesIO()
            np.lib.format.write_array(data, value)
            if key != 'image':
                archive.writestr(f'{key}.npy', data.getvalue())
        with archive.open('image.npy', 'w') as file:
            file.write(b'\x93NUMPY\x02\x00\xff\xff\xff\x0f')
            for _ in range(256):
                file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Replay(tmp_path, length=6)
    assert path.name in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**16


def test_stream_yields_what_repeated_calls_of_sample_return(tmp_path):
    replay = fill(tmp_path, [9, 4, 8])
    other = Replay(tmp_path, length=6)
    streamed = list(replay.stream(4, 5))
    assert len(streamed) == 5
    for batch in streamed:
        assert_equal(batch, other.sample(4))
    assert replay.get_state() == other.get_state()
    threads = set(replay.stream(4, 3, lambda data: threading.get_ident()))
    assert threads and threading.get_ident() not in threads
    assert list(replay.stream(4, 0)) == []


def test_stream_has_two_batches_on_their_way(tmp_path):
    """While the first is used, and another is being prepared, one more is drawn."""
    replay = fill(tmp_path, [9, 4, 8])
    drawn, gate = [], threading.Semaphore(1)
    sample = replay.sample

    def count(batch):
        drawn.append(threading.get_ident())
        return sample(batch)

    def prepare(data):
        gate.acquire(timeout=30)
        return threading.get_ident()

    replay.sample = count
    stream = replay.stream(4, 6, prepare)
    preparing = next(stream)
    for _ in range(300):
        if len(drawn) == 3:
            break
        time.sleep(0.1)
    assert len(drawn) == 3 and preparing not in drawn
    gate.release(6)
    assert len(list(stream)) == 5 and len(drawn) == 6


def test_stream_left_early_has_drawn_only_what_was_used(tmp_path):
    replay = fill(tmp_path, [9, 4, 8])
    other = Replay(tmp_path, length=6)
    for batch in replay.stream(4, 5):
        assert_equal(batch, other.sample(4))
        break
    assert_equal(replay.sample(4), other.sample(4))


def test_stream_passes_errors_on(tmp_path):
    with pytest.raises(FileNotFoundError, match='no episode'):
        list(Replay(tmp_path, length=6).stream(4, 2))
