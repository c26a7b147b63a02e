"""Kill a run at random instants, again and again, and check that nothing is lost.

    make soak                           100 kills, on one core about an hour
    python tests/run/soak.py --kills 300 --seed 1

Half of the kills come while the program starts and restores, half while it runs.
"""

import argparse
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / 'run')]

import forks  # noqa: E402
from test_faults import LENGTH, Ledger, episodes, finish, start  # noqa: E402


def kill_once(logdir, instant, running):
    """Start the run and kill it `instant` seconds later, or that much after it has
    begun to collect; return the seconds it lived.
    """
    born = time.monotonic()
    process = start(logdir, steps=1e9)
    if running:
        count = len(episodes(logdir))
        forks.wait_for(lambda: len(episodes(logdir)) > count, process)
    time.sleep(instant)
    assert process.poll() is None, process.output()
    process.kill()
    finish(process, -signal.SIGKILL)
    return time.monotonic() - born


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(words)
    rng = random.Random(args.seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    print(f'in {folder}, which stays there if anything fails', flush=True)
    logdir = folder / 'run'
    ledger = Ledger(logdir)
    for number in range(1, args.kills + 1):
        running = rng.random() < 0.5
        seconds = kill_once(logdir, rng.uniform(0, 4 if running else 10), running)
        ledger.check()
        print(
            f'kill {number} after {seconds:.1f} s: {len(ledger.seen)} episodes',
            flush=True,
        )
    steps = (len(ledger.seen) + 5) * LENGTH
    finish(start(logdir, steps=steps))
    ledger.check_run(steps)
    shutil.rmtree(folder)
    print(f'{args.kills} kills, {len(ledger.seen)} episodes, nothing lost')


if __name__ == '__main__':
    main()
