"""All figures of Dreamer's speed, with their targets.

    make bench                            three runs of everything, about half an hour
    python benchmarks/run.py --runs 1

Prints the figures of each run, then a table of medians. The last line is a JSON object
with the medians. Targets are for 2 CPU cores and float32 unless a row says otherwise.
Small networks are `SMALL`, on one core.
"""

import json
import operator
import os
import pathlib
import statistics
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from support.system import command_line  # noqa: E402

FLOAT32, BFLOAT16 = ('--precision', '32'), ('--precision', 'bfloat16')
SMALL = '--cnn_depth', '8', '--num_units', '128'
# Name of each part of a run, and its command.
PARTS = dict(
    train_step=('train_step.py', '--repeats', '5', *FLOAT32),
    bfloat16=('train_step.py', '--repeats', '5', *BFLOAT16),
    small=('train_step.py', '--repeats', '5', *SMALL, *FLOAT32),
    small_bfloat16=('train_step.py', '--repeats', '5', *SMALL, *BFLOAT16),
    plain=('train_step.py', '--repeats', '2', '--plain_allocator', *FLOAT32),
    data=('data.py',),
    acting=('acting.py', '--repeats', '1'),
    loop=('loop.py',),
)

ONE_CORE = 'small', 'small_bfloat16'
# Parts whose updates are compared with another part's.
SHARES = dict(bfloat16='train_step', small_bfloat16='small')

# Label, figure, target, and the 2020 code's figure where the machine matters little
# (its ratio is from a processor with AVX-512).
TARGETS = [
    ('update / floor of its arithmetic', 'train_step.ratio', '<=', 1.25, '2.15'),
    ('policy call, 1 environment [ms]', 'train_step.policy_ms', '<=', 1.0, ''),
    (
        'policy call, 16 environments [ms]',
        'train_step.policy_16_ms',
        '<=',
        'train_step.policy_16_bound_ms',
        '',
    ),
    ('construction and tracing [s]', 'train_step.build_s', '<=', 10, 'over 20'),
    ('peak memory [MB]', 'train_step.peak_rss_mb', '<=', 4000, '4900'),
    ('the same, plain allocator [MB]', 'plain.peak_rss_mb', '<=', 3000, ''),
    ('bfloat16: update / float32', 'bfloat16.share', '<=', 0.52, ''),
    ('bfloat16: policy call, 1 environment [ms]', 'bfloat16.policy_ms', '<=', 1.0, ''),
    ('small networks: update / floor', 'small.ratio', '<=', 1.6, ''),
    (
        'small networks, bfloat16: update / float32',
        'small_bfloat16.share',
        '<=',
        0.65,
        '',
    ),
    ('kernels that a GPU would start', 'train_step.launches', '<=', 6500, ''),
    ('the same in float16', 'train_step.launches_16', '<=', 6500, ''),
    ('copies that it waits for', 'train_step.launches_to_host', '<=', 5, ''),
    ('the same in float16', 'train_step.launches_16_to_host', '<=', 5, ''),
    ('batches from memory [1/s]', 'data.batches_per_s', '>=', 50, ''),
    ('the same by processor time', 'data.core_batches_per_s', '>=', 50, ''),
    ('batches from disk / from memory', 'data.disk_share', '>=', 0.5, ''),
    ('handing over an episode [ms]', 'data.add_ms', '<=', 20, ''),
    ('walker in a worker / bare', 'acting.worker_share', '>=', 0.9, ''),
    ('Atari, 2 workers / 1', 'acting.atari_gain', '>=', 1.7, ''),
    ('loop overhead, share of the time', 'loop.overhead', '<=', 0.03, ''),
]


def last_line(script, *words, cores=None):
    """Run a script of this folder on `cores` or on all; return its last line."""
    output = subprocess.run(
        [sys.executable, FOLDER / script, *words],
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        preexec_fn=cores and (lambda: os.sched_setaffinity(0, cores)),
    ).stdout
    return json.loads(output.splitlines()[-1])


def measure(parts):
    """Run each part once; return the figures by PART.NAME."""
    figures = {}
    for name in parts:
        one = {min(os.sched_getaffinity(0))} if name in ONE_CORE else None
        part = last_line(*PARTS[name], cores=one)
        print(f'{name}: {json.dumps(part)}', flush=True)
        figures.update({f'{name}.{key}': value for key, value in part.items()})
    for name, other in SHARES.items():
        if {name, other} <= set(parts):
            figures[f'{name}.share'] = (
                figures[f'{name}.update_s'] / figures[f'{other}.update_s']
            )
    return figures


def table(figures):
    """Return the lines of a Markdown table of `figures`."""
    rows = [('what', 'measured', 'target', '', '2020 code'), ('---',) * 5]
    for what, name, sign, target, before in TARGETS:
        if name in figures:
            target = figures.get(target, target)
            met = {'<=': operator.le, '>=': operator.ge}[sign](figures[name], target)
            rows.append(
                (
                    what,
                    f'{figures[name]:.3g}',
                    f'{sign} {target:.3g}',
                    'met' if met else 'missed',
                    before,
                )
            )
    return ['| ' + ' | '.join(row) + ' |' for row in rows]


def main():
    """Run the command line."""
    parser = command_line.Parser(prog='run.py', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--runs',
        type=command_line.number(int, 1),
        default=3,
        help='medians are over these',
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    with command_line.refusing('run'):
        args = parser.parse_args()
    runs = [measure(args.parts) for _ in range(args.runs)]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(*table(medians), sep='\n')
    print(json.dumps(medians))


if __name__ == '__main__':
    main()
