"""Standard output and standard error that cannot end a program.

A pipe whose reader has gone (`| head`), a terminal that was closed, a full disk, a
descriptor that was closed before the start (`2>&-`), or an encoding that lacks a letter
of a folder's name: a run goes on without what it cannot show.
"""

import io
import locale
import os
import pathlib
import select
import sys


class SafeStream(io.FileIO):
    """A descriptor for writing, of which what cannot be written is dropped.

    Args:
      descriptor: stays open when this is closed.
      lost: called with the OSError of the first write that fails.
    """

    def __init__(self, descriptor, lost):
        super().__init__(descriptor, 'w', closefd=False)
        self._lost = lost

    def write(self, data):
        """Write all or a part of some bytes, or drop them; return how many."""
        while True:
            try:
                written = super().write(data)
            except OSError as error:
                lost, self._lost = self._lost, lambda error: None
                lost(error)
                return memoryview(data).nbytes
            if written is not None:
                return written
            # Whoever set it to non-blocking has not read it yet.
            select.select([], [self.fileno()], [])


def protect():
    """Make this process's standard streams such that no write raises an error. To be
    called first: a file that is opened later must not get the number of one of them,
    and receive what is meant for it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)  # Onto itself, it is inherited from now on.
            if null != descriptor:
                os.close(null)
    sys.stderr = _stream(sys.stderr, 2, lambda error: None)
    sys.stdout = _stream(sys.stdout, 1, _warn)


def _stream(stream, descriptor, lost):
    encoding = stream.encoding if stream else locale.getpreferredencoding(False)
    return io.TextIOWrapper(
        io.BufferedWriter(SafeStream(descriptor, lost)),
        encoding=encoding,
        errors='backslashreplace',
        line_buffering=True,
    )


def _warn(error):
    print(
        f'{pathlib.Path(sys.argv[0]).stem}: warning: the output cannot be written '
        f'({error.strerror}); the program goes on without it',
        file=sys.stderr,
    )
