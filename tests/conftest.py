"""What several files of tests share."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

if 'PYTEST_XDIST_WORKER' in os.environ:
    # One thread for each of the processes that share the cores, and for the programs
    # that they start: small networks lose nothing by it.
    for name in ('OMP_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS'):
        os.environ.setdefault(name, '1')
# XLA compiles in half of the time without LLVM's optimisation, and tests do not run for
# long what it has compiled.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import numpy as np

from support.run import startup

# Its assertions show their values too.
pytest.register_assert_rewrite('learners')

# Tests that run in the background would hand on that signals are ignored there, which
# programs respect.
for number, handler in {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}.items():
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent
STANDINS = str(ROOT / 'tests' / 'standins')
# A user's environment: without what this process has set for those that it starts.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in (*startup.SETTINGS, 'DREAMER_VERBOSE', 'NO_COLOR')
}


def batch_of_noise(batch, length, action):
    """A batch of the replay [B, L, ...] whose sequences are each an episode's start."""
    # Here, since simulators are tested without it: see docs/architecture.md.
    import tensorflow as tf

    rng = np.random.default_rng(0)
    is_first = np.zeros((batch, length), bool)
    is_first[:, 0] = True
    return dict(
        image=tf.constant(rng.integers(0, 256, (batch, length, 64, 64, 3), np.uint8)),
        action=tf.constant(rng.uniform(-1, 1, (batch, length, action)), tf.float32),
        reward=tf.constant(rng.uniform(0, 1, (batch, length)), tf.float32),
        discount=tf.ones((batch, length)),
        is_first=tf.constant(is_first),
    )


def short_run(logdir):
    """The command of a short run, as a list."""
    return [
        sys.executable,
        str(ROOT / 'dreamer.py'),
        '--logdir',
        str(logdir),
        '--task',
        'dummy_continuous',
        '--configs',
        'debug',
        '--time_limit',
        '60',
    ]


# Larger than the small preset's, so that there is something to advise.
LARGE = ['--horizon', '16']


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
    """The folder of a finished run of 300 steps, not to be changed, and what it printed
    to stdout and stderr, which were no terminal.
    """
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent  # The processes that share the tests share the run.
    logdir, printed = folder / 'finished' / 'run', folder / 'finished.json'
    with open(folder / 'finished.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            done = subprocess.run(
                [*short_run(logdir), *LARGE, '--steps', '300'],
                env=CLEAN,
                text=True,
                capture_output=True,
                timeout=600,
            )
            assert done.returncode == 0, done.stderr
            printed.write_text(json.dumps([done.stdout, done.stderr]))
    return logdir, *json.loads(printed.read_text())


@pytest.fixture
def lab(monkeypatch):
    """The stand-in of DeepMind Lab, freshly imported."""
    monkeypatch.syspath_prepend(STANDINS)
    monkeypatch.delitem(sys.modules, 'deepmind_lab', raising=False)
    monkeypatch.delenv('MUJOCO_EGL_DEVICE_ID', raising=False)
    import deepmind_lab

    yield deepmind_lab
    sys.modules.pop('deepmind_lab')


# Files by what they take, the longest first: one that is started last runs on alone.
LONGEST = """faults cli learning_discrete run agent benchmark learning_baselines sweep
    streams jit learning_continuous evaluate replicas states machines""".split()


def pytest_xdist_auto_num_workers():
    """One process more than cores, since some tests wait for other programs."""
    return min(4, len(os.sched_getaffinity(0)) + 1)


def pytest_collection_modifyitems(items):
    ranks = {f'test_{name}': rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
