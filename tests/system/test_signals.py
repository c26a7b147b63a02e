"""Signals, what a run forks, and what a container does with its first process."""

import signal
import subprocess
import sys

import pytest
from conftest import CLEAN, ROOT

from support.system import signals

HEED = """
import hashlib, os, signal, sys
from support.system import signals
signals.heed(lambda: print('asked', flush=True), 'saving')
"""
FORK = f"""{HEED}
pid = os.fork()
if not pid:
    signal.pause()
    os._exit(0)
os.kill(pid, int(sys.argv[1]))
print('died of', -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
# A computation that no handler of Python's interrupts.
COMPUTE = f"""{HEED}
print('ready', flush=True)
hashlib.pbkdf2_hmac('sha256', b'', b'', 10 ** 9)
"""
WAIT = """
import signal, sys
from support.system import signals
signals.end_by(*signals.ASKING)
print('ready', flush=True)
while True:
    signal.pause()
"""


def start(script, *words, before=()):
    return subprocess.Popen(
        [*before, sys.executable, '-c', script, *words],
        cwd=ROOT,
        env=CLEAN,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize('number', signals.ASKING + signals.TELLING)
def test_forks_of_a_run_die_of_signals(number):
    out, errors = start(FORK, str(int(number))).communicate(timeout=120)
    # Neither does the run take the fork's signal for its own.
    assert out == f'died of {int(number)}\n', errors


@pytest.mark.parametrize('first', signals.ASKING + signals.TELLING)
def test_a_second_signal_ends_the_program_at_once_where_it_asks(first):
    process = start(COMPUTE)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(first)
    assert process.stdout.readline() == 'asked\n'
    assert process.stderr.readline() == (
        'stopping: saving first, again to quit at once\n'
    )
    numbers = [*signals.TELLING, signal.SIGTERM]
    if first not in signals.ASKING:
        # After a batch system's word its SIGTERM is the first that asks.
        numbers.append(signal.SIGINT)
    for number in numbers[:-1]:
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(numbers[-1])
    assert process.communicate(timeout=60) == ('', '')
    assert process.returncode == 128 + numbers[-1]


def test_what_was_ignored_stays_so():
    process = start(COMPUTE, before=('sh', '-c', 'trap "" USR1; exec "$@"', 'sh'))
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.readline() == 'asked\n'
    assert process.stderr.readline().startswith('stopping')
    process.kill()
    assert process.communicate(timeout=60) == ('', '')


@pytest.mark.parametrize('number', signals.ASKING)
def test_a_program_that_has_nothing_to_save_ends(number):
    process = start(WAIT)
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    assert process.communicate(timeout=60) == ('', '')
    assert process.returncode == -number


@pytest.mark.parametrize('number', signals.ASKING)
def test_the_first_process_of_a_container_ends_as_well(number):
    first = ['unshare', '--pid', '--fork', '--mount-proc']
    try:
        subprocess.run([*first, 'true'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('process namespaces are for root alone')
    tell = WAIT.replace("print('ready'", "print(open('/proc/self/stat').read(2)")
    process = start(tell, before=first)
    assert process.stdout.readline() == '1 \n'
    # From outside the namespace, of which unshare waits for the first process.
    with open(f'/proc/{process.pid}/task/{process.pid}/children') as file:
        inside = int(file.read())
    subprocess.run(['kill', f'-{int(number)}', str(inside)], check=True)
    assert process.communicate(timeout=60) == ('', '')
    assert process.returncode == 128 + number
