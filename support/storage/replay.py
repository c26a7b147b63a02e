"""Replay: episodes on disk, a bounded part of them in memory, sequence batches.

Shapes: T rows of an episode (agent steps + 1), B batch, L length, A action, V state
vector. Time index: `action[t]` led to `image[t]`, `reward[t]` and `discount[t]`;
`action[0]` is zero.
"""

import collections
import concurrent.futures
import datetime
import errno
import pathlib
import sys

import numpy as np

from support.storage import episodes
from support.system import limits


class Replay:
    """Whole episodes on disk, and batches of sequences from them.

    An episode is a dict of image uint8 [T, 64, 64, 3], state [T, V] or both, action
    [T, A], reward [T] and discount [T]. Its file has the format of the authors' 2020
    code, whose folders load, too (see `episodes`). Files that cannot be used are named
    on stderr, counted in `skipped` and left in place.

    Args:
      directory: folder of the episodes; made with the first episode.
      length: rows L of a sampled sequence.
      observes: 'image', 'state', or both: keys that the episodes must have.
      seed: seed of the generator for all draws.
      balance: draw every row of an episode equally often; see `sample`.
      memory: bytes of decoded episodes to hold; the oldest leave first. None is a
        quarter of the process's memory. One episode is always held. Drawn rows of other
        episodes are read from disk.
      capacity: agent steps to keep on disk; the oldest files are deleted, but not the
        last one. None keeps all.

    Attributes:
      PENDING: largest number of episodes in memory that wait to be written.
      AHEAD: batches of a `stream` in preparation: one is drawn, another is placed.
      skipped: number of unusable files.
      newest: name of the newest file, or ''; names sort in the order of adding.
    """

    PENDING = 4
    AHEAD = 2

    def __init__(
        self,
        directory,
        *,
        length,
        observes=('image',),
        seed=0,
        balance=False,
        memory=None,
        capacity=None,
    ):
        if length < 1:
            raise ValueError(f'A sequence needs at least 1 row, not {length}')
        self.skipped = 0
        self._directory = pathlib.Path(directory)
        self._length = length
        self._observes = tuple(observes)
        self._keys = (*observes, *episodes.KEYS)
        self._balance = balance
        self._memory = default_memory() if memory is None else memory
        self._capacity = capacity
        self._rng = np.random.default_rng(seed)
        self._cache = collections.OrderedDict()
        self._cached_bytes = 0
        self._stored = {}
        # With one thread, files appear in the order of their names.
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
    def state_size(self):
        """Size V of the states, 0 if they are not observed; None without episodes."""
        return self._entries[0].states if self._entries else None

    @property
    def rows(self):
        """Number of rows of all episodes."""
        return sum(entry.rows for entry in self._entries)

    @property
    def steps(self):
        """Number of agent steps of all episodes; an episode has steps + 1 rows."""
        return self.rows - self.episodes

    def get_state(self):
        """Return the generator's state, a dict that JSON can hold."""
        return self._rng.bit_generator.state

    def set_state(self, state):
        """Continue the draws from a state that `get_state` returned."""
        self._rng.bit_generator.state = state

    def add(self, episode):
        """Add an episode to the draws, and write it to disk in the background.

        Args:
          episode: dict of observations, action [T, A], reward [T] and discount [T],
            T >= 2; numbers are stored as float32. `origin`, if given, becomes part of
            the name (see `Entry.origin`). Other keys are not stored.

        Returns:
          the path of the file.

        Raises:
          ValueError: a key is missing, or a shape, dtype or value does not fit.
          OSError: the file of this episode or an earlier one could not be written; no
            part of it is left.
        """
        self._await_writes(self.PENDING)
        origin = episode.get('origin', (0, 0, 0))
        episode = {key: np.asarray(value) for key, value in episode.items()}
        headers = {key: (array.shape, array.dtype) for key, array in episode.items()}
        rows, actions, states = episodes.check_headers(headers, self._observes)
        for key, size, before in (
            ('action', actions, self.action_size),
            ('state', states, self.state_size),
        ):
            if before not in (None, size):
                raise ValueError(f'{key} has {size} values, those before {before}')
        episode = episodes.decode(episode, self._observes)
        # Without its parents, because a deleted run's folder must not reappear.
        self._directory.mkdir(exist_ok=True)
        entry = episodes.Entry(
            self._directory / self._name(rows, origin), rows, actions, states
        )
        self._entries.append(entry)
        self.newest = entry.path.name
        self._count += 1
        self._remember(entry, episode)
        while self._capacity and self.episodes > 1 and self.steps > self._capacity:
            self.flush()  # The oldest may not be written yet.
            oldest = self._entries.pop(0)
            self._forget(oldest)
            oldest.path.unlink(missing_ok=True)
        self._writing.append(self._writer.submit(episodes.write, entry.path, episode))
        return entry.path

    def flush(self):
        """Wait until all episodes are on disk.

        Raises:
          OSError: a file could not be written; no part of it is left.
        """
        self._await_writes(0)

    def newer(self, name):
        """Yield each episode whose file name sorts after `name`, as its number among
        all (from 1), its `Entry` and its arrays.
        """
        for entry in [x for x in self._entries if x.path.name > name]:
            try:
                yield self._entries.index(entry) + 1, entry, self._load(entry)
            except MemoryError:
                raise
            except Exception as error:  # Damage has many kinds; see `load`.
                self._drop(entry, error)

    def refresh(self):
        """Add and drop the episodes that another process has written or deleted."""
        paths = sorted(self._directory.glob('*.npz'))
        present = set(paths)
        for entry in [x for x in self._entries if x.path not in present]:
            self._entries.remove(entry)
            self._forget(entry)
        self._entries += self._scan(
            path
            for path in paths
            if episodes.NAME.fullmatch(path.name) and path.name > self.newest
        )

    def sample(self, batch):
        """Draw a batch of sequences.

        First an episode is drawn uniformly, then a start, uniformly over all starts
        that leave L rows. Rows near both ends of an episode are thus drawn less often.
        With `balance`, and in episodes of less than L rows, the start is uniform over
        all rows. Where the episode ends, the sequence continues with the first rows of
        another, uniformly drawn episode. With `balance`, all rows are drawn equally
        often (exactly so among episodes of one length).

        Args:
          batch: number of sequences B.

        Returns:
          dict of image uint8 [B, L, 64, 64, 3], state float32 [B, L, V] or both,
          action float32 [B, L, A], reward and discount float32 [B, L] and is_first bool
          [B, L]. is_first marks the first row of a sequence and of each episode joined
          on. The RSSM resets state and action there; the action here is as recorded.

        Raises:
          FileNotFoundError: there is no episode to draw from.
          OSError: an episode could not be written.
        """
        self._await_writes(self.PENDING)
        shapes = dict(
            image=episodes.IMAGE,
            state=(self.state_size or 0,),
            action=(self.action_size or 0,),
        )
        drawn = {
            key: np.empty(
                (batch, self._length, *shapes.get(key, ())),
                np.uint8 if key == 'image' else np.float32,
            )
            for key in self._keys
        }
        drawn['is_first'] = np.zeros((batch, self._length), bool)
        for row in range(batch):
            self._fill({key: array[row] for key, array in drawn.items()})
        return drawn

    def stream(self, batch, count, prepare=lambda drawn: drawn):
        """Yield `count` batches. While the caller uses one, one thread draws the next
        `AHEAD`, and another thread calls `prepare` with each.

        The batches equal `count` calls of `sample`. Call no other method until the
        stream has ended. If the caller leaves early, later draws repeat the batches
        that it has not used.
        """
        state = self.get_state()
        upcoming = collections.deque()
        try:
            with (
                concurrent.futures.ThreadPoolExecutor(1) as drawing,
                concurrent.futures.ThreadPoolExecutor(1) as preparing,
            ):

                def start():
                    drawn = drawing.submit(
                        lambda: (self.sample(batch), self.get_state())
                    )
                    ready = preparing.submit(
                        lambda: (prepare(drawn.result()[0]), drawn.result()[1])
                    )
                    upcoming.append(ready)

                for _ in range(min(count, self.AHEAD)):
                    start()
                for remaining in reversed(range(count)):
                    drawn, state = upcoming.popleft().result()
                    if remaining >= self.AHEAD:
                        start()
                    yield drawn
        finally:
            self.set_state(state)

    def _fill(self, sequence):
        """Draw one sequence into arrays [L, ...]."""
        filled = 0
        while filled < self._length:
            if not self._entries:
                raise FileNotFoundError(
                    errno.ENOENT, 'no episode can be drawn from', str(self._directory)
                )
            entry = self._entries[self._rng.integers(len(self._entries))]
            start = 0 if filled else self._start(entry.rows)
            count = min(self._length - filled, entry.rows - start)
            target = {key: sequence[key][filled : filled + count] for key in self._keys}
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
        """Read rows of an episode into arrays, from memory if it is held there."""
        episode = self._cache.get(entry.path)
        if episode is None:
            stamp, arrays = self._stored.get(entry.path, (None, None))
            now = episodes.identify(entry.path)
            if arrays and stamp == now:
                return episodes.read_rows(entry.path, arrays, start, target)
            # Checksums need the whole file, once.
            episode = self._load(entry)
            arrays = episodes.find_arrays(entry.path, self._observes)
            self._stored[entry.path] = now, arrays
            self._remember(entry, episode)
        for key, array in target.items():
            array[...] = episode[key][start : start + len(array)]

    def _load(self, entry):
        return episodes.load(entry, self._observes)

    def _await_writes(self, pending):
        """Wait until at most `pending` writes are unfinished. Raise a failed write's
        error at every call, so that no episode is lost silently.
        """
        while self._writing and (
            len(self._writing) > pending or self._writing[0].done()
        ):
            self._writing[0].result()
            self._writing.popleft()

    def _remember(self, entry, episode):
        self._cache[entry.path] = episode
        self._cached_bytes += count_bytes(episode)
        while self._cached_bytes > self._memory and len(self._cache) > 1:
            self.flush()  # From now on, rows are read from the file.
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
        """Return the `Entry` of each usable episode among `paths`, in their order."""
        entries = []
        for path in paths:
            try:
                entries.append(episodes.inspect(path, self._observes))
            except Exception as error:  # Damage has many kinds; see `inspect`.
                self._skip(path, error)
            if episodes.NAME.fullmatch(path.name):
                self.newest = path.name
            name = episodes.NUMBERED.fullmatch(path.name)
            order = int(name['order'], 16) if name else 0
            self._count = max(self._count, order) + 1
        for key in 'actions', 'states':
            sizes = collections.Counter(getattr(entry, key) for entry in entries)
            usual = sizes.most_common(1)[0][0] if sizes else None
            for entry in entries:
                size = getattr(entry, key)
                if size != usual:
                    reason = f'{key[:-1]} has {size} values, others {usual}'
                    self._skip(entry.path, reason)
            entries = [entry for entry in entries if getattr(entry, key) == usual]
        return entries

    def _skip(self, path, reason):
        self.skipped += 1
        reason = ' '.join(str(reason).split()) or type(reason).__name__
        print(f'Skipped the episode {path}: {reason}', file=sys.stderr)

    def _name(self, rows, origin):
        """Return a file name that sorts after all earlier ones.

        The time never runs backwards. The first 8 digits of the id count the episodes
        and decide within a second. The order of episodes is therefore the same in a
        resumed run, and in all runs of one seed.
        """
        now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S')
        time = max(now, self.newest[: len(now)])
        env, index, steps = map(int, origin)
        return f'{time}-{self._count:08x}e{env}i{index}s{steps}-{rows}.npz'


def count_bytes(episode):
    """Return the bytes of an episode's arrays."""
    return sum(array.nbytes for array in episode.values())


def default_memory():
    """Return a quarter of the memory that this process may take, in bytes.

    The networks, the simulators and the system need the rest.
    """
    return limits.memory() // 4
