"""Replay: batches a second, memory with most episodes on disk, cost of a new episode.

    python benchmarks/data.py

The replay has 100 episodes of 500 steps, 620 MB. Batches have the paper's size, 50
sequences of 50 steps. The system caches the files, so that no read waits for a disk.
The last line is one JSON object:

    batches_per_s        batches drawn from memory and placed on the device, as in a
                         run: threads prepare the next two
    core_batches_per_s   the same by processor time, as one core would draw them
    disk_batches_per_s   batches_per_s with a tenth of the episodes in memory
    disk_share           processor time of a batch from memory / from disk
    grown_mb             growth of resident memory in the last half of the draws from
                         disk
    add_ms               median time that the loop waits to hand over an episode of 501
                         frames, which a thread then writes
    written_ms           median time until the episode is on the disk
"""

import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from support.run import startup  # noqa: F401 (first: it imports TensorFlow without its chatter)

# isort: split
import numpy as np

from support.learning import replicas
from support.storage import replay

EPISODES, ROWS, BATCH, LENGTH, BATCHES = 100, 501, 50, 50, 100


def resident():
    """Return the resident memory of this process in MB."""
    status = pathlib.Path('/proc/self/status').read_text()
    (line,) = (line for line in status.splitlines() if line.startswith('VmRSS'))
    return int(line.split()[1]) / 1000


def fill(folder):
    """Write the episodes; return for each the seconds of `add`, and the seconds until
    it was written.
    """
    rng = np.random.default_rng(0)
    writer = replay.Replay(folder, length=LENGTH, memory=0)
    image = rng.integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8)
    added, written = [], []
    for number in range(EPISODES):
        episode = {
            'image': image + np.uint8(number),
            'discount': np.ones(ROWS),
            'action': rng.uniform(-1, 1, (ROWS, 6)),
            'reward': rng.uniform(size=ROWS),
        }
        start = time.perf_counter()
        writer.add(episode)
        added.append(time.perf_counter() - start)
        writer.flush()
        written.append(time.perf_counter() - start)
    return added, written


def draw(reader):
    """Draw batches as a run does; return seconds of wall time and of processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in reader.stream(BATCH, BATCHES, functools.partial(replicas.place, None)):
        pass
    return time.perf_counter() - wall, time.process_time() - processor


def measure(folder):
    """Return the figures of the last line."""
    added, written = fill(folder)
    figures, costs = {}, {}
    # From disk first, because memory in use from before would hide a growth.
    for name, memory in ('disk_', EPISODES * ROWS * 1_228), ('', 2**40):
        reader = replay.Replay(folder, length=LENGTH, memory=memory)
        draw(reader)  # Every file is read as a whole once.
        middle = resident()
        seconds, costs[name] = draw(reader)
        figures[f'{name}batches_per_s'] = BATCHES / seconds
        if name:
            figures['grown_mb'] = resident() - middle
    return dict(
        figures,
        core_batches_per_s=BATCHES / costs[''],
        disk_share=costs[''] / costs['disk_'],
        add_ms=1000 * statistics.median(added),
        written_ms=1000 * statistics.median(written),
    )


def main():
    """Run the command line."""
    startup.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(pathlib.Path(folder))))


if __name__ == '__main__':
    main()
