"""Faults through the command line: whatever happens, what was collected and learned is
still there, and the run goes on. Most programs are forks of one that has imported
TensorFlow; one of two that are compared is not, so that equal runs are equal in two
processes.

`kill -9` comes in named places (see faults.py); what must not be lost is written down
by the tests, outside the run, and compared after every start.
"""

import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import forks
import numpy as np
import pytest
import tensorflow as tf

from support.run import checkpoints, timing
from support.storage import finished
from support.storage.metrics import read as read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, LENGTH = 400, 20
SMALL = (
    '--configs debug --prefill 60 --train_every 40 --log_every 80 --save_every 60 '
    f'--eval_every 120 --time_limit {LENGTH}'
).split()
# Wall time.
SPEEDS = {'fps', 'updates_per_s', *(f'time_{name}' for name in timing.PHASES)}

pytestmark = pytest.mark.slow


def command(logdir, *flags, task='dummy_continuous', steps=STEPS):
    words = ['--logdir', logdir, '--task', task, *SMALL, '--steps', steps, *flags]
    return list(map(str, words))


def begin(words, **env):
    return forks.Program('dreamer.py', words, {**os.environ, **env})


def start(logdir, *flags, task='dummy_continuous', steps=STEPS, **env):
    quick = *forks.QUICK, '--precision', '32'
    return begin(command(logdir, *quick, *flags, task=task, steps=steps), **env)


def finish(process, code=0):
    output = process.finish()
    assert process.returncode == code, output
    # TensorFlow speaks while it is imported, before anything of ours.
    return [line for line in output.splitlines() if line.startswith('dreamer:')], output


def metrics(logdir):
    return [
        {key: value for key, value in row.items() if key not in SPEEDS}
        for row in read_metrics(logdir)
    ]


def evaluations(logdir):
    """Environment steps of the evaluations."""
    return [line['step'] for line in metrics(logdir) if 'test/return' in line]


def weights(logdir):
    """All numbers of the newest checkpoint."""
    reader = tf.train.load_checkpoint(
        tf.train.latest_checkpoint(str(logdir / 'checkpoints'))
    )
    kinds = reader.get_variable_to_dtype_map()
    return {name: reader.get_tensor(name) for name in kinds if kinds[name] != tf.string}


