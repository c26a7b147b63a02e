"""The command line of evaluate.py, which is read before TensorFlow is imported."""

import argparse
import pathlib

from support.system import command_line
from support.system.command_line import UserError

VIDEOS = ('.gif', '.mp4')
STRIP = '.png'
# Steps that the model sees before it predicts.
CONTEXT = 5


def parse(argv):
    """The command line; raises UserError with one line on anything impossible."""
    args = _parser().parse_args(argv)
    if args.video and args.video == args.dream:
        raise UserError(f'--video and --dream are both {args.video}')
    if not pathlib.Path(args.logdir).is_dir():
        raise UserError(f'there is no folder {args.logdir}')
    return args


def _parser():
    parser = command_line.Parser(
        prog='evaluate.py',
        description='Evaluate a checkpoint of a run and show what the agent does and '
        'dreams.',
    )
    parser.add_argument(
        '--logdir',
        type=command_line.home,
        required=True,
        help='folder of the run, or of an agent that --export has written',
    )
    parser.add_argument(
        '--checkpoint',
        type=command_line.number(int, 1),
        metavar='N',
        help='number of the checkpoint (default: the newest that is whole)',
    )
    parser.add_argument(
        '--episodes',
        type=command_line.number(int, 1, ' from {} on'),
        default=10,
        help='(default: 10)',
    )
    parser.add_argument(
        '--seed',
        type=command_line.number(int, 0),
        default=0,
        help='of the episodes (default: 0)',
    )
    parser.add_argument(
        '--verbose',
        nargs='?',
        const='true',
        default='false',
        choices=('true', 'false'),
        help="print TensorFlow's and the simulators' own messages",
    )
    _add_outputs(parser)
    return parser


def _add_outputs(parser):
    """Add the flags that write something."""
    parser.add_argument(
        '--video',
        type=_output_file(*VIDEOS),
        metavar='FILE',
        help='where to write the first episode, a .gif or .mp4 file',
    )
    parser.add_argument(
        '--dream',
        type=_output_file(*VIDEOS, STRIP),
        metavar='FILE',
        help='where to write '
        f'parts of the first episode of {CONTEXT} steps or more beside '
        f'predictions of them from {CONTEXT} images and the actions, a '
        f'.gif or .mp4 file; a {STRIP} file is a strip of ten images above their '
        'predictions, as figure 5 of the paper',
    )
    parser.add_argument(
        '--export',
        type=_new_path,
        metavar='FOLDER',
        help='where to write the agent without its run: weights, config.json and, in '
        'origin.json, what it has just scored',
    )


def _output_file(*suffixes):
    """A reader of names of files that are to be written."""

    def read(text):
        if pathlib.Path(text).suffix not in suffixes:
            raise argparse.ArgumentTypeError(
                f"'{text}' does not end in {' or '.join(suffixes)}"
            )
        return _new_path(text)

    return read


def _new_path(text):
    """The name of what is to be written, where nothing is yet."""
    path = command_line.home_path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f'{text} exists; choose another name')
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f'there is no folder {path.parent}')
    return path
