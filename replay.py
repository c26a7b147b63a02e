"""Replay: episodes on disk, a bounded part of them in memory, sequence batches.

Shapes: T rows of an episode (agent steps + 1), B batch, L length, A action.
Time index: `action[t]` led to `image[t]`, `reward[t]` and `discount[t]`;
`action[0]` is zero.
"""

import collections
import concurrent.futures
import dataclasses
import datetime
import errno
import io
import math
import os
import pathlib
import re
import struct
import sys
import zipfile

import numpy as np

import faults

IMAGE = (64, 64, 3)
KEYS = ('image', 'action', 'reward', 'discount')
NAME = re.compile(r'\d{8}T\d{6}-\w+-(?P<rows>\d+)\.npz')
# Own files say further: how many were before, and what `Entry.origin` returns.
OWN = re.compile(
    r'\d{8}T\d{6}-(?P<order>[0-9a-f]{8})e(?P<env>\d+)i(?P<index>\d+)s(?P<steps>\d+)'
    r'-\d+\.npz')
# Far above the longest Atari episode (27,000 steps, 0.33 GB). A header that claims
# more is refused before its data is read.
MAX_BYTES = 2**30
MAX_HEADER = 2**14  # Of an array, in bytes; NumPy's own limit is 10,000.


@dataclasses.dataclass(frozen=True)
class Entry:
    """An episode on disk: its path, its rows T and its action size A."""

    path: pathlib.Path
    rows: int
    actions: int

    @property
    def origin(self):
        """Environment, its episode index and simulator steps; None in others' files."""
        name = OWN.fullmatch(self.path.name)
        return name and tuple(int(name[key]) for key in ('env', 'index', 'steps'))


