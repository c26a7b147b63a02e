"""How cost grows: time and memory of an update over each size, memory over the replay.

    python benchmarks/growth.py [--out docs/growth.png]

Each measurement changes one of the paper's sizes. All take five minutes on two fast
cores. The last line is one JSON object. Each size has a list of [size, seconds, MB];
`replay` has [MB on disk, MB of memory, MB of memory with a limit of 100 MB].
"""

import functools
import json
import pathlib
import sys
import tempfile

import numpy as np
from matplotlib.figure import Figure

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

import configs  # noqa: E402
from benchmarks import data, run  # noqa: E402
from support.scores import drawing  # noqa: E402
from support.storage import replay  # noqa: E402
from support.system import command_line  # noqa: E402

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
    """Return seconds and peak MB of an update."""
    figures = run.last_line('train_step.py', '--repeats', str(repeats), *flags)
    return figures['update_s'], figures['peak_rss_mb']


def memory(counts=(10, 40, 70, 100), limit=1e8):
    """Return MB of a replay on disk, in memory, and in memory limited to `limit`."""
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
    """Draw the figures: seconds above, memory below, a column for each size."""
    picture = Figure((12, 4.6), layout='constrained')
    axes = picture.subplots(2, 5)
    for (top, below), (name, label) in zip(axes.T, NAMES.items(), strict=False):
        sizes, seconds, peaks = zip(*figures[name], strict=True)
        for ax, values in (top, seconds), (below, np.array(peaks) / 1000):
            ax.axvline(getattr(configs.Config, name), color='0.8', zorder=0)
            ax.plot(sizes, values, '.-', color=drawing.COLORS['dreamer'], lw=1.8)
            ax.set(xlim=(0, None), ylim=(0, 1.08 * max(values)))
        below.set_xlabel(label, fontsize=9)
    axes[0, 0].set_ylabel('time of an update [s]', fontsize=9)
    axes[1, 0].set_ylabel('peak memory [GB]', fontsize=9)
    disk, every, bounded = zip(*figures['replay'], strict=True)
    axes[0, 4].set_axis_off()
    ax = axes[1, 4]
    for values, method, label in (
        (every, 'dreamer', 'all in memory'),
        (bounded, 'no_value', '--replay_memory 1e8'),
    ):
        ax.plot(disk, values, '.-', color=drawing.COLORS[method], lw=1.8, label=label)
    ax.set(xlim=(0, None), ylim=(0, 1.08 * max(every)))
    ax.set_xlabel('replay on disk [MB]', fontsize=9)
    ax.set_ylabel('memory [MB]', fontsize=9)
    ax.legend(fontsize=8, frameon=False)
    for ax in axes.flat:
        drawing.plain(ax)
    picture.savefig(path, dpi=100)


def main():
    """Run the command line."""
    parser = command_line.Parser(prog='growth.py', description=__doc__.splitlines()[0])
    parser.add_argument(
        '--out',
        type=command_line.home,
        default=str(FOLDER.parent / 'docs' / 'growth.png'),
    )
    parser.add_argument(
        '--repeats', type=command_line.number(int, 1), default=3, help='timed updates'
    )
    with command_line.refusing('growth'):
        args = parser.parse_args()
    figures = {}
    for name, sizes in SIZES.items():
        figures[name], paper = [], getattr(configs.Config, name)
        for size in sizes:
            # All columns share the paper's sizes, which are measured once.
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
