"""A folder for temporary files where the system has none that can be written."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile


def provide(program, words=None):
    """Put temporary files into the logdir if all usual folders are read-only, and
    delete them when this process ends. If nothing can be written, end the program with
    one line. Call this first: libraries look for a folder while they are imported.

    Args:
      program: its name, for the line.
      words: of the command line, in which `--logdir` or `--root` names the folder.
    """
    try:
        tempfile.gettempdir()
        return
    except FileNotFoundError:
        folder = pathlib.Path(_named(sys.argv[1:] if words is None else words))
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = tempfile.mkdtemp(prefix='tmp-', dir=folder.absolute())
    except OSError as error:
        print(
            f'{program}: error: no folder for temporary files can be written, not even '
            f'{folder} ({error.strerror}); set TMPDIR to one that can',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    # Processes that this one starts find it, too.
    tempfile.tempdir = os.environ['TMPDIR'] = path
    atexit.register(_delete, path, made, os.getpid())


def _named(words):
    """Return the folder that `--logdir` or `--root` names."""
    for number, word in enumerate(words):
        name, equals, value = word.partition('=')
        if name in ('--logdir', '--root'):
            following = words[number + 1 : number + 2]
            return os.path.expanduser(value if equals else ''.join(following) or '.')
    return 'logs'  # The default of --logdir.


def _delete(path, made, process):
    """Delete a folder, and those that were made for it, at the end of a process."""
    if os.getpid() != process:
        return  # A fork's end.
    shutil.rmtree(path, ignore_errors=True)
    # On bad input nothing is left behind.
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            break