class Replay:
    """Stores whole episodes and samples batches of sequences from them.

    An episode is a dict of image uint8 [T, 64, 64, 3], action [T, A], reward [T] and
    discount [T], kept as `{time}-{id}-{rows}.npz` (the format of the authors' 2020
    code, whose folders load too: float16, compressed, with further keys). Files that
    cannot be used are named on stderr, counted in `skipped` and left where they are.

    Args:
      directory: Folder of the episodes; made when the first is added.
      length: Rows L of a sampled sequence.
      seed: Seed of the generator that every draw comes from.
      balance: Draw every row of an episode equally often; see `sample`.
      memory: Bytes of decoded episodes to hold, the oldest leave first; None for a
        quarter of the machine's memory. One episode is always held. Of others, the
        rows that are drawn are read from disk.
      capacity: Agent steps to keep on disk, or None: the oldest files are deleted. One
        episode is always kept.

    Attributes:
      PENDING: Episodes that may wait to be written; they are held in memory.
      skipped: Number of files that could not be used.
      newest: Name of the newest file, '' without any; names sort as files were added.
    """

    PENDING = 4

    def __init__(self, directory, *, length, seed=0, balance=False, memory=None,
                 capacity=None):
        if length < 1:
            raise ValueError(f'A sequence needs at least 1 row, not {length}.')
        self.skipped = 0
        self._directory = pathlib.Path(directory)
        self._length = length
        self._balance = balance
        self._memory = default_memory() if memory is None else memory
        self._capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._cache = collections.OrderedDict()
        self._cached_bytes = 0
        self._stored = {}
        # One thread, so that files appear in the order of their names.
        self._writer = concurrent.futures.ThreadPoolExecutor(1)
        self._writing = collections.deque()
        self.newest = ''
        self._count = 0
        self._entries = self._scan(sorted(self._directory.glob('*.npz')))

    @property
    def episodes(self):
        """Number of episodes that can be drawn."""
        return len(self._entries)

    @property
    def action_size(self):
        """Size A of the actions; None without episodes."""
        return self._entries[0].actions if self._entries else None

    @property
    def rows(self):
        """Number of rows of all episodes."""
        return sum(entry.rows for entry in self._entries)

    @property
    def steps(self):
        """Number of agent steps of all episodes; each has one row more than steps."""
        return self.rows - self.episodes

    def get_state(self):
        """Returns the generator's state, a dict that JSON can hold."""
        return self._rng.bit_generator.state

    def set_state(self, state):
        """Continues the draws from a state that `get_state` returned."""
        self._rng.bit_generator.state = state

    def add(self, episode):
        """Serves an episode from now on, and writes it to disk, atomically, in the
        background: see `flush`.

        Args:
          episode: Dict of image uint8 [T, 64, 64, 3], action [T, A], reward [T] and
            discount [T], T >= 2; numbers are stored as float32. `origin`, if given,
            is part of the name (see `Entry.origin`). Other keys are not stored.

        Returns:
          The path of the file.

        Raises:
          ValueError: A key is missing, or a shape, dtype or value does not fit.
          OSError: A file, of this episode or of one before, could not be written; no
            part of it is left.
        """
        self._await_writes(self.PENDING)
        origin = episode.get('origin', (0, 0, 0))
        episode = {key: np.asarray(value) for key, value in episode.items()}
        headers = {key: (array.shape, array.dtype) for key, array in episode.items()}
        rows, actions = check_headers(headers)
        if self._entries and actions != self._entries[0].actions:
            raise ValueError(
                f'action has {actions} values, those before {self._entries[0].actions}')
        episode = decode(episode)
        # Not its parents: a run's folder that is gone must not come back half empty.
        self._directory.mkdir(exist_ok=True)
        entry = Entry(self._directory / self._name(rows, origin), rows, actions)
        self._entries.append(entry)
        self.newest = entry.path.name
        self._count += 1
        self._remember(entry, episode)
        while self._capacity and self.episodes > 1 and self.steps > self._capacity:
            self.flush()  # The oldest may still be on its way.
            oldest = self._entries.pop(0)
            self._forget(oldest)
            oldest.path.unlink(missing_ok=True)
        self._writing.append(self._writer.submit(write, entry.path, episode))
        return entry.path

    def flush(self):
        """Waits until all episodes are on disk.

        Raises:
          OSError: A file could not be written; no part of it is left.
        """
        self._await_writes(0)

    def newer(self, name):
        """Yields every episode whose file name is behind `name`: which it is in order,
        from 1, its `Entry` and the episode."""
        for entry in [x for x in self._entries if x.path.name > name]:
            try:
                yield self._entries.index(entry) + 1, entry, load(entry)
            except MemoryError:
                raise
            except Exception as error:  # Damage has many kinds; see `load`.
                self._drop(entry, error)

    def refresh(self):
        """Takes up what another process has added to the folder since, and leaves out
        what it has deleted."""
        paths = sorted(self._directory.glob('*.npz'))
        present = set(paths)
        for entry in [x for x in self._entries if x.path not in present]:
            self._entries.remove(entry)
            self._forget(entry)
        self._entries += self._scan(
            path for path in paths
            if NAME.fullmatch(path.name) and path.name > self.newest)

    def sample(self, batch):
        """Draws a batch of sequences.

        An episode is drawn uniformly, then the start: uniform over the starts that
        leave L rows, the last row included. With `balance`, and in an episode of less
        than L rows, the start is uniform over all rows instead, and the sequence goes
        on with the first rows of another uniformly drawn episode when it ends. Without
        this the rows near both ends of an episode are drawn less often than the rest;
        with it, all rows equally often (exactly so among episodes of one length).

        Args:
          batch: Number of sequences B.

        Returns:
          Dict of image uint8 [B, L, 64, 64, 3], action float32 [B, L, A], reward
          float32 [B, L], discount float32 [B, L] and is_first bool [B, L]. is_first
          marks position 0 and the first row of each episode joined on. The action
          there is as recorded: whoever unrolls the state resets both.

        Raises:
          FileNotFoundError: There is no episode to draw from.
          OSError: An episode could not be written.
        """
        self._await_writes(self.PENDING)
        shapes = dict(zip(KEYS, (IMAGE, (self.action_size or 0,), (), ())))
        data = {
            key: np.empty((batch, self._length, *shape),
                          np.uint8 if key == 'image' else np.float32)
            for key, shape in shapes.items()}
        data['is_first'] = np.zeros((batch, self._length), bool)
        for row in range(batch):
            self._fill({key: array[row] for key, array in data.items()})
        return data

    def stream(self, batch, count):
        """Yields `count` batches, drawing the next while the caller uses the last.

        The batches are those of `count` calls of `sample`. Call nothing else here until
        the stream has ended. A caller may leave early: what was drawn ahead is then
        drawn again.
        """
        state = self.get_state()
        try:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                upcoming = [pool.submit(self.sample, batch)] if count else []
                for remaining in reversed(range(count)):
                    data = upcoming.pop().result()
                    state = self.get_state()
                    if remaining:
                        upcoming.append(pool.submit(self.sample, batch))
                    yield data
        finally:
            self.set_state(state)

    def _fill(self, sequence):
        """Draws a sequence into arrays [L, ...]."""
        filled = 0
        while filled < self._length:
            if not self._entries:
                raise FileNotFoundError(
                    errno.ENOENT, 'no episode can be drawn from', str(self._directory))
            entry = self._entries[self._rng.integers(len(self._entries))]
            start = 0 if filled else self._start(entry.rows)
            count = min(self._length - filled, entry.rows - start)
            target = {key: sequence[key][filled:filled + count] for key in KEYS}
            try:
                self._read(entry, start, target)
            except MemoryError:
                raise  # The file is not at fault.
            except Exception as error:  # Damage has many kinds; see `load`.
                self._drop(entry, error)
                continue
            sequence['is_first'][filled] = True
            filled += count

    def _start(self, rows):
        if self._balance or rows < self._length:
            return self._rng.integers(rows)
        return self._rng.integers(rows - self._length + 1)

    def _read(self, entry, start, target):
        """Puts rows of an episode into arrays, from memory if it is there."""
        episode = self._cache.get(entry.path)
        if episode is None:
            stamp, arrays = self._stored.get(entry.path, (None, None))
            now = identify(entry.path)
            if arrays and stamp == now:
                return read_rows(entry.path, arrays, start, target)
            # The first time as a whole, for the checksums.
            episode = load(entry)
            self._stored[entry.path] = now, find_arrays(entry.path)
            self._remember(entry, episode)
        for key, array in target.items():
            array[...] = episode[key][start:start + len(array)]

    def _await_writes(self, pending):
        """Waits until no more than `pending` writes are unfinished, and raises what
        those that have ended met; again at every call, for nothing is lost silently."""
        while self._writing and (
                len(self._writing) > pending or self._writing[0].done()):
            self._writing[0].result()
            self._writing.popleft()

    def _remember(self, entry, episode):
        self._cache[entry.path] = episode
        self._cached_bytes += count_bytes(episode)
        while self._cached_bytes > self._memory and len(self._cache) > 1:
            self.flush()  # It will be read from its file.
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= count_bytes(oldest)

    def _forget(self, entry):
        self._stored.pop(entry.path, None)
        self._cached_bytes -= count_bytes(self._cache.pop(entry.path, {}))

    def _drop(self, entry, reason):
        self._entries.remove(entry)
        self._forget(entry)
        self._skip(entry.path, reason)

    def _scan(self, paths):
        """Returns the usable episodes by name: directories have no order to rely on."""
        entries = []
        for path in paths:
            try:
                entries.append(inspect(path))
            except Exception as error:  # Damage has many kinds; see `inspect`.
                self._skip(path, error)
            if NAME.fullmatch(path.name):
                self.newest = path.name
            own = OWN.fullmatch(path.name)
            order = int(own['order'], 16) if own else 0
            self._count = max(self._count, order) + 1
        sizes = collections.Counter(entry.actions for entry in entries)
        usual = sizes.most_common(1)[0][0] if sizes else None
        for entry in entries:
            if entry.actions != usual:
                self._skip(
                    entry.path, f'action has {entry.actions} values, others {usual}')
        return [entry for entry in entries if entry.actions == usual]

    def _skip(self, path, reason):
        self.skipped += 1
        reason = ' '.join(str(reason).split()) or type(reason).__name__
        print(f'Skipped the episode {path}: {reason}', file=sys.stderr)

    def _name(self, rows, origin):
        """Returns a file name that sorts behind all those before.

        A resumed run then draws from the same order as one that was not interrupted,
        and runs of one seed agree: the time never goes back, and within a second the
        first 8 digits of the id count on.
        """
        now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S')
        time = max(now, self.newest[:len(now)])
        env, index, steps = map(int, origin)
        return f'{time}-{self._count:08x}e{env}i{index}s{steps}-{rows}.npz'


