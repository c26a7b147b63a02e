"""What the loop itself costs: wall time outside of update, policy and simulator.

    python benchmarks/loop.py [--steps 6000] [dreamer.py flags]

Runs dmc_walker_walk with the small preset, whose short updates let the loop count most,
for so many environment steps, evaluations, logs and checkpoints included, after a start
that does not count. A profiler watches, which makes Python itself slower, so that the
overhead is rather too large than too small. The last line is one JSON object:

    total_s     of the steps
    update_s    in updates
    policy_s    in the policy, evaluation's too
    env_s       waiting for physics and rendering
    save_s      writing checkpoints
    overhead    the rest, as a share of the total: drawing batches, cutting and handing
                over episodes, metrics, videos, checkpoints
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
# The function, by file and name, whose time each figure is, with all that it calls.
FUNCTIONS = dict(
    total_s=('dreamer.py', 'loop'),
    update_s=('polymorphic_function.py', '__call__'),
    policy_s=('agent.py', '__call__'),
    env_s=('workers.py', 'result'),
    save_s=('dreamer.py', 'save'),
)


def measure(folder, steps, flags):
    """The figures of the last line."""
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
    """The command line."""
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
