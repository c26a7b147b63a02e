"""The file format of an episode: written whole or not at all, checked by each reader.

`{time}-{id}-{rows}.npz` is the format of the authors' 2020 code: arrays image uint8
[T, 64, 64, 3], action [T, A], reward [T] and discount [T]. Tasks with state vectors
have state [T, V] beside image or instead of it. The authors' files are float16 and
compressed, and have further keys; files of this program are not compressed.

Shapes: T rows (agent steps + 1), A action, V state vector.
"""

import dataclasses
import io
import math
import os
import pathlib
import re
import struct
import zipfile

import numpy as np

from support.system import atomic, faults

IMAGE = (64, 64, 3)
KEYS = ('action', 'reward', 'discount')  # besides the observations
NAME = re.compile(r'\d{8}T\d{6}-\w+-(?P<rows>\d+)\.npz')
# Names that this program gives have the number of earlier files, and `Entry.origin`.
NUMBERED = re.compile(
    r'\d{8}T\d{6}-(?P<order>[0-9a-f]{8})e(?P<env>\d+)i(?P<index>\d+)s(?P<steps>\d+)'
    r'-\d+\.npz'
)
# The longest episode of any suite, 108,000 frames without action repeat, takes 1.3 GB.
# A header that claims more than this is refused before its data is read.
MAX_BYTES = 2**31
MAX_HEADER = 2**14  # Bytes of an array's header; NumPy allows 10,000.


@dataclasses.dataclass(frozen=True)
class Entry:
    """An episode on disk: path, rows T, action size A and state size V, which is 0
    where states are not observed.
    """

    path: pathlib.Path
    rows: int
    actions: int
    states: int = 0

    @property
    def origin(self):
        """Environment, its episode index, simulator steps; None for foreign files."""
        name = NUMBERED.fullmatch(self.path.name)
        return name and tuple(int(name[key]) for key in ('env', 'index', 'steps'))


def row_bytes(actions, states=0, observes=('image',)):
    """Return the bytes of a row: the observed uint8 image and float32 state, and
    float32 action, reward and discount.
    """
    image = math.prod(IMAGE) if 'image' in observes else 0
    return image + 4 * (states + actions) + 8


def check_headers(headers, observes=('image',)):
    """Check the arrays of an episode by their shapes and dtypes.

    Args:
      headers: dict of key to (shape, dtype).
      observes: 'image', 'state', or both: keys that an episode must have, beside
        `KEYS`.

    Returns:
      rows T, action size A, and state size V or 0 without observed states.

    Raises:
      ValueError: a key is missing, a shape or dtype does not fit, or the episode has
        no step or more than `MAX_BYTES`.
    """
    keys = (*observes, *KEYS)
    missing = [key for key in keys if key not in headers]
    if missing:
        raise ValueError(
            f'no {", ".join(missing)} in the episode{_vectors(headers, missing)}'
        )
    rows = headers['action'][0][:1]
    vectors = {key: headers[key][0][1:] for key in ('action', 'state') if key in keys}
    for key, size in vectors.items():
        if len(size) != 1 or size[0] < 1:
            name = 'V' if key == 'state' else 'A'
            raise ValueError(f'{key} has the shape {headers[key][0]}, not (T, {name})')
    for key in keys:
        shape, dtype = headers[key]
        expected = rows + (IMAGE if key == 'image' else vectors.get(key, ()))
        if shape != expected:
            raise ValueError(f'{key} has the shape {shape}, not {expected}')
        if dtype != np.uint8 if key == 'image' else dtype.kind not in 'fiu':
            raise ValueError(f'{key} has the dtype {dtype}')
    if rows[0] < 2:
        raise ValueError(f'{rows[0]} rows hold no step')
    # Bytes in the file or in memory, whichever is more.
    size = sum(
        math.prod(headers[key][0])
        * (1 if key == 'image' else max(4, headers[key][1].itemsize))
        for key in keys
    )
    if size > MAX_BYTES:
        raise ValueError(f'{rows[0]} rows need {size} bytes, more than {MAX_BYTES}')
    return rows[0], *vectors['action'], *vectors.get('state', (0,))


def _vectors(headers, missing):
    """Describe, for a message, the vectors of an episode without `state`."""
    found = [
        f'{key} ({shape[1]})'
        for key, (shape, dtype) in headers.items()
        if key != 'action' and len(shape) == 2 and dtype.kind in 'fiu'
    ]
    if 'state' not in missing or not found:
        return ''
    return f'; it has vectors of other names: {", ".join(found)}'


