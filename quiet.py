"""Imports TensorFlow without its chatter; to be imported before anything that does.

With `--verbose` on the command line everything is printed. TensorFlow writes its
first lines to file descriptor 2 before any setting of its own is heard, so that they
are caught there; what is written later obeys the environment variables below, which
the simulators' processes inherit.
"""

import contextlib
import itertools
import os
import sys
import tempfile

SETTINGS = dict(
    TF_CPP_MIN_LOG_LEVEL='3',
    EGL_LOG_LEVEL='fatal',
    PYGAME_HIDE_SUPPORT_PROMPT='1',
    # Without any, the library behind pygame complains.
    XDG_RUNTIME_DIR=tempfile.gettempdir(),
)


def asked_for_chatter(words):
    """Whether `--verbose` is among the words of a command line, and not as false."""
    verbose = False
    for word, following in itertools.pairwise([*words, '']):
        name, _, value = word.partition('=')
        if name == '--verbose':
            verbose = (value or following).lower() != 'false'
    return verbose


@contextlib.contextmanager
def caught_stderr():
    """Keeps what the block writes to file descriptor 2, C++ included, from the
    screen. If the block raises, it is printed after all."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            file.seek(0)
            os.write(screen, file.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)


# Off by default on processors without AVX-512, where it doubles the speed too.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
if asked_for_chatter(sys.argv[1:]):
    os.environ['DREAMER_VERBOSE'] = '1'
    import tensorflow  # noqa: F401
else:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with caught_stderr():
        import tensorflow  # noqa: F401
