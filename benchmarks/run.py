"""All figures that Dreamer's speed is judged by, with their targets.

    make bench                            three runs of everything, about half an hour
    python benchmarks/run.py --runs 1

Prints what each run measures, then a table of medians; the last line is a JSON object
with them. The targets are for 2 CPU cores and float32.
"""

import argparse
import json
import operator
import pathlib
import statistics
import subprocess
import sys

FOLDER = pathlib.Path(__file__).resolve().parent

# Name of each part of a run, and its command.
PARTS = dict(
    train_step=('train_step.py', '--repeats', '5'),
    plain=('train_step.py', '--repeats', '2', '--plain_allocator'),
    data=('data.py',),
    acting=('acting.py', '--repeats', '1'),
    loop=('loop.py',),
)

# What is judged, its figure, the target, and the 2020 code on the same kind of machine.
TARGETS = [
    ('update / floor of its arithmetic', 'train_step.ratio', '<=', 1.25, '6.0'),
    ('policy call, 1 environment [ms]', 'train_step.policy_ms', '<=', 1.0, '2.0'),
    (
        'policy call, 16 environments [ms]',
        'train_step.policy_16_ms',
        '<=',
        'train_step.policy_16_bound_ms',
        '10.7 (encoder)',
    ),
    ('construction and tracing [s]', 'train_step.build_s', '<=', 10, 'over 20'),
    ('peak memory [MB]', 'train_step.peak_rss_mb', '<=', 4000, '4900'),
    ('the same, plain allocator [MB]', 'plain.peak_rss_mb', '<=', 3000, ''),
    ('kernels that a GPU would start', 'train_step.launches', '<=', 7000, ''),
    ('the same in float16', 'train_step.launches_16', '<=', 7000, ''),
    ('batches from memory [1/s]', 'data.batches_per_s', '>=', 20, ''),
    ('batches from disk / from memory', 'data.disk_share', '>=', 0.5, ''),
    ('handing over an episode [ms]', 'data.add_ms', '<=', 20, '520'),
    ('walker in a worker / bare', 'acting.worker_share', '>=', 0.9, ''),
    ('Atari, 2 workers / 1', 'acting.atari_gain', '>=', 1.7, ''),
    ('loop overhead, share of the time', 'loop.overhead', '<=', 0.03, ''),
]


def last_line(script, *words):
    """The figures that a script of this folder ends with."""
    output = subprocess.run(
        [sys.executable, FOLDER / script, *words],
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return json.loads(output.splitlines()[-1])


def measure(parts):
    """One run of each part; returns figures by PART.NAME."""
    figures = {}
    for name in parts:
        part = last_line(*PARTS[name])
        print(f'{name}: {json.dumps(part)}', flush=True)
        figures.update({f'{name}.{key}': value for key, value in part.items()})
    return figures


def table(figures):
    """Lines of a Markdown table of what `figures` have."""
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
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=3, help='medians are over these')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    runs = [measure(args.parts) for _ in range(args.runs)]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(*table(medians), sep='\n')
    print(json.dumps(medians))


if __name__ == '__main__':
    main()
