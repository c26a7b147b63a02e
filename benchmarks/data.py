"""Replay: batches a second, memory while most is on disk, and what a new episode costs.

    python benchmarks/data.py

100 episodes of 500 steps, 620 MB; batches of the paper's size, 50 sequences of 50
steps. The files are in the system's cache: there is no disk to wait for. The last line
is one JSON object:

    batches_per_s        drawn from memory and placed where training takes them from, as
                         by a run: two on their way, in threads of their own
    core_batches_per_s   the same by processor time: what one core gives
    disk_batches_per_s   likewise, with a tenth of the episodes in memory
    disk_share           of the processor time: memory's a batch / disk's
    grown_mb             growth of resident memory in the last half of the draws from
                         disk
    add_ms               median time that the loop waits to hand over an episode of 501
                         frames, which a thread then writes
    written_ms           median time until it is on the disk
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
    """Memory of this process that is in use, in MB."""
    status = pathlib.Path('/proc/self/status').read_text()
    (line,) = (line for line in status.splitlines() if line.startswith('VmRSS'))
    return int(line.split()[1]) / 1000


def fill(folder):
    """Write the episodes; return the seconds that each call took and the seconds
    until each was written.
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
    """The figures of the last line."""
    added, written = fill(folder)
    figures, costs = {}, {}
    # From disk first: what memory was used before would hide a growth.
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
    """The command line."""
    startup.keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(pathlib.Path(folder))))


if __name__ == '__main__':
    main()