def decode(episode, observes=('image',)):
    """Return a copy of the arrays in the dtypes of a batch: uint8 and float32.

    Raises:
      ValueError: a number is not finite.
    """
    with np.errstate(over='ignore'):
        decoded = {
            key: np.array(episode[key], np.uint8 if key == 'image' else np.float32)
            for key in (*observes, *KEYS)
        }
    for key, array in decoded.items():
        if not np.isfinite(array).all():
            raise ValueError(f'{key} has values that are not finite')
    return decoded


def write(path, episode):
    """Write a file that is whole or absent, also when the process is killed.

    Without compression, files are 8 times faster to write and 7 times faster to read.
    """
    with atomic.writing(path) as file:
        np.savez(file, **episode)
        faults.reach('write')
    faults.reach('rename')


def inspect(path, observes=('image',)):
    """Return the `Entry` of a file from its headers, without reading the data.

    Raises:
      Exception: one of many kinds, if it is not a readable episode.
    """
    if not path.is_file():
        raise ValueError('it is not a file')  # Opening a pipe would never return.
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix('.npy') for name in archive.namelist()]
        needed = (*observes, *KEYS)
        if set(needed) <= set(names):
            names = needed
        headers = {key: read_header(archive, key) for key in names}
    rows, actions, states = check_headers(headers, observes)
    name = NAME.fullmatch(path.name)
    if not name:
        raise ValueError('its name is not {time}-{id}-{rows}.npz')
    if int(name['rows']) != rows:
        raise ValueError(f'its name says {name["rows"]} rows, it has {rows}')
    return Entry(path, rows, actions, states)


def read_header(archive, key):
    """Return shape and dtype of an array in a zip archive."""
    info = archive.getinfo(f'{key}.npy')
    with archive.open(info) as file:
        # A damaged header may claim any length.
        start = io.BytesIO(file.read(MAX_HEADER))
    shape, _, dtype = parse_header(start)
    size = start.tell() + math.prod(shape) * dtype.itemsize
    if info.file_size != size:
        raise ValueError(f'{key} has {info.file_size} bytes, its header says {size}')
    return shape, dtype


def parse_header(file):
    """Read an array's shape, whether it is in Fortran's order, and its dtype."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def identify(path):
    """Return numbers that change when a file is written to or replaced."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def find_arrays(path, observes=('image',)):
    """Return the offset, dtype and shape of a row for each array in a file; None for
    arrays that are compressed or in Fortran's order, whose rows cannot be read alone.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
        for key in (*observes, *KEYS):
            info = archive.getinfo(f'{key}.npy')
            if info.compress_type != zipfile.ZIP_STORED:
                return None
            # The data follows the local header, whose length zipfile does not tell.
            file.seek(info.header_offset + 26)
            file.seek(sum(struct.unpack('<HH', file.read(4))), os.SEEK_CUR)
            shape, fortran, dtype = parse_header(file)
            if fortran and len(shape) > 1:
                return None
            arrays[key] = file.tell(), dtype, shape[1:]
    return arrays


def read_rows(path, arrays, start, target):
    """Read rows of an episode, from `start` on, into the arrays of `target`.

    Args:
      arrays: from `find_arrays`.

    Raises:
      OSError, ValueError: the file does not have the rows.
    """
    with open(path, 'rb', buffering=0) as file:
        for key, (offset, dtype, shape) in arrays.items():
            array = target[key]
            rows = array if dtype == array.dtype else np.empty(array.shape, dtype)
            file.seek(offset + start * math.prod(shape) * dtype.itemsize)
            if file.readinto(rows) != rows.nbytes:
                raise ValueError(f'{key} ends too early')
            if rows is not array:
                array[...] = rows


def load(entry, observes=('image',)):
    """Return the decoded episode of an `Entry`.

    Raises:
      Exception: one of many kinds, if the file is damaged or has changed.
    """
    if inspect(entry.path, observes) != entry:
        raise ValueError('it has changed')
    episode = {}
    with zipfile.ZipFile(entry.path) as archive:
        for key in (*observes, *KEYS):
            with archive.open(f'{key}.npy') as file:
                episode[key] = np.lib.format.read_array(file, allow_pickle=False)
                # zipfile compares the checksum only at the end of the file.
                file.read(1)
    return decode(episode, observes)
