"""A program continues without its standard output and standard error."""

import os
import signal
import subprocess
import sys

import forks
import pytest
from conftest import CLEAN, ROOT, short_run

from support.run import checkpoints
from support.storage.metrics import read as read_metrics

SCRIPT = """
import sys
from support.system import streams
streams.protect()
files = open('one', 'w'), open('two', 'w')
for number in range(3000):
    print('line', number, 'ä\\udcff')
    print('beside', file=sys.stderr)
for file in files:
    file.write('whole')
    file.close()
open('done', 'w').close()
"""


def begin(folder, line, command, **env):
    """The process of `line`, a line of a shell in which "$@" is `command`."""
    return subprocess.Popen(
        ['sh', '-c', line, 'sh', *command],
        cwd=folder,
        env={**CLEAN, 'PYTHONPATH': str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shell(folder, words, command=None, **env):
    """Run `command`, SCRIPT by default, with a shell's redirections."""
    command = command or [sys.executable, '-c', SCRIPT]
    process = begin(folder, f'"$@" {words}', command, **env)
    output = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


@pytest.mark.parametrize(
    'words',
    [
        '>&-',
        '2>&-',
        '<&- >&- 2>&-',
        '> /dev/full',
        '> /dev/full 2>&1',
        '| head -n 1',
        '2>&1 | true',
    ],
)
def test_a_program_goes_on_without_its_output(tmp_path, words):
    done = shell(tmp_path, f'{words}; true')
    assert (tmp_path / 'done').exists() and 'Traceback' not in done.stderr
    assert (tmp_path / 'one').read_text() == (tmp_path / 'two').read_text() == 'whole'
    warnings = [line for line in done.stderr.splitlines() if 'warning' in line]
    assert len(warnings) == (words in ('> /dev/full', '| head -n 1'))
    if words == '| head -n 1':
        assert 'Broken pipe' in warnings[0]


@pytest.mark.parametrize('encoding', ['ascii', 'ascii:strict', 'latin-1', 'utf-8'])
def test_names_that_an_encoding_lacks_are_escaped(tmp_path, encoding):
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT],
        cwd=tmp_path,
        env={**CLEAN, 'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    letter = {'a': b'\\xe4', 'l': b'\xe4', 'u': b'\xc3\xa4'}[encoding[0]]
    lines = done.stdout.splitlines()
    assert lines[0] == b'line 0 ' + letter + rb'\udcff' and len(lines) == 3000


def test_a_pipe_that_does_not_wait_loses_nothing(tmp_path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT],
        cwd=tmp_path,
        env={**CLEAN, 'PYTHONPATH': str(ROOT)},
        stdout=writer,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    with open(reader, 'rb') as file:
        assert len(file.read().splitlines()) == 3000
    assert process.wait(60) == 0


def last_step(logdir):
    return list(read_metrics(logdir))[-1]['step']


@pytest.mark.slow
def test_a_run_without_readers_or_terminal_ends_as_it_should(tmp_path):
    """One whose reader leaves finishes, and hangups do not reach it below nohup; the
    next one, which has no streams, saves when its terminal closes. The name of their
    folder is one that stdout cannot encode.
    """
    name, ascii = os.fsdecode(b'\xc3\xa4 [1] \xff'), dict(PYTHONIOENCODING='ascii')
    logdir = tmp_path / name
    command = [*short_run(name), *forks.QUICK, '--steps', '300']
    # The header, whose last line has the name.
    line = '{ nohup "$@"; echo "exit code $?" >&2; } | head -n 7'
    process = begin(tmp_path, line, command, **ascii)
    forks.wait_for((logdir / 'metrics.jsonl').exists, process, 300)
    holder = int((logdir / 'lock').read_text().split()[1])
    os.kill(holder, signal.SIGHUP)
    output, errors = process.communicate(timeout=300)
    lines = output.splitlines()
    assert len(lines) == 7 and 'Traceback' not in errors
    assert errors.endswith('exit code 0\n')
    assert lines[-1].startswith('logs') and r'\xe4 [1] \udcff' in lines[-1]
    assert 'dreamer: warning: the output cannot be written' in errors
    assert last_step(logdir) == 300
    before = (logdir / 'metrics.jsonl').read_bytes()

    endless = 'exec "$@" >&- 2>&- <&-', [*command[:-1], '1000000']
    process = begin(tmp_path, *endless, **ascii)
    forks.wait_for(lambda: last_step(logdir) > 300, process, 300)
    # From the system and from a shell, and SIGTERM with it.
    for number in signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP:
        process.send_signal(number)
    assert process.wait(300) == 0
    after = (logdir / 'metrics.jsonl').read_bytes()
    assert after.startswith(before)
    assert (logdir / 'checkpoints' / 'checkpoint').exists()
    newest = checkpoints.find(logdir / 'checkpoints')[-1]
    assert checkpoints.read(newest)['metrics_size'] == len(after)

    evaluate = [sys.executable, str(ROOT / 'evaluate.py'), '--logdir', name]
    evaluate += ['--episodes', '1', '--video', 'v.gif']
    done = shell(tmp_path, '| true', evaluate, **ascii)
    assert 'Traceback' not in done.stderr and (tmp_path / 'v.gif').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['v.gif', name]


@pytest.mark.parametrize('words', ['| head -n 1', '| true', '>&-', '>&- 2>&-'])
@pytest.mark.parametrize('script', ['sweep.py', 'plotting.py'])
def test_what_plans_and_draws_goes_on_without_its_output(tmp_path, script, words):
    for seed in '0', '1':
        folder = tmp_path / 'runs/dmc_walker_walk/dreamer' / seed
        folder.mkdir(parents=True)
        (folder / 'metrics.jsonl').write_text('{"step": 1000, "test/return": 5}\n')
    flags = {
        'sweep.py': ['--root', 'new', '--tasks', 'dmc20', '--seeds', '9', '--dry_run'],
        'plotting.py': ['--logdir', 'runs', '--out', 'out'],
    }[script]
    command = [sys.executable, str(ROOT / script), *flags]
    done = shell(tmp_path, words, command)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr and 'error' not in done.stderr
    if script == 'plotting.py':
        assert (tmp_path / 'out/scores.csv').read_text().count('\n') == 2
    else:
        assert not (tmp_path / 'new').exists()
