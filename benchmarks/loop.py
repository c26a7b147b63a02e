"""What the loop itself costs: wall time outside of update, policy and simulator.

    python benchmarks/loop.py [--steps 6000] [dreamer.py flags]

Runs dmc_walker_walk with the small preset, whose short updates let the loop count most,
for so many environment steps, evaluations, logs and checkpoints included, after a start
that does not count. The last line is one JSON object:

    total_s     of the steps
    update_s    in updates
    policy_s    in the policy, evaluation's too
    env_s       waiting for physics and rendering
    save_s      writing checkpoints
    overhead    the rest, as a share of the total: drawing batches, cutting and handing
                over episodes, metrics, videos, checkpoints
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import dreamer

FLAGS = ['--task', 'dmc_walker_walk', '--configs', 'small']
START = ['--prefill', '1000', '--pretrain', '10', '--steps', '2000']


class Clock:
    """Adds up the seconds that are spent in functions."""

    def __init__(self):
        self.seconds = {}

    def timed(self, name, function):
        """`function`, with its seconds under `name`."""
        self.seconds[name] = 0.0

        def call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return call


def measure(logdir, steps, flags):
    """The figures of the last line."""
    config, team, envs = dreamer.set_up(
        ['--logdir', str(logdir), *FLAGS, *START, *flags]
    )
    clock = Clock()
    try:
        run = dreamer.Run(config, envs[: config.envs], envs[config.envs :], team)
        run.agent.train = clock.timed('update', run.agent.train)
        run.policy = [clock.timed('policy', policy) for policy in run.policy]
        run.eval_policy = clock.timed('eval_policy', run.eval_policy)
        run.agent.openloop = clock.timed('openloop', run.agent.openloop)
        run.save = clock.timed('save', run.save)
        for i, env in enumerate(envs):
            env.result = clock.timed(f'env{i}', env.result)
        with run.progress:
            run.loop()
            run.config = dataclasses.replace(config, steps=run.step + steps)
            for name in clock.seconds:
                clock.seconds[name] = 0.0
            start = time.perf_counter()
            run.loop()
            total = time.perf_counter() - start
        run.logger.close()
    finally:
        for env in envs:
            env.close()
    spent = clock.seconds
    figures = dict(
        total_s=total,
        update_s=spent['update'] + spent['openloop'],
        policy_s=spent['policy'] + spent['eval_policy'],
        env_s=sum(value for name, value in spent.items() if name.startswith('env')),
    )
    figures['overhead'] = 1 - sum(list(figures.values())[1:]) / total
    return dict(figures, save_s=spent['save'])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument('--steps', type=int, default=6000, help='environment steps')
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(pathlib.Path(folder) / 'run', args.steps, flags)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