def check_headers(headers):
    """Checks the arrays of an episode by their shapes and dtypes.

    Args:
      headers: Dict of key to (shape, dtype).

    Returns:
      Rows T and action size A.

    Raises:
      ValueError: A key is missing, a shape or dtype does not fit, or the episode has
        no step or more than `MAX_BYTES`.
    """
    missing = [key for key in KEYS if key not in headers]
    if missing:
        raise ValueError(f'no {", ".join(missing)} in the episode')
    rows = headers['image'][0][:1]
    actions = headers['action'][0][1:]
    if len(actions) != 1 or actions[0] < 1:
        raise ValueError(f'action has the shape {headers["action"][0]}, not (T, A)')
    shapes = dict(zip(KEYS, (rows + IMAGE, rows + actions, rows, rows)))
    for key, expected in shapes.items():
        shape, dtype = headers[key]
        if shape != expected:
            raise ValueError(f'{key} has the shape {shape}, not {expected}')
        if dtype != np.uint8 if key == 'image' else dtype.kind not in 'fiu':
            raise ValueError(f'{key} has the dtype {dtype}')
    if rows[0] < 2:
        raise ValueError(f'{rows[0]} rows hold no step')
    # As they are, or as float32, whichever takes more.
    size = sum(math.prod(shape) * (1 if key == 'image' else max(4, dtype.itemsize))
               for key, (shape, dtype) in headers.items() if key in KEYS)
    if size > MAX_BYTES:
        raise ValueError(f'{rows[0]} rows need {size} bytes, more than {MAX_BYTES}')
    return rows[0], actions[0]


