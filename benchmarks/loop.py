"""The overhead of the loop: wall time outside of update, policy and simulator.

    python benchmarks/loop.py [--steps 6000] [dreamer.py flags]

Runs dmc_walker_walk with the small preset, because short updates make the overhead a
larger share. The time includes evaluations, logs and checkpoints, but not the first
steps. A profiler slows Python down, so that the overhead is an upper estimate. The last
line is one JSON object:

    total_s     time of the measured steps
    update_s    time in updates
    policy_s    time in the policy, in evaluations too
    env_s       time of waiting for physics and rendering
    save_s      time of writing checkpoints
    overhead    rest / total: drawing batches, cutting and adding episodes, metrics,
                videos, checkpoints
"""

import json
import pathlib
import pstats
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from support.system import command_line  # noqa: E402

DREAMER = ROOT / 'dreamer.py'
FLAGS = ['--task', 'dmc_walker_walk', '--configs', 'small']
START, PREFILL = 2000, ['--prefill', '1000', '--pretrain', '10']
# File and name of the function that each figure times, its calls included.
FUNCTIONS = dict(
    total_s=('dreamer.py', 'loop'),
    update_s=('polymorphic_function.py', '__call__'),
    policy_s=('agent.py', '__call__'),
    env_s=('workers.py', 'result'),
    save_s=('saving.py', 'save'),
)


def measure(folder, steps, flags):
    """Return the figures of the last line."""
    run = [str(DREAMER), '--logdir', str(folder / 'run'), *FLAGS, *PREFILL, *flags]
    subprocess.run([sys.executable, *run, '--steps', str(START)], check=True)
    profile = folder / 'profile'
    subprocess.run(
        [sys.executable, '-m', 'cProfile', '-o', profile, *run]
        + ['--steps', str(START + steps)],
        check=True,
    )
    figures = dict.fromkeys(FUNCTIONS, 0.0)
    for (path, _, function), (*_, seconds, _) in pstats.Stats(
        str(profile)
    ).stats.items():
        for name, place in FUNCTIONS.items():
            if (pathlib.Path(path).name, function) == place:
                figures[name] += seconds
    known = figures['update_s'] + figures['policy_s'] + figures['env_s']
    return dict(figures, overhead=1 - known / figures['total_s'])


def main():
    """Run the command line."""
    parser = command_line.Parser(prog='loop.py', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--steps',
        type=command_line.number(int, 1),
        default=6000,
        help='environment steps',
    )
    with command_line.refusing('loop'):
        args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(pathlib.Path(folder), args.steps, flags)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
