"""Standard output and standard error that cannot end a program.

A run continues without what it cannot show: if the reader of a pipe has gone
(`| head`), a terminal was closed, the disk is full, a descriptor was closed before the
start (`2>&-`), or the encoding lacks a letter of a folder's name.
"""

import io
import locale
import os
import pathlib
import select
import sys


class SafeStream(io.FileIO):
    """A descriptor for writing, which drops what cannot be written.

    Args:
      descriptor: number of the descriptor, which stays open when this is closed.
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
    """Replace this process's standard streams by ones whose writes raise no errors.

    Call this first: otherwise a file that is opened later may get the number of a
    closed stream, and receive what is meant for that stream.
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
        f'({error.strerror}); the program continues without it',
        file=sys.stderr,
    )
