"""A hook for tests: at a named place the process is killed, or a write fails.

    DREAMER_FAULT=rename:3 python dreamer.py ...        killed at the third rename
    DREAMER_FAULT=rename:3:full python dreamer.py ...   no space left from there on

Places: write and rename (of an episode), written and checkpoint (before and while a
checkpoint gets its name), saved (after that), metrics, video, config, update,
evaluation.
Without the variable, `reach` does nothing.
"""

import errno
import os
import signal

_place, _count, _kind = (os.environ.get('DREAMER_FAULT', '') + '::').split(':')[:3]
_left = int(_count or 0)


def reach(place):
    """Mark a place in the code."""
    global _left
    if place != _place:
        return
    _left -= 1
    if _left <= 0 and _kind == 'full':
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
