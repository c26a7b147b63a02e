"""Sweeps: plans and bad input, and a whole one on a local Ray."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import forks
import pytest

import configs
import plotting
import sweep
from support.run import config_file
from support.scaling import jobs
from support.system import limits
from support.system.command_line import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def make_run(folder, steps, metrics, **config):
    """Leave in `folder` what a run of so many steps leaves."""
    folder.mkdir(parents=True)
    config = configs.parse(
        [
            '--logdir',
            str(folder),
            '--steps',
            str(steps),
            *(
                word
                for name, value in config.items()
                for word in (f'--{name}', str(value))
            ),
        ]
    )
    config_file.write(config, folder)
    (folder / 'metrics.jsonl').write_text(metrics)


def line(step, **values):
    return json.dumps(dict(step=step, **values)) + '\n'


def plan(root, *flags):
    words = ['--root', str(root), '--tasks', 'dummy_continuous', *flags]
    end = words.index('--') if '--' in words else len(words)
    return sweep.make_jobs(sweep.parse(words[:end]), words[end + 1 :])


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--tasks', 'dmc21'], ['dmc21', 'dmc20', 'atari', 'dummy']),
        (['--tasks', 'no_task'], ["'no_task'", 'SUITE_NAME']),
        (['--methods', 'dream'], ["'dream'", 'dreamer', 'no_value', 'planet']),
        (['--seeds', '0'], ['--seeds', 'at least 1']),
        (['--seeds', '1.5'], ['--seeds', 'whole number']),
        (['--gpus_per_run', 'nan'], ['--gpus_per_run', 'at least 0']),
        (['--retries', '-1'], ['--retries', 'at least 0']),
        (['--steps', '9'], ['--steps']),
        (['--', '--stepps', '9'], ['--stepps', '--steps']),
        (['--', '--seed', '9'], ['--seed', 'sweep']),
        (['--', '--task=dmc_walker_walk'], ['--task', 'sweep']),
        (['--address', 'nowhere'], ['nowhere', 'HOST:PORT']),
        (['--cpus_per_run', '0', '--gpus_per_run', '0'], ['above 0']),
        (['--cpus_per_run', '1e-5', '--gpus_per_run', '0'], ['1e-05', 'precision']),
        # The discard port: nothing listens there.
        (['--address', '127.0.0.1:9'], ['127.0.0.1:9', 'ray start']),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path, capsys, monkeypatch, flags, words
):
    monkeypatch.setattr(jobs, 'ANSWER', 10)
    if {'--address', '--cpus_per_run'} & set(flags):
        pytest.importorskip('ray')
    root = tmp_path / 'root'
    assert sweep.main(['--root', str(root), '--tasks', 'dummy_continuous', *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]
    assert not root.exists()


def test_an_address_of_something_else_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip('ray')
    monkeypatch.setattr(jobs, 'ANSWER', 10)
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'
        threading.Thread(
            target=lambda: server.accept()[0].sendall(b'220 hi\r\n' * 9), daemon=True
        ).start()
        assert (
            sweep.main(
                [
                    '--root',
                    str(tmp_path / 'root'),
                    '--tasks',
                    'dummy',
                    '--address',
                    address,
                ]
            )
            == 2
        )
    (line,) = capsys.readouterr().err.splitlines()
    assert address in line and 'not Ray' in line


def test_without_ray_it_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    flags = ['--root', str(tmp_path / 'root'), '--tasks', 'dummy_continuous']
    assert sweep.main(flags) == 2
    assert 'pip install -r requirements-sweep.txt' in capsys.readouterr().err
    assert sweep.main([*flags, '--dry_run']) == 0


def test_plan_of_the_papers_comparison(tmp_path, capsys):
    assert (
        sweep.main(
            [
                '--tasks',
                'dmc20',
                '--methods',
                'dreamer',
                'planet',
                '--seeds',
                '5',
                '--root',
                str(tmp_path / 'root'),
                '--dry_run',
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.count('waiting, 0 of 5,000,000 steps') == 200
    # 100 runs of 5e6 steps at 3 hours for 1e6, and as many at 11.
    for words in '200 runs, 0 finished', '7,000.0 GPU hours', 'V100':
        assert words in out
    assert not (tmp_path / 'root').exists()


def test_small_networks_have_no_estimate_of_gpu_hours(tmp_path, capsys):
    flags = ['--tasks', 'dmc_walker_walk', '--root', str(tmp_path), '--dry_run']
    assert sweep.main([*flags, '--', '--configs', 'small', '--steps', '115000']) == 0
    assert capsys.readouterr().out == (
        'dmc_walker_walk/dreamer/0: waiting, 0 of 115,000 steps\n'
        '1 run, 0 finished; 115,000 environment steps left\n'
    )


def test_groups_methods_and_folders(tmp_path):
    assert len(sweep.expand_tasks(['dmc20'])) == 20
    assert {'atari_pong', 'atari_seaquest'} < set(sweep.expand_tasks(['atari']))
    jobs = plan(tmp_path, '--methods', 'planet_contrastive', '--seeds', '2')
    assert [job.name for job in jobs] == [
        f'dummy_continuous/planet_contrastive/{seed}' for seed in range(2)
    ]
    config = jobs[1].config
    assert (config.method, config.representation, config.seed, config.logdir) == (
        'planet',
        'contrastive',
        1,
        str(tmp_path / jobs[1].name),
    )
    # A name with a slash must not make a fourth level of folders.
    sweep_args = sweep.parse(['--root', str(tmp_path), '--tasks', 'gym_A/B-v0'])
    assert sweep.make_jobs(sweep_args, [])[0].name == 'gym_A-B-v0/dreamer/0'


@pytest.mark.parametrize(
    'stated, state',
    [
        ('{"step": 500}', 'finished'),
        ('{"step": 510}', 'finished'),
        ('{"step": 490}', 'waiting'),
        ('{"step"', 'waiting'),
        ('[]', 'waiting'),
        (None, 'waiting'),
    ],
)
def test_finished_runs_are_told_by_their_statement(tmp_path, stated, state):
    name = 'dummy_continuous/dreamer/0'
    # Its last losses were logged, which is not its end.
    metrics = line(500, gradient_step=9)
    make_run(tmp_path / name, 500, metrics, task='dummy_continuous', prefill=100)
    if stated:
        (tmp_path / name / 'finished.json').write_text(stated)
    flags = '--', '--prefill', '100', '--steps'
    (job,) = plan(tmp_path, *flags, '500')
    assert job.state == state and job.step == 500
    # The same run made longer goes on.
    assert plan(tmp_path, *flags, '600')[0].state == 'waiting'


def test_logdir_of_another_configuration_is_refused(tmp_path):
    make_run(
        tmp_path / 'dummy_continuous/dreamer/0',
        500,
        '',
        prefill=100,
        task='dummy_continuous',
        horizon=9,
    )
    with pytest.raises(UserError, match='horizon: 9 -> 15'):
        plan(tmp_path, '--', '--prefill', '100')


def test_time_left_is_that_of_the_last_run_to_end(tmp_path):
    """Two places: 200 s and 600 s, then three runs of 300 s each, in places that are
    free after 200, 500 and 600 s.
    """
    tasks = 'a b c d e'.split()
    jobs = plan(tmp_path, *(f'gym_{x}' for x in tasks), '--', '--steps', '3e4')[1:]
    assert sweep.outlook(jobs) == '5 waiting'
    for job, step, speed in zip(jobs, (10_000, 6_000), (100, 40), strict=False):
        job.state, job.step, job.speed = 'running', step, None
        assert 'left' not in sweep.outlook(jobs)
        job.speed = speed
    for job in jobs[2:]:
        job.step = 9_000  # It was resumed: 21,000 are left, at 70 a second.
    assert sweep.outlook(jobs) == '2 running, 3 waiting, about 15:00 left'
    jobs[0].state = 'failed'
    assert sweep.outlook(jobs) == '1 failed, 1 running, 3 waiting, about 36:15 left'


def test_lines_and_the_table_tell_the_time_left(tmp_path, capsys, monkeypatch):
    run = tmp_path / 'dummy_continuous/dreamer/0'
    rows = [line(100 * i, gradient_step=i, fps=x) for i, x in enumerate((90, 0, 2, 6))]
    rows += [line(300, fps=None), line(310, **{'train/return': 1.0})]
    make_run(run, 900, ''.join(rows), task='dummy_continuous', prefill=100)
    (job,) = plan(tmp_path, '--', '--prefill', '100', '--steps', '900')
    # The harmonic mean of 2 and 6 without the interval of the prefill, which had 90.
    assert sweep.read_progress(run) == (300, None, 3.0) and job.left == 600
    job.state, job.attempts = 'running', 1
    monkeypatch.setattr(sweep, 'REPORT', -1)
    sweep.Lines()([job])
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith('running, 300 of 900 steps, return -, 3:20 left, attempt 1')
    assert last.endswith('1 running, about 3:20 left')
    (left,) = [x for x in sweep.live_table([job]).columns if x.header == 'left']
    assert list(left.cells) == ['3:20']
    (run / 'metrics.jsonl').write_text(rows[0])
    assert sweep.read_progress(run) == (0, None, None)


@pytest.mark.parametrize(
    'code, printed, cause',
    [
        # What a run says, and not the noise around it.
        (
            1,
            'dreamer: stopped: no space\ndreamer: saved; go on\nnoise',
            'stopped: no space',
        ),
        (2, 'I0000 noise\ndreamer: error: unknown task\n', 'error: unknown task'),
        (
            1,
            'dreamer: stopped: The environment of x failed:\nTraceback (most recent\n'
            '  File "x"\nValueError: bad\n\ndreamer: saved; go on\n',
            'environment of x failed: ValueError: bad',
        ),
        (1, 'Traceback (most recent\n  File "x"\nKeyError: 3\n', '1: KeyError: 3'),
        (1, '', 'exit code 1'),
        (-9, 'step 100/500\n', 'killed by SIGKILL'),
        (-11, '', 'killed by SIGSEGV'),
        (0, 'step 100/500\n', 'ended before it had finished'),
    ],
)
def test_a_note_has_the_cause_of_the_last_attempt(tmp_path, code, printed, cause):
    output = tmp_path / 'output.txt'
    before = '--- on host: python\ndreamer: stopped: another cause\n'
    output.write_text(f'{before}--- on host: python\n{printed}')
    note = jobs.cause_of(code, output)
    assert note.endswith(cause) or note.startswith(cause)
    assert '\n' not in note and 'another' not in note


def test_a_run_has_the_threads_that_it_is_given(tmp_path):
    """TensorFlow and Mesa's renderer; the user's number wins."""
    output = tmp_path / 'output.txt'
    shown = f'import os; print(*(os.environ[x] for x in {jobs.THREADS}))'
    code = (
        'import sys; from support.scaling import jobs; '
        f'sys.exit(jobs.run_job([sys.executable, "-c", {shown!r}], {str(output)!r}, 3))'
    )
    env = {k: v for k, v in os.environ.items() if k not in jobs.THREADS}
    for more, numbers in ({}, '3 3'), ({'LP_NUM_THREADS': '0'}, '3 0'):
        subprocess.run(
            [sys.executable, '-c', code], cwd=ROOT, env=env | more, check=True
        )
        assert output.read_text().splitlines()[-1] == numbers


@pytest.mark.slow
def test_a_cluster_that_answers_is_taken(tmp_path, monkeypatch):
    pytest.importorskip('ray')
    monkeypatch.setenv('RAY_AUTH_MODE', 'disabled')
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    command = (
        f'start --head --port {port} --num-cpus 1 --include-dashboard false --block'
    )
    program = pathlib.Path(sys.executable).with_name('ray')
    with (tmp_path / 'printed').open('w') as file:
        process = subprocess.Popen(
            [program, *command.split()], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        printed = (tmp_path / 'printed').read_text
        forks.wait_for(lambda: 'runtime started' in printed(), process)
        jobs.check_address(f'127.0.0.1:{port}')
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize('words', [[b'--root', b'r\xff'], [b'--', b'--task=\xff']])
def test_names_that_are_not_utf8_are_named(tmp_path, words):
    """Of Ray's own error nobody could tell which it is."""
    root = [b'--root', b'r'] if b'--root' not in words else []
    done = subprocess.run(
        [sys.executable, ROOT / 'sweep.py', b'--tasks', b'dummy', *root, *words],
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words[-1].replace(b'\xff', b'\\udcff') in line and b'not UTF-8' in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs affinity')
def test_runs_share_the_cores_that_the_sweep_may_use():
    pytest.importorskip('ray')
    code = (
        'import os, sweep; from support.scaling import jobs; '
        'from support.system import limits; '
        'os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); '
        'limits.memory = lambda: 2**30; '
        "args = sweep.parse('--tasks dummy --root x --gpus_per_run 0'.split()); "
        'ray = jobs.connect(args); '
        "print(ray.cluster_resources()['CPU'], args.replay_memory)"
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.stdout.split() == ['1.0', str(2**29)], done.stderr


def processes(logdir):
    """Ids of the processes that train in `logdir`."""
    found = []
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
        try:
            words = (folder / 'cmdline').read_bytes().split(b'\0')
        except OSError:
            continue
        if str(logdir).encode() in words:
            found.append(int(folder.name))
    return found


def start(root, *flags):
    """A sweep on two cores, which two runs share."""
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / 'sweep.py'),
            '--root',
            str(root),
            '--gpus_per_run',
            '0',
            '--cpus_per_run',
            str(limits.cores() / 2),
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


TASKS = 'dummy_continuous', 'gym_Pendulum-v1'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='looks for processes in /proc')
def test_sweep_with_killed_runs_an_interrupt_and_a_task_that_fails(tmp_path):
    """The others finish between two training phases, which is their end as well."""
    pytest.importorskip('ray')
    flags = f'--tasks {" ".join(TASKS)} gym_NoSuchThing-v0 --methods planet_reward'
    flags += ' --seeds 1 -- --configs debug --steps 250 --time_limit 50'
    flags += f' --eval_every 100 --save_every 100 {" ".join(forks.PLANS)}'
    first, second = (tmp_path / task / 'planet_reward/0' for task in TASKS)
    process = start(tmp_path, *flags.split())
    forks.wait_for((first / 'checkpoints/checkpoint').exists, process)
    # What runs saves, what has not begun waits, and the same command goes on.
    # A batch system's word comes first, and its SIGTERM soon.
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and 'stopped' in out, out
    assert ' waiting' in out.splitlines()[-1] and 'Cancelled' not in out, out
    assert not processes(first)

    process = start(tmp_path, *flags.split())
    for logdir in first, second:
        forks.wait_for(lambda: processes(logdir), process)  # noqa: B023
        (victim,) = processes(logdir)
        if logdir == second:
            # Of Ray's process, as for lack of memory; its run goes with it.
            victim = int(pathlib.Path(f'/proc/{victim}/stat').read_text().split()[3])
        os.kill(victim, signal.SIGKILL)
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 1 and out.endswith('2 finished, 1 failed\n'), out
    again = [line for line in out.splitlines() if 'attempt 2' in line]
    assert {line.split(': ')[0].split()[-1] for line in again} == {
        str(folder.relative_to(tmp_path)) for folder in (first, second)
    }, out
    (failed,) = [line for line in out.splitlines() if ': failed, ' in line]
    assert "dreamer: error: Unknown task 'gym_NoSuchThing" in failed
    output = tmp_path / 'output/dummy_continuous.planet_reward.0.txt'
    assert 'resumed at step' in output.read_text()
    for folder in first, second:
        config = json.loads((folder / 'config.json').read_text())['config']
        method = f'{config["method"]}_{config["representation"]}'
        assert folder.parts[-3:] == (config['task'], method, str(config['seed']))
        assert f'{folder.relative_to(tmp_path)}: finished, 250 of 250' in out
        assert sweep.read_progress(folder)[0] == 250

    assert plotting.main(['--logdir', str(tmp_path), '--out', str(tmp_path / 'p')]) == 0
    rows = (tmp_path / 'p/scores.csv').read_text().splitlines()[1:]
    assert {tuple(row.split(',')[:3]) for row in rows} == {
        (task, 'planet_reward', '1') for task in TASKS
    }
    assert (tmp_path / 'p/curves.png').stat().st_size > 10_000
