"""How cost grows: time and memory of an update over each size, memory over the replay.

    python benchmarks/growth.py [--out docs/growth.png]

From the paper's sizes one is changed at a time. Takes five minutes on two fast cores.
The last line is one JSON object: by size, pairs of it with seconds and with MB;
`replay`, MB of a replay in memory and of one bounded to 100 MB by the MB on disk.
"""

import functools
import json
import pathlib
import sys
import tempfile

import matplotlib
import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import configs  # noqa: E402
from benchmarks import data, run  # noqa: E402
from support.storage import replay  # noqa: E402

SIZES = dict(
    batch_size=(10, 25, 50, 75),
    batch_length=(10, 25, 50, 75),
    horizon=(5, 15, 30),
    cnn_depth=(8, 16, 32, 48),
)
NAMES = dict(
    batch_size='sequences in a batch',
    batch_length='steps in a sequence',
    horizon='imagined steps',
    cnn_depth='channels of the first convolution',
)


@functools.cache
def update(repeats, *flags):
    """Seconds and peak MB of an update."""
    figures = run.last_line('train_step.py', '--repeats', str(repeats), *flags)
    return figures['update_s'], figures['peak_rss_mb']


def memory(counts=(10, 40, 70, 100), limit=1e8):
    """MB that a replay adds, all in memory and bounded, by the MB on disk."""
    result = []
    episode = dict(
        image=np.zeros((data.ROWS, 64, 64, 3), np.uint8),
        action=np.zeros((data.ROWS, 6)),
        reward=np.zeros(data.ROWS),
        discount=np.ones(data.ROWS),
    )
    for bound in 2**40, limit:
        with tempfile.TemporaryDirectory() as folder:
            filled = replay.Replay(folder, length=50, memory=bound)
            before = data.resident()
            for count in range(1, max(counts) + 1):
                filled.add(episode)
                if count in counts:
                    filled.flush()
                    filled.sample(50)
                    disk = sum(
                        path.stat().st_size for path in pathlib.Path(folder).iterdir()
                    )
                    result.append((disk / 1e6, data.resident() - before))
    half = len(counts)
    return [
        (disk, every, bounded)
        for (disk, every), (_, bounded) in zip(
            result[:half], result[half:], strict=True
        )
    ]


def draw(figures, path):
    """The figures as a picture."""
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 5, figsize=(16, 3.2), layout='constrained')
    for ax, (name, label) in zip(axes, NAMES.items(), strict=False):
        sizes, seconds, peaks = zip(*figures[name], strict=True)
        ax.plot(sizes, seconds, 'o-', color='tab:blue')
        ax.set(xlabel=label, ylim=(0, None), xlim=(0, None))
        ax.axvline(getattr(configs.Config, name), color='0.8', zorder=0)
        right = ax.twinx()
        right.plot(sizes, np.array(peaks) / 1000, 's--', color='tab:orange')
        right.set(ylim=(0, None))
    axes[0].set_ylabel('update [s]', color='tab:blue')
    right.set_ylabel('peak memory [GB]', color='tab:orange')
    disk, every, bounded = zip(*figures['replay'], strict=True)
    axes[4].plot(disk, every, 's--', color='tab:orange', label='all in memory')
    axes[4].plot(disk, bounded, 's:', color='tab:red', label='--replay_memory 1e8')
    axes[4].set(
        xlabel='replay on disk [MB]', ylabel='memory [MB]', ylim=(0, 1.4 * max(every))
    )
    axes[4].legend(loc='upper left')
    figure.savefig(path, dpi=100)


def main():
    """The command line."""
    parser = configs.Parser(prog='growth.py', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out', type=configs.home, default=str(FOLDER.parent / 'docs' / 'growth.png')
    )
    parser.add_argument(
        '--repeats', type=configs.number(int, 1), default=3, help='timed updates'
    )
    with configs.refusing('growth'):
        args = parser.parse_args()
    figures = {}
    for name, sizes in SIZES.items():
        figures[name], paper = [], getattr(configs.Config, name)
        for size in sizes:
            # The paper's own sizes, which all have in common, are measured once.
            flags = () if size == paper else (f'--{name}', str(size))
            figures[name].append((size, *update(args.repeats, *flags)))
            print(
                f'{name} {size}: {figures[name][-1][1]:.2f} s, '
                f'{figures[name][-1][2]:.0f} MB',
                flush=True,
            )
    figures['replay'] = memory()
    draw(figures, args.out)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
