"""Signals of a program, and processes that end with it.

`ASKING` signals ask a program to end, and to end at once when they come twice.
`TELLING` signals only tell it that its end is near: a terminal was closed, or the batch
system's time is almost up. They may come often, beside the others, and to every process
of a job.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import socket
import sys
import threading
import time

ASKING = (signal.SIGINT, signal.SIGTERM)
TELLING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def _do_nothing(*_):
    """Handle a signal by doing nothing. Unlike an ignored signal, it still reaches the
    socket of `heed`, and programs that this process starts do not inherit the handler.
    """


def end_by(*numbers):
    """Let signals end the program without a message, also if it is the first process of
    a container, which the system keeps alive unless it handles a signal.
    """
    for number in numbers:
        signal.signal(number, _exit if os.getpid() == 1 else signal.SIG_DFL)


def _exit(number, _):
    os._exit(128 + number)


def heed(stop, what):
    """Let the first signal call `stop`, in a thread, and a second one of `ASKING` end
    the program at once. Signals of `TELLING` that are ignored, as by nohup, stay so.

    Python calls handlers when TensorFlow returns, which takes as long as an update.
    The number of the signal, which Python writes to a socket, arrives before.

    Args:
      stop: function without arguments.
      what: what the program does before it ends, for the message.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    numbers = [*ASKING, *(n for n in TELLING if signal.getsignal(n) != signal.SIG_IGN)]
    for number in numbers:
        signal.signal(number, _do_nothing)

    def restore():
        # Processes that an environment forks from this one must die of signals as
        # usual, and must not report theirs to the listener.
        signal.set_wakeup_fd(-1)
        for number in numbers:
            if signal.getsignal(number) is _do_nothing:
                signal.signal(number, signal.SIG_DFL)

    restore_in_forks(numbers, restore)

    threading.Thread(
        target=_listen, args=(ours, theirs, numbers, stop, what), daemon=True
    ).start()


def _listen(ours, theirs, numbers, stop, what):
    """Act on signals; see `heed`.

    Args:
      ours: socket from which the numbers of signals are read.
      theirs: socket into which Python writes them; it must not be collected.
      numbers: signals that count.
      stop, what: of `heed`.
    """
    stopping = asked = False
    while True:
        number = ours.recv(1)[0]
        if number not in numbers:
            continue
        if asked and number in ASKING:
            os._exit(128 + number)
        asked = asked or number in ASKING
        if stopping:
            continue
        stopping = True
        stop()
        print(
            f'stopping: {what} first, again to quit at once',
            file=sys.stderr,
            flush=True,
        )


def leave_to_others(numbers):
    """Let signals do nothing in this process: they reach all processes of a job, and
    another one decides what they mean.

    Processes that this one starts die of them as usual. Programs begin without
    handlers, but would inherit that a signal is ignored. Forks have the handlers taken
    back.
    """
    usual = {}
    for number in numbers:
        # A signal that was ignored (by nohup, say) is ignored in all processes.
        if signal.getsignal(number) not in (signal.SIG_IGN, _do_nothing):
            usual[number] = signal.signal(number, _do_nothing)
            # Simulators need not know how to resume an interrupted system call.
            signal.siginterrupt(number, False)

    def restore():
        for number, handler in usual.items():
            if signal.getsignal(number) is _do_nothing:
                signal.signal(number, handler)

    restore_in_forks(usual, restore)


def restore_in_forks(numbers, restore):
    """Call `restore` in every process that this one forks, before any of the signals
    `numbers` reaches it: until then they wait.
    """
    numbers = set(numbers)

    def wait():
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def go_on():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def begin():
        restore()
        interrupt = signal.SIGINT
        if interrupt in signal.sigpending():
            # Here the exception that Python makes of it would be swallowed.
            if signal.getsignal(interrupt) == signal.default_int_handler:
                signal.signal(interrupt, signal.SIG_DFL)
        go_on()

    os.register_at_fork(before=wait, after_in_parent=go_on, after_in_child=begin)


def begin_worker():
    """Set up a worker process before it imports anything else. It leads a session, and
    ends with its parent; the processes that it starts end with it.
    """
    # A simulator that hangs would not see that its killed parent is gone.
    die_with_parent()
    _fork_guard()
    leave_to_others(ASKING + TELLING)


def die_with_parent():
    """Let the system kill this process when its parent ends, for whatever reason."""
    if sys.platform == 'linux':
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _fork_guard():
    """Fork a process that waits for the end of this one, and then ends its session."""
    leader = os.getpid()
    if os.fork():
        return
    try:
        os.setsid()
        for number in ASKING + TELLING:
            signal.signal(number, signal.SIG_IGN)
        # A reader of the worker's output waits until every copy of it is closed.
        os.closerange(0, 2**20)
        while os.getppid() == leader:
            time.sleep(0.5)
        end_session(leader)
    finally:
        os._exit(0)


def end_session(leader):
    """Kill all processes of a session, whose leader may have ended: its group and, on
    systems with `/proc`, the processes that have left the group.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: state, parent, group, session.
            if int(path.read_text().rpartition(')')[2].split()[3]) == leader:
                os.kill(int(path.parent.name), signal.SIGKILL)


def descendants(pid):
    """Return the ids of the processes that a process has started, and of those that
    these have started; none on systems without `/proc`.
    """
    found = []
    for path in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found
