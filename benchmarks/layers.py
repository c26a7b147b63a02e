"""Time a whole update with one form of `support/learning/layers.py` replaced by Keras'
own layer, in turn with the update as it is.

    python benchmarks/layers.py                # --configs small, on one core
    python benchmarks/layers.py --paper        # the paper's sizes, on all cores

The last line is one JSON object: by form, the median update with Keras' layer divided
by the median update with ours. Above 1.04 the form earns its place.
"""

import contextlib
import json
import os
import pathlib
import statistics
import sys
import time
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

if '--paper' not in sys.argv:
    os.environ.update(TF_NUM_INTRAOP_THREADS='1', TF_NUM_INTEROP_THREADS='1')

from support.run import startup  # noqa: F401 (first: it imports TensorFlow without its chatter)

# isort: split
import keras
import numpy as np

import configs
from agent import Dreamer
from support.learning import layers
from support.system import command_line

ACTIONS = 6


class KerasGRUCell(keras.layers.GRUCell):
    """Keras' cell by the interface of ours."""

    state_dtype = 'float32'

    def call(self, inputs, state):
        return super().call(inputs, state)[0], None


# What replaces a form, by its name.
REPLACED = dict(
    Conv2D=keras.layers.Conv2D,
    WinogradConv2D=keras.layers.Conv2D,
    ProjectConv2DTranspose=keras.layers.Conv2DTranspose,
    SubPixelConv2DTranspose=keras.layers.Conv2DTranspose,
    GRUCell=KerasGRUCell,
)


def make(config, name=None):
    """Return a function that makes one update, traced with a form replaced."""
    patch = contextlib.nullcontext()
    if name:
        patch = mock.patch.object(layers, name, REPLACED[name])
    rows, random = (config.batch_size, config.batch_length), np.random.default_rng(0)
    with patch:
        agent = Dreamer(config, ACTIONS)
        batch = agent.on_device(
            dict(
                image=random.integers(0, 256, (*rows, 64, 64, 3), np.uint8),
                action=random.uniform(-1, 1, (*rows, ACTIONS)).astype(np.float32),
                reward=random.normal(size=rows).astype(np.float32),
                discount=np.ones(rows, np.float32),
                is_first=np.zeros(rows, bool),
            )
        )

        def update():
            return float(agent.train(batch)['model_loss'])

        update()
    return update


def seconds(update):
    """Return how long one update takes."""
    start = time.perf_counter()
    update()
    return time.perf_counter() - start


def main():
    """The command line."""
    parser = command_line.Parser(prog='layers.py', description=__doc__.splitlines()[0])
    parser.add_argument('--paper', action='store_true', help="at the paper's sizes")
    parser.add_argument(
        '--repeats', type=command_line.number(int, 1), default=9, help='timed updates'
    )
    parser.add_argument('--forms', nargs='+', choices=REPLACED, default=[*REPLACED])
    with command_line.refusing('layers'):
        args = parser.parse_args()
    words = [] if args.paper else ['--configs', 'small']
    config = configs.parse([*words, '--precision', '32'])
    ours, ratios = make(config), {}
    for name in args.forms:
        theirs = make(config, name)
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(args.repeats)]
        ratios[name] = statistics.median(y for _, y in pairs) / statistics.median(
            x for x, _ in pairs
        )
        print(f'{name}: {ratios[name]:.3f}', flush=True)
    print(json.dumps(ratios))


if __name__ == '__main__':
    main()
