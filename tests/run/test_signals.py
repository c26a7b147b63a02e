"""Signals, and what a run forks."""

import signal
import subprocess
import sys

import pytest
from conftest import CLEAN, ROOT

FORK = """
import os, signal, sys
from run import startup
startup.heed_signals(lambda: print('stopped', flush=True), 'saving')
pid = os.fork()
if not pid:
    signal.pause()
    os._exit(0)
os.kill(pid, int(sys.argv[1]))
print('died of', -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_forks_of_a_run_die_of_signals(number):
    done = subprocess.run(
        [sys.executable, '-c', FORK, str(int(number))],
        cwd=ROOT,
        env=CLEAN,
        text=True,
        capture_output=True,
        timeout=120,
    )
    # Neither does the run take the fork's signal for its own.
    assert done.stdout == f'died of {int(number)}\n', done.stderr
