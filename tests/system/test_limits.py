"""Cores and memory that are granted, read below folders like those of real machines."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from support.storage import replay
from support.system import limits

V2 = '25 30 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate'
V1 = (
    '33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct',
    '35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory',
)
JOB = 'system.slice/slurmstepd.scope/job_7/step_0/user/task_0'


def make_root(root, group, mounts, files):
    """Write what /proc and /sys/fs/cgroup show; return the folder."""
    (root / 'proc/self').mkdir(parents=True)
    (root / 'proc/self/cgroup').write_text(group)
    (root / 'proc/self/mountinfo').write_text(
        '\n'.join(['22 30 0:5 / /proc rw - proc proc rw', *mounts, 'damaged'])
    )
    for name, text in files.items():
        path = root / 'sys/fs/cgroup' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{text}\n')
    return root


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    """64 cores, 128 GiB."""
    names = dict(SC_PAGE_SIZE=4096, SC_PHYS_PAGES=2**25)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(64)))
    monkeypatch.setattr(os, 'sysconf', names.get)


@pytest.mark.parametrize(
    'group, mounts, files, cores, memory',
    [
        pytest.param('', [], {}, 64, 2**37, id='no groups'),
        pytest.param(
            '0::/\n',
            [V2],
            {'cpu.max': '250000 100000', 'memory.max': 2**32},
            2,
            2**32,
            id='container',
        ),
        pytest.param(
            f'0::/{JOB}\n',
            [V2],
            {
                f'{JOB}/memory.max': 'max',
                f'{JOB}/cpu.max': 'max 100000',
                'system.slice/slurmstepd.scope/job_7/memory.max': 2**33,
                'system.slice/slurmstepd.scope/job_7/cpu.max': '400000 100000',
                'system.slice/memory.max': 2**34,
            },
            4,
            2**33,
            id='job',
        ),
        pytest.param(
            '0::/user.slice\n',
            [V2],
            {'user.slice/memory.high': 2**31, 'user.slice/cpu.max': '50000 100000'},
            1,
            2**31,
            id='throttled',
        ),
        pytest.param(
            '4:memory:/slurm/job_7\n3:cpu,cpuacct:/slurm/job_7\n0::/\n',
            [line.format(top='/') for line in V1],
            {
                'memory/memory.limit_in_bytes': 2**63 - 4096,
                'memory/slurm/job_7/memory.limit_in_bytes': 2**33,
                'cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us': 300000,
                'cpu,cpuacct/slurm/job_7/cpu.cfs_period_us': 100000,
                'cpu,cpuacct/cpu.cfs_quota_us': -1,
                'cpu,cpuacct/cpu.cfs_period_us': 100000,
            },
            3,
            2**33,
            id='version 1',
        ),
        pytest.param(
            '4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n',
            [line.format(top='/docker/abc') for line in V1],
            {
                'memory/memory.limit_in_bytes': 2**32,
                'cpu,cpuacct/cpu.cfs_quota_us': 200000,
                'cpu,cpuacct/cpu.cfs_period_us': 100000,
            },
            2,
            2**32,
            id='container of version 1',
        ),
        pytest.param(
            '0::/outside\n',
            [V2.replace(' / ', ' /docker/abc ')],
            {'memory.max': 2**32, 'cpu.max': '100000 100000'},
            1,
            2**32,
            id='group outside of the mount',
        ),
        pytest.param(
            '0::/\n', [V2], {'memory.max': 'x', 'cpu.max': '1 0'}, 64, 2**37, id='odd'
        ),
    ],
)
def test_tightest_limit_of_all_groups(tmp_path, group, mounts, files, cores, memory):
    root = make_root(tmp_path, group, mounts, files)
    assert limits.cores(root) == cores
    assert limits.memory(root) == memory


def test_affinity_below_the_quota(tmp_path, monkeypatch):
    root = make_root(tmp_path, '0::/\n', [V2], {'cpu.max': '800000 100000'})
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {3, 5})
    assert limits.cores(root) == 2


@pytest.mark.parametrize('kind', ['RLIMIT_AS', 'RLIMIT_DATA'])
def test_limits_of_the_process(tmp_path, kind):
    """In a process of its own, which the replay's part follows."""
    code = (
        'import resource; from support.storage import replay; '
        'from support.system import limits; '
        f'resource.setrlimit(resource.{kind}, (2**32, 2**33)); '
        f'print(limits.memory({str(tmp_path)!r}), replay.default_memory())'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    memory, part = map(int, done.stdout.split())
    assert memory == 2**32
    assert part <= memory // 4


def test_replay_takes_a_quarter(monkeypatch):
    monkeypatch.setattr(limits, 'memory', lambda: 2**30)
    assert replay.default_memory() == 2**28


def test_one_core_is_no_plural(monkeypatch):
    monkeypatch.setattr(limits, 'cores', lambda: 1)
    assert limits.count_cores() == '1 core'
    monkeypatch.setattr(limits, 'cores', lambda: 2)
    assert limits.count_cores() == '2 cores'
