"""The one way to write a file: whole or not at all, also if the power fails.

A file that is being written has a hidden name that ends in `.tmp`, so that nobody takes
a part for the result. It gets its final name when all of it is on the disk. The process
may be killed at any moment. Several processes may write the same file: the last one to
finish wins.
"""

import contextlib
import os
import secrets


@contextlib.contextmanager
def writing(path):
    """Open a file that gets the name `path` at the end of the block.

    Args:
      path: `pathlib.Path` in a folder that exists; a file there is replaced.

    Yields:
      the file, open for bytes. An error in the block leaves `path` as it was.

    Raises:
      OSError: it could not be written.
    """
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    try:
        with open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path, data):
    """Write bytes as the file `path`; see `writing`."""
    with writing(path) as file:
        file.write(data)


def rename(path, target):
    """Give a file its final name, which a loss of power does not undo."""
    os.replace(path, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # Not on every network's file system.
    finally:
        os.close(folder)


def clean(folder, name='*'):
    """Delete the parts that killed processes have left of files whose names match the
    pattern `name`. Nobody may be writing such files in the folder.
    """
    for path in folder.glob(f'.{name}.*tmp'):
        path.unlink(missing_ok=True)