def episodes(logdir):
    """Hashes of the complete episodes by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((logdir / 'episodes').glob('*.npz'))
    }


def children(process):
    """Process ids below `process`."""
    path = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
    return [int(word) for word in path.read_text().split()]


def is_gone(pid):
    return not pathlib.Path(f'/proc/{pid}').exists()


class Ledger:
    """Remember the complete episodes of a run and check that none is missing."""

    def __init__(self, logdir):
        self.logdir = logdir
        self.seen = {}

    def check(self):
        now = episodes(self.logdir)
        assert self.seen.items() <= now.items(), 'an episode is missing or changed'
        self.seen = now
        if (self.logdir / 'metrics.jsonl').exists():
            metrics(self.logdir)  # No line is damaged.

    def check_run(self, steps=STEPS):
        """The metrics of a finished run tell of every episode once, in order."""
        self.check()
        lines = metrics(self.logdir)
        train = [line for line in lines if 'train/return' in line]
        stored = []
        for name in self.seen:
            with np.load(self.logdir / 'episodes' / name) as episode:
                stored.append(float(np.sum(episode['reward'])))
        assert [line['train/return'] for line in train] == stored
        assert [line['episodes'] for line in train] == list(range(1, len(train) + 1))
        assert [line['step'] for line in train] == list(
            range(LENGTH, steps + 1, LENGTH)
        )
        losses = [line for line in lines if 'gradient_step' in line]
        updates = [line['gradient_step'] for line in losses]
        logged = [line['step'] for line in losses]
        assert logged == sorted(set(logged))
        # The last step is logged, also where no update was due after the one before.
        assert updates[:-1] == sorted(set(updates[:-1])) and updates == sorted(updates)
        began = weights(self.logdir)['agent/train_start/.ATTRIBUTES/VARIABLE_VALUE']
        assert updates[-1] == 2 + 2 * ((losses[-1]['step'] - began) // 40)
        assert losses[-1]['episodes_dropped'] == 0
        assert losses[-1]['episodes_skipped'] == 0
        assert finished.step_of(self.logdir) == steps
        tests = evaluations(self.logdir)
        assert tests == sorted(set(tests)) and tests


def test_equal_seeds_and_stops_at_saves_make_equal_runs(tmp_path):
    """A run is killed behind a save, ended by --steps, and resumed in its precision. It
    equals bit for bit a run to which nothing happens. bfloat16 rounds so coarsely that
    any difference would grow.
    """
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    exact = '--precision', 'bfloat16'
    # Nor does it matter what Python and Keras are told.
    (tmp_path / 'keras.json').write_text('{"floatx": "bfloat16", "backend": "jax"}')
    env = dict(PYTHONSAFEPATH='1', KERAS_BACKEND='torch', KERAS_HOME=str(tmp_path))
    words = [sys.executable, str(ROOT / 'dreamer.py'), *command(whole, *exact)]
    done = subprocess.run(
        words, env={**os.environ, **env}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    Ledger(whole).check_run()

    words = command(stopped, *exact)
    finish(begin(words, DREAMER_FAULT='saved:3'), -signal.SIGKILL)
    finish(begin(command(stopped, *exact, steps=260)))
    _, output = finish(begin(command(stopped, '--precision', 'auto')))
    assert 'resumed at step 260' in output and '; bfloat16\n' in output

    assert metrics(stopped) == metrics(whole)
    found, expected = weights(stopped), weights(whole)
    assert found.keys() == expected.keys() and len(expected) > 100
    assert any('rng' in name for name in found)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], name)


PLACES = (
    # In the prefill, and before the first update.
    'rename:2 write:2 metrics:2:full update:1 '
    # Between updates, and from there on.
    'update:4 evaluation:3 checkpoint:2 metrics:6 video:1:full write:1:full '
    'checkpoint:1:full written:1'
).split()


def test_killed_or_without_space_at_named_places_nothing_is_lost(tmp_path):
    """One run is started again after every fault, and checked each time."""
    ledger = Ledger(tmp_path)
    for place in PLACES:
        if place.endswith('full'):
            lines, output = finish(start(tmp_path, DREAMER_FAULT=place), 1)
            assert len(lines) == 1 and 'No space left on device' in lines[0], output
            assert 'Traceback' not in output
        else:
            finish(start(tmp_path, DREAMER_FAULT=place), -signal.SIGKILL)
        ledger.check()
    finish(start(tmp_path))
    ledger.check_run()
    assert len(ledger.seen) == STEPS // LENGTH
    assert not list((tmp_path / 'episodes').glob('.*'))
    assert not (tmp_path / 'checkpoints' / 'unfinished').exists()


def faulty(folder, *faults):
    """Environment variables and flags for tests/standins/faulty.py."""
    folder.mkdir()
    for fault in faults:
        (folder / fault).touch()
    return dict(FAULTS=str(folder), PYTHONPATH=str(ROOT / 'tests' / 'standins'))


FAULTY = ['--gym_import', 'faulty']


def test_environments_that_fail_are_restarted(tmp_path):
    """All kinds of failures, then one from outside, with episodes in between.

    The five faults drop an episode each; whether one was open when the workers were
    killed, and at the end, is left to chance.
    """
    env = faulty(tmp_path / 'faults')
    logdir = tmp_path / 'run'
    process = start(
        logdir, *FAULTY, '--worker_timeout', 10, task='gym_Faulty-v0', steps=1e6, **env
    )
    for fault in ('raise', 'kill', 'exit', 'hang', 'nan'):
        (tmp_path / 'faults' / fault).touch()
        forks.wait_for(lambda: not os.listdir(tmp_path / 'faults'), process)
        count = len(episodes(logdir))
        forks.wait_for(lambda: len(episodes(logdir)) > count, process)  # noqa: B023
    # Of two workers one evaluates: its end is noticed when it is asked for something.
    before = children(process)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    forks.wait_for(lambda: all(map(is_gone, before)), process)
    count = len(episodes(logdir))
    forks.wait_for(lambda: len(episodes(logdir)) > count + 4, process)
    after = children(process)
    assert len(before) == len(after) == 2
    process.send_signal(signal.SIGTERM)
    _, output = finish(process)
    for text in (
        "KeyError: 'a fault of the environment",
        'killed by SIGKILL',
        'exit code 3',
        'no answer within 10.0 s',
        'reward nan',
    ):
        assert text in output, text
    assert all(is_gone(pid) for pid in after)
    newest = tf.train.latest_checkpoint(str(logdir / 'checkpoints'))
    assert checkpoints.read(newest)['dropped'] >= 5
    losses = [line for line in metrics(logdir) if 'episodes_dropped' in line]
    assert losses[-1]['episodes_dropped'] >= 5
    train = [line for line in metrics(logdir) if 'train/return' in line]
    assert len(train) == len(episodes(logdir)) == train[-1]['episodes']


def test_environment_that_always_fails_and_gradients_that_stay_non_finite(tmp_path):
    env = faulty(tmp_path / 'faults', 'always_raise')
    logdir = tmp_path / 'run'
    flags = dict(task='gym_Faulty-v0', **env)
    lines, output = finish(start(logdir, *FAULTY, **flags), 1)
    assert 'failed 5 times in a row' in lines[-2] and 'saved' in lines[-1]
    assert "KeyError: 'a fault of the environment'" in output
    # Rewards whose squares no float32 holds, all from one module.
    os.rename(tmp_path / 'faults/always_raise', tmp_path / 'faults/always_huge')
    before = weights(logdir)
    lines, _ = finish(
        start(logdir, *FAULTY, '--pretrain', 60, '--allow_config_change', **flags), 1
    )
    assert 'the gradient of the model was not finite 50 times' in lines[-1]
    (dump,) = (logdir / 'dumps').glob('*.index')
    assert str(dump.with_suffix('')) in lines[-1]
    reader = tf.train.load_checkpoint(str(dump.with_suffix('')))
    name = 'agent/optimizers/model/skipped_in_a_row/.ATTRIBUTES/VARIABLE_VALUE'
    assert reader.get_tensor(name) >= 50
    # The checkpoints are not from behind that.
    assert weights(logdir)[name] < 50 and before[name] == 0


def test_second_process_stopped_worker_and_vanished_folder(tmp_path):
    logdir = tmp_path / 'run'
    process = start(logdir, steps=1e6)
    forks.wait_for(lambda: (logdir / 'metrics.jsonl').exists(), process)
    lines, output = finish(start(logdir), 2)
    assert len(lines) == 1 and f'in use by process {process.pid} on' in lines[0]
    assert 'Traceback' not in output
    forks.wait_for(lambda: len(episodes(logdir)) > 5, process)
    workers = children(process)
    os.kill(workers[0], signal.SIGSTOP)  # It cannot end by itself.
    os.rename(logdir, tmp_path / 'gone')
    os.kill(workers[0], signal.SIGCONT)
    lines, output = finish(process, 1)
    assert len(lines) == 1 and 'No such file' in lines[0] and str(logdir) in lines[0]
    assert 'Traceback' not in output and not logdir.exists()
    assert all(is_gone(pid) for pid in workers)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, where this user may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = shutil.which('mount')
    if (
        not mount
        or subprocess.run(
            [mount, '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', folder],
            capture_output=True,
        ).returncode
    ):
        pytest.skip('mounting is for root alone')
    yield folder
    subprocess.run(['umount', folder], check=True)


def test_disk_that_really_fills_up_and_one_that_is_read_only(small_disk):
    ledger = Ledger(small_disk / 'run')
    lines, output = finish(start(small_disk / 'run', steps=1e6), 1)
    assert len(lines) == 1 and 'stopped' in lines[0] and 'Traceback' not in output
    assert str(small_disk) in lines[0] or 'space' in lines[0]
    ledger.check()
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    lines, output = finish(start(small_disk / 'run', steps=1e6), 2)
    assert len(lines) == 1 and 'Read-only' in lines[0] and 'Traceback' not in output
    subprocess.run(['mount', '-o', 'remount,rw,size=64m', small_disk], check=True)
    finish(start(small_disk / 'run', steps=200 + LENGTH * len(ledger.seen)))
    ledger.check()


def test_soak(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tests' / 'run'))
    import soak

    soak.main(['--kills', '1'])
    assert capsys.readouterr().out.endswith('nothing lost\n')
