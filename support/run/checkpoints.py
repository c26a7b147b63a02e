"""What a run needs to be resumed: checkpoints that are whole or absent, and a lock.

A checkpoint is the file `ckpt-N.index` with its data beside it. Both are written under
other names first, and `ckpt-N.index` gets its name last. So a file of that name was
whole once. TensorFlow's checksums show if it was damaged later.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile

import tensorflow as tf

from support.run import startup
from support.system import atomic, faults
from support.system.command_line import UserError

DATA, INDEX = '.data-00000-of-00001', '.index'
STATE = 'state/.ATTRIBUTES/VARIABLE_VALUE'
# Python numbers of the agent, which are variables in a checkpoint.
COUNTERS = 'gradient_step', 'env_step', 'train_start'
NAME = re.compile(r'(ckpt|damaged)-(\d+)\.(index|data.*)')


class Lock:
    """Hold a run's folder until `release`. It is made if it does not exist.

    The system releases it when the process ends, also after `kill -9`.

    Args:
      folder: of the run.

    Raises:
      UserError: another process holds it; the message says which.
      OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / 'lock', 'a+')
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or 'another process'
            raise UserError(
                f'{folder} is in use by {holder}; stop that run or choose another '
                '--logdir'
            ) from None
        except OSError as error:
            print(
                f'dreamer: warning: {folder} cannot be locked ({error.strerror}); '
                'do not start a second run there',
                file=sys.stderr,
            )
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        self._file.flush()
        # Unfinished files of a process that was killed.
        for name in 'episodes', 'checkpoints', 'videos':
            atomic.clean(folder / name)
        atomic.clean(folder, 'config.json')

    def release(self):
        """Let other processes, or this one, have the folder."""
        self._file.close()


class Checkpoints:
    """Save and restore the agent and a state.

    Args:
      folder: of the checkpoints.
      agent: `agent.Dreamer`.
      keep: how many of the newest stay, from 1 on.

    Attributes:
      restored: number of the checkpoint that was restored; 0 for none.
    """

    def __init__(self, folder, agent, keep=2):
        self.restored = 0
        self._keep = keep
        self._folder = pathlib.Path(folder)
        self._state = tf.Variable('', dtype=tf.string)
        self._checkpoint = tf.train.Checkpoint(agent=agent, state=self._state)

    def save(self, state):
        """Write a checkpoint with `state`, a dict that JSON can hold.

        Raises:
          OSError: it could not be written. Older checkpoints are as before.
        """
        self._folder.mkdir(exist_ok=True)
        # No number is used twice, so that no file is overwritten.
        names = map(NAME.fullmatch, os.listdir(self._folder))
        number = 1 + max((int(name[2]) for name in names if name), default=0)
        unfinished = self._folder / 'unfinished'
        unfinished.mkdir(exist_ok=True)
        try:
            self.write(unfinished / 'ckpt', state)
            faults.reach('written')
            for suffix in DATA, INDEX:
                atomic.rename(
                    unfinished / f'ckpt{suffix}',
                    self._folder / f'ckpt-{number}{suffix}',
                )
                faults.reach('checkpoint')
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        for old in self.numbers()[: -self._keep]:
            for path in (self._folder / f'ckpt-{old}{s}' for s in (INDEX, DATA)):
                path.unlink(missing_ok=True)
        self._announce(number)
        faults.reach('saved')

    def write(self, prefix, state=None):
        """Write the files of a checkpoint, `prefix`.index and so on, to the disk.

        Raises:
          OSError: they could not be written.
        """
        self._state.assign(json.dumps(state or {}))
        with startup.disk_errors(prefix), plain(prefix) as name:
            with counting_in_variables(self._checkpoint.agent):
                self._checkpoint.write(name)
        for suffix in DATA, INDEX:
            with open(f'{prefix}{suffix}', 'rb') as file:
                os.fsync(file.fileno())

    def restore(self):
        """Load the newest whole checkpoint. Damaged ones are named and renamed.

        Returns:
          its state; an empty dict if there are no checkpoints.

        Raises:
          UserError: all are damaged, or it is of another network.
        """
        damaged = []
        for path, state in find_whole(self._folder, lambda *one: damaged.append(one)):
            self.load(number_of(path))
            for other, reason in damaged:
                self._set_aside(other, reason, path.name)
            self._announce(self.restored)
            return state
        if damaged:
            raise UserError(
                f'no checkpoint in {self._folder} is whole ({damaged[0][1]}); move the '
                'folder away to learn anew from the episodes'
            )
        return {}

    def load(self, number):
        """Load the checkpoint of this number, which is whole.

        Raises:
          UserError: it is of another network.
        """
        load_into(self._checkpoint, self._folder / f'ckpt-{number}')
        self.restored = number

    def _set_aside(self, path, reason, good):
        kept = f'damaged-{number_of(path)}'
        for suffix in INDEX, DATA:
            if os.path.exists(f'{path}{suffix}'):
                atomic.rename(f'{path}{suffix}', self._folder / f'{kept}{suffix}')
        print(
            f'dreamer: warning: the checkpoint {path} is damaged ({reason}); it is '
            f'kept as {kept}, and the run continues from {good}',
            file=sys.stderr,
        )

    def numbers(self):
        """Numbers of the checkpoints, ascending."""
        return list(map(number_of, find(self._folder)))

    def _announce(self, newest):
        """List the checkpoints in the file that TensorFlow's tools read.

        The folder may have vanished since the checkpoint `newest` was written or read.
        """
        lines = [
            f'model_checkpoint_path: "ckpt-{newest}"',
            *(f'all_model_checkpoint_paths: "ckpt-{n}"' for n in self.numbers()),
        ]
        text = '\n'.join(lines) + '\n'
        atomic.write(self._folder / 'checkpoint', text.encode())


