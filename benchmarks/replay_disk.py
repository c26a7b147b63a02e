"""Batches a second from disk against memory, and memory when most of it is on disk.

    python benchmarks/replay_disk.py

Fills a replay with 100 episodes of 500 steps, 620 MB, with room for a tenth of them in
memory, and draws batches of the paper's size, 50 sequences of 50 steps. Seconds are of
processor time: the files are in the system's cache, so there is no disk to wait for.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import replay  # noqa: E402

EPISODES, ROWS, BATCH, LENGTH, BATCHES = 100, 501, 50, 50, 100


def resident():
    """Memory of this process that is in use, in MB."""
    status = pathlib.Path('/proc/self/status').read_text()
    line, = (line for line in status.splitlines() if line.startswith('VmRSS'))
    return int(line.split()[1]) / 1000


def fill(folder, rng):
    writer = replay.Replay(folder, length=LENGTH, memory=0)
    image = rng.integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8)
    for number in range(EPISODES):
        writer.add({
            'image': image + np.uint8(number), 'discount': np.ones(ROWS),
            'action': rng.uniform(-1, 1, (ROWS, 6)), 'reward': rng.uniform(size=ROWS)})


def measure(folder, memory):
    """Draws batches; returns batches a second and the MB before, after the first part
    and at the end."""
    before = resident()
    reader = replay.Replay(folder, length=LENGTH, memory=memory)
    for _ in range(BATCHES):  # Every file is read as a whole once.
        reader.sample(BATCH)
    middle, start = resident(), time.process_time()
    for _ in range(BATCHES):
        reader.sample(BATCH)
    seconds = time.process_time() - start
    return BATCHES / seconds, before, middle, resident()


def main():
    with tempfile.TemporaryDirectory() as folder:
        fill(folder, np.random.default_rng(0))
        total = EPISODES * ROWS * 12_288
        for name, memory in ('a tenth in memory', total / 10), ('all in memory', 2**40):
            rate, *sizes = measure(folder, memory)
            before, middle, end = (f'{size:.0f}' for size in sizes)
            print(f'{name}: {rate:.1f} batches/s; resident {before} MB at the start, '
                  f'{middle} MB after {BATCHES} batches, {end} MB after {2 * BATCHES}')


if __name__ == '__main__':
    main()
