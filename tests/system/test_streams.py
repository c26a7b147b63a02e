"""A program continues without its standard output and standard error."""

import os
import pathlib
import signal
import subprocess
import sys

import forks
import pytest
from conftest import CLEAN, ROOT, short_run

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


def shell(folder, words, command=None, **env):
    """Run `command`, SCRIPT by default, with a shell's redirections."""
    command = command or [sys.executable, '-c', SCRIPT]
    return subprocess.run(
        ['sh', '-c', f'"$@" {words}', 'sh', *command],
        cwd=folder,
        env={**CLEAN, 'PYTHONPATH': str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=600,
    )


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
def test_a_run_whose_reader_leaves_ends_as_it_should(tmp_path):
    """And the name of its folder is one that stdout cannot encode."""
    name, ascii = os.fsdecode(b'\xc3\xa4 [1] \xff'), dict(PYTHONIOENCODING='ascii')
    command = [*short_run(name), *forks.QUICK, '--steps', '300']
    # The header, whose last line has the name.
    done = shell(tmp_path, '| head -n 7', command, **ascii)
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and 'Traceback' not in done.stderr
    assert lines[-1].startswith('logs') and r'\xe4 [1] \udcff' in lines[-1]
    assert 'dreamer: warning: the output cannot be written' in done.stderr
    assert last_step(tmp_path / name) == 300
    before = (tmp_path / name / 'metrics.jsonl').read_bytes()
    done = shell(tmp_path, '>&- 2>&- <&-', [*command[:-1], '360'], **ascii)
    assert done.returncode == 0 and last_step(tmp_path / name) == 360
    assert (tmp_path / name / 'metrics.jsonl').read_bytes().startswith(before)
    evaluate = [sys.executable, str(ROOT / 'evaluate.py'), '--logdir', name]
    evaluate += ['--episodes', '1', '--video', 'v.gif']
    done = shell(tmp_path, '| true', evaluate, **ascii)
    assert 'Traceback' not in done.stderr and (tmp_path / 'v.gif').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['v.gif', name]


def until_pretraining(command):
    """The process of `command` once it pretrains."""
    process = subprocess.Popen(
        command, env=CLEAN, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while 'pretraining' not in process.stdout.readline():
        assert process.poll() is None
    return process


@pytest.mark.slow
def test_a_closed_terminal_saves(tmp_path):
    """SIGHUP may come from the system and from a shell, and SIGTERM with it."""
    logdir = tmp_path / 'run'
    process = until_pretraining(
        [*short_run(logdir), *forks.QUICK, '--steps', '1000000']
    )
    process.stdout.close()
    for number in signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP:
        process.send_signal(number)
    assert process.wait(300) == 0
    assert list((logdir / 'checkpoints').glob('ckpt-*.index'))
    assert pathlib.Path(logdir / 'checkpoints' / 'checkpoint').exists()


@pytest.mark.slow
def test_nohup_keeps_a_run_going(tmp_path):
    process = until_pretraining(
        ['nohup', *short_run(tmp_path / 'run'), *forks.QUICK, '--steps', '300']
    )
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=300)
    assert process.returncode == 0 and last_step(tmp_path / 'run') == 300


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
