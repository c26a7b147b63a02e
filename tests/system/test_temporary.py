"""A system without a folder that can be written, but for the logdir."""

import subprocess
import sys

import pytest
from conftest import CLEAN, ROOT

SCRIPT = """
import os, sys, tempfile
# Where a system is read-only.
tempfile._candidate_tempdir_list = lambda: ['/proc/nowhere']
from support.system import temporary
temporary.provide('program')
with tempfile.NamedTemporaryFile() as file:
    print(file.name)
print(os.environ['TMPDIR'])
if not os.fork():
    sys.exit()
os.wait()
print(os.path.isdir(tempfile.gettempdir()))
"""


def run(*words, script=SCRIPT):
    return subprocess.run(
        [sys.executable, '-c', script, *map(str, words)],
        cwd=ROOT,
        env=CLEAN,
        text=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    'words', [['--logdir', '{}'], ['--logdir={}'], ['--seeds', '2', '--root', '{}']]
)
@pytest.mark.parametrize('exists', [False, True])
def test_the_logdir_takes_temporary_files_until_the_end(tmp_path, words, exists):
    logdir = tmp_path / 'runs' / 'run'
    if exists:
        logdir.mkdir(parents=True)
    done = run(*(word.format(logdir) for word in words))
    file, folder, there = done.stdout.splitlines()
    assert file.startswith(f'{folder}/') and folder.startswith(f'{logdir}/tmp-')
    # A fork that ends leaves it to the others.
    assert there == 'True'
    assert not list(logdir.iterdir()) if exists else not logdir.parent.exists()


def test_nowhere_to_write_is_one_line():
    done = run('--logdir', '/proc/nowhere')
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith('program: error: no folder for temporary files')
    assert '/proc/nowhere' in line and 'TMPDIR' in line


def test_the_usual_folder_is_left_alone(tmp_path):
    usual = SCRIPT.replace("['/proc/nowhere']", f"['{tmp_path}']")
    done = run('--logdir', '/proc/nowhere', script=usual)
    assert (
        done.stdout.startswith(f'{tmp_path}/') and "KeyError: 'TMPDIR'" in done.stderr
    )
