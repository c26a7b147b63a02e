"""Simulators in worker processes against the bare simulator, and two against one.

    python benchmarks/acting.py [--steps 300] [--repeats 3]

Actions are random, settings are the paper's. The last line is one JSON object:

    bare_per_s     agent steps a second of dmc_walker_walk, bare, in another process
    worker_per_s   the same in a worker process that the training program steps
    worker_share   worker_per_s / bare_per_s
    atari_1_per_s  agent steps a second of atari_pong in one worker
    atari_2_per_s  the same in two workers together, stepped in turn
    atari_gain     atari_2_per_s / atari_1_per_s
    round_trip_ms  extra time of a step in a worker, compared with the same process

All are medians; ratios compare measurements that follow each other.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import wrappers
from support.acting import workers
from support.acting.collector import Collector
from support.envs import rendering
from support.system import command_line

SETTINGS = {
    'dmc_walker_walk': dict(action_repeat=2, time_limit=1000),
    'atari_pong': dict(action_repeat=4, time_limit=108_000),
    'dummy_continuous': dict(action_repeat=1, time_limit=10_000),
}


def bare(task, steps):
    """Return agent steps a second of an environment without worker or collector."""
    env = wrappers.make(task, **SETTINGS[task])
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(100)]
    env.reset(seed=0)
    start = time.perf_counter()
    for i in range(steps):
        _, _, terminated, truncated, _ = env.step(actions[i % len(actions)])
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def bare_elsewhere(task, steps):
    """Call `bare` in another process."""
    env = {**os.environ, 'MUJOCO_GL': rendering.choose_renderer()}
    output = subprocess.run(
        [sys.executable, __file__, '--bare', task, '--steps', str(steps)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return float(output)


def collected(task, count, steps):
    """Return agent steps a second of `count` workers together, stepped as in a run."""
    envs = workers.make_workers(task, count, SETTINGS[task])
    try:
        envs[0].action_space.seed(0)
        actions = [envs[0].action_space.sample()[None] for _ in range(100)]
        collector = Collector(envs, seed=0, groups=count)

        def step(i):
            for _ in collector.groups:
                collector.step(lambda *_: actions[i % len(actions)])

        step(0)
        start = time.perf_counter()
        for i in range(steps):
            step(i)
        return count * steps / (time.perf_counter() - start)
    finally:
        for env in envs:
            env.close()


def measure(steps, repeats):
    """Return the figures of the last line."""
    figures = []
    for _ in range(repeats):
        walker, pong = 'dmc_walker_walk', 'atari_pong'
        one = dict(
            bare_per_s=bare_elsewhere(walker, steps),
            worker_per_s=collected(walker, 1, steps),
            atari_1_per_s=collected(pong, 1, 10 * steps),
            atari_2_per_s=collected(pong, 2, 10 * steps),
            round_trip_ms=1000 / collected('dummy_continuous', 1, 10 * steps)
            - 1000 / bare('dummy_continuous', 10 * steps),
        )
        one.update(
            worker_share=one['worker_per_s'] / one['bare_per_s'],
            atari_gain=one['atari_2_per_s'] / one['atari_1_per_s'],
        )
        figures.append(one)
        print(json.dumps(one), flush=True)
    return {
        name: statistics.median(one[name] for one in figures) for name in figures[0]
    }


def main():
    """Run the command line."""
    parser = command_line.Parser(prog='acting.py', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--steps', type=command_line.number(int, 1), default=300, help='agent steps'
    )
    parser.add_argument('--repeats', type=command_line.number(int, 1), default=3)
    parser.add_argument('--bare', choices=SETTINGS, help=argparse.SUPPRESS)
    with command_line.refusing('acting'):
        args = parser.parse_args()
    if args.bare:
        print(bare(args.bare, args.steps))
    else:
        print(json.dumps(measure(args.steps, args.repeats)))


if __name__ == '__main__':
    main()