def decode(episode):
    """Returns a copy of the four arrays as they are served: uint8 and float32.

    Raises:
      ValueError: A number is not finite.
    """
    with np.errstate(over='ignore'):
        decoded = {
            key: np.array(episode[key], np.uint8 if key == 'image' else np.float32)
            for key in KEYS}
    for key in KEYS[1:]:
        if not np.isfinite(decoded[key]).all():
            raise ValueError(f'{key} has values that are not finite')
    return decoded


def write(path, episode):
    """Writes a file that is whole or absent, also when the process is killed.

    Stored, not compressed: 8 times faster to write and 7 times to read.
    """
    # The name does not end in .npz, so that nobody takes a part for an episode.
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        with open(temporary, 'wb') as file:
            np.savez(file, **episode)
            faults.reach('write')
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
        faults.reach('rename')
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename(path, target):
    """Gives a file its final name, which a loss of power does not take away again."""
    os.replace(path, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # Not on every network's file system.
    finally:
        os.close(folder)


def inspect(path):
    """Returns the `Entry` of a file, from its headers: the data is not read.

    Raises:
      Exception: One of many kinds, if it is not a readable episode.
    """
    if not path.is_file():
        raise ValueError('it is not a file')  # To open a pipe would take for ever.
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        headers = {
            key: read_header(archive, key) for key in KEYS if f'{key}.npy' in names}
    rows, actions = check_headers(headers)
    name = NAME.fullmatch(path.name)
    if not name:
        raise ValueError('its name is not {time}-{id}-{rows}.npz')
    if int(name['rows']) != rows:
        raise ValueError(f'its name says {name["rows"]} rows, it has {rows}')
    return Entry(path, rows, actions)


def read_header(archive, key):
    """Returns shape and dtype of an array in a zip archive."""
    info = archive.getinfo(f'{key}.npy')
    with archive.open(info) as file:
        # Not more, whatever length the header claims.
        start = io.BytesIO(file.read(MAX_HEADER))
    shape, _, dtype = parse_header(start)
    size = start.tell() + math.prod(shape) * dtype.itemsize
    if info.file_size != size:
        raise ValueError(f'{key} has {info.file_size} bytes, its header says {size}')
    return shape, dtype


def parse_header(file):
    """Returns shape, whether in Fortran's order, and dtype; leaves `file` behind it."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def identify(path):
    """Returns what changes when a file is written to or replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def find_arrays(path):
    """Returns offset, dtype and shape of a row for each array in a file; None if its
    rows do not lie there one after the other: compressed, or in Fortran's order."""
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
        for key in KEYS:
            info = archive.getinfo(f'{key}.npy')
            if info.compress_type != zipfile.ZIP_STORED:
                return None
            # The local header: 30 bytes, the name, and what zipfile does not tell.
            file.seek(info.header_offset + 26)
            file.seek(sum(struct.unpack('<HH', file.read(4))), os.SEEK_CUR)
            shape, fortran, dtype = parse_header(file)
            if fortran and len(shape) > 1:
                return None
            arrays[key] = file.tell(), dtype, shape[1:]
    return arrays


def read_rows(path, arrays, start, target):
    """Puts rows of an episode, from `start` on, into the arrays of `target`.

    Args:
      arrays: What `find_arrays` returned.

    Raises:
      OSError, ValueError: The rows are not there.
    """
    with open(path, 'rb', buffering=0) as file:
        for key, (offset, dtype, shape) in arrays.items():
            array = target[key]
            rows = array if dtype == array.dtype else np.empty(array.shape, dtype)
            file.seek(offset + start * math.prod(shape) * dtype.itemsize)
            if file.readinto(rows) != rows.nbytes:
                raise ValueError(f'{key} ends too early')
            if rows is not array:
                array[...] = rows


def load(entry):
    """Returns the decoded episode of an `Entry`.

    Raises:
      Exception: One of many kinds, if the file is damaged or another than before.
    """
    if inspect(entry.path) != entry:
        raise ValueError('it has changed')
    episode = {}
    with zipfile.ZipFile(entry.path) as archive:
        for key in KEYS:
            with archive.open(f'{key}.npy') as file:
                episode[key] = np.lib.format.read_array(file, allow_pickle=False)
                # The checksum is compared when the end has been reached.
                file.read(1)
    return decode(episode)


def count_bytes(episode):
    """Returns the bytes of an episode's arrays."""
    return sum(array.nbytes for array in episode.values())


def default_memory():
    """Returns a quarter of the memory, in bytes, of the machine or its container.

    The rest is for the networks, the simulators and what the system needs.
    """
    limits = []
    try:
        limits.append(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
        limits.append(int(pathlib.Path('/sys/fs/cgroup/memory.max').read_text()))
    except (AttributeError, OSError, ValueError):
        pass  # Not on this system, or 'max' where there is no limit.
    return min(limits, default=2**33) // 4
