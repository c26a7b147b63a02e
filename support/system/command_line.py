"""What the command lines of all programs share: one parser, readers of words, flags
that are the fields of a dataclass, and errors of one line.
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import os
import pathlib
import re
import sys


class UserError(ValueError):
    """A mistake that the user can mend. The message is one line for them."""


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError where argparse prints the usage and exits.

    Flags cannot be abbreviated: a new flag must not change what an old command means.
    """

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        raise UserError(message)

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split('=')[0]
            names = re.findall(r'--\w+', self.format_usage())
            close = difflib.get_close_matches(word, names, 3, 0.5)
            hint = f'did you mean {" or ".join(close)}? ' if close else ''
            raise UserError(
                f"unknown argument '{unknown[0]}'; {hint}--help lists all flags"
            )
        return args


# Readers of words. Argparse makes one line of their ArgumentTypeError.


def home(text):
    """Read a path. A leading `~` or `~NAME` is a home folder, also behind `=`, where
    shells do not replace it.

    The path is absolute: a simulator in this process may change the current folder.
    """
    path = os.path.expanduser(text)
    if path.startswith('~'):
        raise argparse.ArgumentTypeError(
            f"'{text}' begins with the home of nobody here; a folder of that name is "
            f'./{text}'
        )
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is relative to the current folder, which is gone ({error})"
        ) from None


def home_path(text):
    """Read a path as `home` does, and return it as a `pathlib.Path`."""
    return pathlib.Path(home(text))


def number(kind, minimum=-math.inf, rule=' of at least {}'):
    """Return a reader of numbers.

    Args:
      kind: int for whole numbers, which may be written as 1e6; float for finite ones.
      minimum: the smallest number that is accepted.
      rule: what the message says after "is not a number"; {} is the minimum.
    """

    def read(text):
        try:
            value = float(text)
            if not max(minimum, -sys.float_info.max) <= value < math.inf:
                raise ValueError
            if kind is float:
                return value
            if value != int(value):
                raise ValueError
            # Not every whole number is a float.
            return int(text) if text.lstrip('+-').isdigit() else int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"'{text}' is not a {'whole ' * (kind is int)}number"
                f'{rule.format(minimum)}'
            ) from None

    return read


def boolean(text):
    """Read true or false."""
    if text.lower() not in ('true', 'false'):
        raise argparse.ArgumentTypeError(f"'{text}' is not true or false")
    return text.lower() == 'true'


# Flags that are the fields of a dataclass.


def flag(
    default,
    help,
    choices=None,
    minimum=None,
    maximum=None,
    above=None,
    path=False,
    group=None,
):
    """Return a field of a dataclass that is a flag of a command line.

    Args:
      default: the value without the flag.
      help: the text of `--help`.
      choices: the possible values; None allows all.
      minimum, maximum: the smallest and the largest possible number.
      above: a number that the value must exceed.
      path: whether the value is a path, for which an empty word means none.
      group: title in `--help` of the group that begins with this flag.
    """
    rules = dict(choices=choices, minimum=minimum, maximum=maximum, above=above)
    return dataclasses.field(
        default=default, metadata=dict(rules, help=help, path=path, group=group)
    )


def add_flags(parser, kind):
    """Add a flag to a parser for every field of the dataclass `kind`; `flag` has made
    the fields, and the first one begins a group.
    """
    for field in dataclasses.fields(kind):
        if field.metadata['group']:
            group = parser.add_argument_group(field.metadata['group'])
        choices = field.metadata['choices']
        text = field.metadata['help'].replace('%', '%%')
        group.add_argument(
            f'--{field.name}',
            type=_reader(field),
            **_bare(field),
            metavar=('|'.join(choices) if choices else field.type.__name__.upper()),
            help=f'{text} (default: {field.default})',
        )


def _reader(field):
    """Return the function that turns a word into the type of `field`."""
    if field.metadata['path']:
        return lambda text: home(text) if text else text
    return {
        bool: boolean,
        # `check_rules` knows the minimum of each flag.
        int: number(int, rule=', such as 1000 or 1e3'),
        float: number(float, rule=' that is finite'),
        str: str,
    }[field.type]


def _bare(field):
    """Return argparse's arguments for flags that may come without a word, which then
    means true.
    """
    if field.type is bool:
        return dict(nargs='?', const=True)
    choices = field.metadata['choices'] or ()
    return dict(nargs='?', const='true') if 'true' in choices else {}


def check_rules(values):
    """Raise UserError if a field of `values`, made by `flag`, breaks a rule."""
    for field in dataclasses.fields(values):
        value, rules = getattr(values, field.name), field.metadata
        if rules['choices'] and value not in rules['choices']:
            raise UserError(
                f"--{field.name} is '{value}'; possible: {', '.join(rules['choices'])}"
            )
        if rules['minimum'] is not None and value < rules['minimum']:
            raise UserError(
                f'--{field.name} is {value}; it must be at least {rules["minimum"]}'
            )
        if rules['maximum'] is not None and value > rules['maximum']:
            raise UserError(
                f'--{field.name} is {value}; it must be at most {rules["maximum"]}'
            )
        if rules['above'] is not None and value <= rules['above']:
            raise UserError(
                f'--{field.name} is {value}; it must be above {rules["above"]}'
            )


# Errors and warnings.


def print_error(message, program, kind='error'):
    """Print an error, or another kind of message, as one line on stderr. Of a
    simulator's traceback, print only the last line.
    """
    lines = str(message).strip().splitlines()
    if any(line.startswith('Traceback (most recent') for line in lines):
        lines = lines[-1:]
    line = ' '.join(map(str.strip, lines))
    print(f'{program}: {kind}: {line}', file=sys.stderr)


def warn(message, program='dreamer'):
    """Print a warning as one line on stderr."""
    print_error(message, program, 'warning')


def fail(message, program='dreamer'):
    """End the program with one line on stderr and exit code 2."""
    print_error(message, program)
    raise SystemExit(2)


@contextlib.contextmanager
def refusing(program):
    """End the program as `fail` does if the block raises UserError."""
    try:
        yield
    except UserError as error:
        fail(error, program)