@contextlib.contextmanager
def plain(prefix):
    """Give a checkpoint a name that TensorFlow can read, whatever its folder's name.

    TensorFlow takes the prefix as a pattern, in which brackets and backslashes have a
    meaning, and reads only UTF-8. Other folders get a link with a plain name while the
    block runs.

    Args:
      prefix: path without `.index`.

    Yields:
      a prefix, for reading and writing.
    """
    if is_plain(prefix):
        yield str(prefix)
        return
    # The folder of temporary files may have such a name too.
    places = [place for place in (tempfile.gettempdir(), '/tmp') if is_plain(place)]
    with tempfile.TemporaryDirectory(dir=places[0]) as folder:
        link = pathlib.Path(folder, 'link')
        link.symlink_to(pathlib.Path(prefix).parent.absolute())
        yield str(link / pathlib.Path(prefix).name)


def is_plain(path):
    """Return whether TensorFlow can read a path under its name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r'[][\\]', str(path))


def find(folder):
    """Return the paths `ckpt-N`, without a suffix, of the checkpoints in a folder.

    They are in order of N. Damaged checkpoints that have an index are among them.
    """
    paths = [path.with_suffix('') for path in pathlib.Path(folder).glob('ckpt-*.index')]
    return sorted(
        (path for path in paths if re.fullmatch(r'ckpt-\d+', path.name)), key=number_of
    )


def number_of(path):
    """Return the N of `ckpt-N`."""
    return int(path.name.removeprefix('ckpt-'))


def find_whole(folder, pass_over, number=None):
    """Read the checkpoints in a folder, the newest first. Nothing is changed there.

    Args:
      folder: of the checkpoints.
      pass_over: called with the path of each damaged checkpoint, and a reason of one
        line.
      number: of the only checkpoint to read; None for all.

    Yields:
      path and state of each whole checkpoint.
    """
    for path in reversed(find(folder)):
        if number not in (None, number_of(path)):
            continue
        try:
            state = read(path)
        except Exception as error:  # Damage has many kinds.
            reason = ' '.join(str(error).split())[:200] or type(error).__name__
            pass_over(path, reason)
            continue
        yield path, state


@contextlib.contextmanager
def counting_in_variables(agent):
    """Make an agent's counters variables while the block runs, as a checkpoint has
    them.
    """
    with tf.device('CPU:0'):
        for name in COUNTERS:
            setattr(agent, name, tf.Variable(getattr(agent, name), dtype=tf.int64))
    try:
        yield
    finally:
        for name in COUNTERS:
            number = int(getattr(agent, name))
            delattr(agent, name)  # Otherwise TensorFlow keeps tracking the variable.
            setattr(agent, name, number)


def load_into(checkpoint, path):
    """Load a whole checkpoint into a `tf.train.Checkpoint` that has an `agent`.

    Raises:
      UserError: it is of another network.
    """
    try:
        with plain(path) as name, counting_in_variables(checkpoint.agent):
            # The checkpoint also holds what only a run needs.
            status = checkpoint.read(name).expect_partial()
            status.assert_existing_objects_matched()
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        raise UserError(
            f'{path} is of another network or version ({str(error).splitlines()[0]})'
        ) from None


def load_weights(agent, path):
    """Load networks and counters from a whole checkpoint, of a run or `write_weights`.

    Raises:
      UserError: it is of another network.
    """
    weights = _weights_of(agent)
    load_into(tf.train.Checkpoint(agent=weights), path)
    for name in COUNTERS:
        setattr(agent, name, getattr(weights, name))


def write_weights(agent, prefix):
    """Write networks and counters as the checkpoint `prefix`.index and so on.

    Raises:
      OSError: it could not be written.
    """
    weights = _weights_of(agent)
    with startup.disk_errors(prefix), plain(prefix) as name:
        with counting_in_variables(weights):
            tf.train.Checkpoint(agent=weights).write(name)


def _weights_of(agent):
    """Networks and counters, by the names that an agent has for them in checkpoints:
    of the networks the optimisers know all variables.
    """
    weights = tf.Module()
    weights.optimizers = {
        name: optimizer.without_averages()
        for name, optimizer in agent.optimizers.items()
    }
    for name in COUNTERS:
        setattr(weights, name, getattr(agent, name))
    return weights


def read(path):
    """Read all of a checkpoint, which checks its checksums; return its state.

    Raises:
      Exception: it is damaged. TensorFlow has many kinds.
    """
    with plain(path) as name:
        reader = tf.train.load_checkpoint(name)
        kinds = reader.get_variable_to_dtype_map()
        claimed = sum(
            math.prod(shape) * kinds[key].size
            for key, shape in reader.get_variable_to_shape_map().items()
        )
        if claimed > os.path.getsize(f'{path}{DATA}'):
            raise ValueError(f'it claims {claimed} bytes of data')
        for key in kinds:
            reader.get_tensor(key)
        return json.loads(reader.get_tensor(STATE)) if reader.has_tensor(STATE) else {}
