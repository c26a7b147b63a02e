"""Tests of the simulators' processes, with real processes and real faults."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from support.acting import workers
from support.acting.collector import Collector
from support.system import signals

ROOT = pathlib.Path(__file__).resolve().parents[2]
KWARGS = {'action_repeat': 1, 'time_limit': 50}


@pytest.fixture
def worker():
    worker = workers.Worker('dummy_continuous', KWARGS)
    yield worker
    worker.close()


def episode(worker, seed=0, steps=50):
    """Play random actions; return images, rewards and the ends of the steps."""
    worker.start_reset(seed)
    images, rewards, ends = [worker.result()[0]['image']], [], []
    worker.action_space.seed(seed)
    for _ in range(steps):
        worker.start_step(worker.action_space.sample())
        obs, reward, terminated, truncated, info = worker.result()
        assert info['simulator_steps'] == 1
        images.append(obs['image'])
        rewards.append(reward)
        ends.append((terminated, truncated))
    return np.array(images), rewards, ends


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def hang(worker):
    """Stop the process of a worker while it is asked, and close the worker."""
    worker.timeout = 0.5
    os.kill(worker.pid, signal.SIGSTOP)
    worker.start_reset(0)
    with pytest.raises(workers.WorkerError, match='no answer within 0.5 s'):
        worker.result()
    worker.close()


class TestWorker:
    def test_same_episode_as_in_this_process(self, worker):
        images, rewards, ends = episode(worker)
        local = workers.LocalWorker('dummy_continuous', KWARGS)
        expected = episode(local)
        np.testing.assert_array_equal(images, expected[0])
        assert (rewards, ends) == expected[1:]
        assert ends == [(False, False)] * 49 + [(False, True)]
        assert worker.observation_space == local.observation_space
        assert worker.action_space == local.action_space

    def test_calls_that_wait(self, worker):
        """`reset` and `step` are their halves together, in either kind of worker."""
        local = workers.LocalWorker('dummy_continuous', KWARGS)
        action = local.action_space.sample()
        local.start_reset(3)
        first = local.result()[0]['image']
        local.start_step(action)
        second, *expected = local.result()
        for env in worker, local:
            np.testing.assert_array_equal(env.reset(seed=3)[0]['image'], first)
            image, *rest = env.step(action)
            np.testing.assert_array_equal(image['image'], second['image'])
            assert rest == expected

    def test_error_brings_its_traceback(self, worker):
        worker.start_reset(0)
        worker.result()
        worker.start_step(np.zeros(3, np.float32))
        with pytest.raises(workers.WorkerError) as caught:
            worker.result()
        message = str(caught.value)
        assert 'dummy_continuous' in message
        assert 'Traceback' in message and 'simulator.py' in message
        assert 'broadcast' in message
        episode(worker)  # The process lives on.

    @pytest.mark.parametrize('kind', [workers.Worker, workers.LocalWorker])
    @pytest.mark.parametrize('task', ['nonsense', 'dummy_nonsense'])
    def test_unknown_task(self, kind, task):
        with pytest.raises(ValueError) as caught:
            kind(task)
        assert str(caught.value).startswith(f"Unknown task '{task}'")
        assert '\n' not in str(caught.value)

    def test_unknown_argument(self):
        with pytest.raises(workers.WorkerError, match='Traceback(.|\n)*nonsense'):
            workers.Worker('dummy_continuous', {'nonsense': 1})

    def test_no_renderer(self):
        with pytest.raises(RuntimeError, match='No OpenGL rendering backend') as caught:
            workers.Worker('dmc_pendulum_swingup', env={'MUJOCO_GL': 'disable'})
        assert not isinstance(caught.value, workers.WorkerError)
        assert '\n' not in str(caught.value)

    def test_killed_process(self, worker):
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(workers.WorkerError, match='killed by SIGKILL'):
            worker.start_reset(0)
            worker.result()
        with pytest.raises(workers.WorkerError, match='killed by SIGKILL'):
            worker.start_reset(0)

    def test_process_that_ends(self, tmp_path):
        (tmp_path / 'gymnasium.py').write_text('raise SystemExit(3)')
        with pytest.raises(workers.WorkerError, match='ended with exit code 3'):
            workers.Worker('dummy_continuous', env={'PYTHONPATH': str(tmp_path)})

    def test_a_start_may_take_longer_than_an_answer(self):
        worker = workers.Worker('dummy_continuous', KWARGS, timeout=0.01)
        worker.timeout = 60
        episode(worker, steps=1)
        worker.close()

    def test_silent_process(self):
        worker = workers.Worker('dummy_continuous', KWARGS)
        hang(worker)
        assert is_gone(worker.pid)

    def test_restart(self, worker):
        before = episode(worker, seed=3)
        dead = worker.pid
        os.kill(dead, signal.SIGKILL)
        worker.restart()
        assert worker.pid != dead and is_gone(dead)
        np.testing.assert_array_equal(episode(worker, seed=3)[0], before[0])

    def test_close_leaves_no_process(self, worker):
        pid = worker.pid
        worker.close()
        assert is_gone(pid)
        worker.close()

    def test_close_of_a_process_that_hangs(self, worker, monkeypatch):
        wait = worker._process.wait
        monkeypatch.setattr(worker._process, 'wait', lambda t=None: wait(t and 0.1))
        os.kill(worker.pid, signal.SIGSTOP)
        worker.close()
        assert is_gone(worker.pid)

    def test_signals_are_left_to_the_parent(self, worker):
        for number in signals.ASKING + signals.TELLING:
            os.kill(worker.pid, number)
        episode(worker)

    def test_time_in_which_the_parent_was_suspended_does_not_count(self):
        """Together with the worker, as by a terminal or a batch system."""
        script = (
            'import os, subprocess\n'
            'from support.acting import workers\n'
            'worker = workers.Worker("dummy_continuous")\n'
            'worker.timeout = 6\n'
            'os.kill(worker.pid, 19)\n'
            'worker.start_reset(0)\n'
            'signals = f"sleep 2; kill -STOP {os.getpid()}; sleep 7; "\n'
            'signals += f"kill -CONT {os.getpid()}; sleep 1; kill -CONT {worker.pid}"\n'
            'subprocess.Popen(["sh", "-c", signals])\n'
            'print(worker.result()[0]["image"].shape)\n'
            'worker.close()\n'
        )
        out = subprocess.check_output([sys.executable, '-c', script], cwd=ROOT)
        assert out == b'(64, 64, 3)\n'


KEEPER = """
import multiprocessing
import os
import pathlib
import signal
import subprocess
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

PIDS = pathlib.Path(__file__).with_name('pids')


class Keeper(gymnasium.Env):
    observation_space = Box(0, 255, (64, 64, 3), np.uint8)
    action_space = Discrete(2)

    def __init__(self, number=signal.SIGTERM, fork=False, way='ends'):
        self.number, self.fork, self.way = number, fork, way
        self.start()

    def start(self):
        if self.way == 'groups':
            self.process = subprocess.Popen(['sleep', '1000'], process_group=0)
        elif self.fork:
            self.process = multiprocessing.get_context('fork').Process(
                target=time.sleep, args=(1000,), daemon=True
            )
            self.process.start()
        else:
            self.process = subprocess.Popen(['sleep', '1000'])
        with open(PIDS, 'a') as file:
            print(self.process.pid, file=file)

    def end(self):
        os.kill(self.process.pid, self.number)
        self.process.join() if self.fork else self.process.wait()

    def reset(self, seed=None, options=None):
        self.end()
        self.start()
        self.steps = 0
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action):
        self.steps += 1
        if self.way == 'step_fails':
            raise KeyError('nonsense')
        return np.zeros((64, 64, 3), np.uint8), 1.0, self.steps == 20, False, {}

    def close(self):
        if self.way == 'hangs':
            time.sleep(1000)
        self.end()
        if self.way == 'fails':
            raise KeyError('nonsense')


gymnasium.register('my/Keeper-v1', Keeper)
for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1:
    for fork in False, True:
        gymnasium.register(
            f'my/{number.name}-v{fork:d}', Keeper, kwargs=dict(number=number, fork=fork)
        )
for way in 'hangs', 'fails', 'step_fails', 'groups':
    gymnasium.register(f'my/{way}-v1', Keeper, kwargs=dict(way=way))
gymnasium.register('my/forks-v1', Keeper, kwargs=dict(fork=True))
"""


@pytest.fixture
def keeper(tmp_path, monkeypatch):
    """Make workers whose environments have a process of their own, which they end when
    they are reset or closed; and tells the ids of all those processes.
    """
    (tmp_path / 'keeper.py').write_text(KEEPER)
    monkeypatch.chdir(tmp_path)

    def make(name, **kwargs):
        kwargs = {'timeout': 20, **kwargs}
        return workers.Worker(f'gym_my/{name}', {'gym_import': 'keeper'}, **kwargs)

    def pids():
        return list(map(int, (tmp_path / 'pids').read_text().split()))

    yield make, pids
    for pid in pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def until_gone(pid, seconds=20):
    """Wait until a process is gone, which whoever adopted it may take up late."""
    deadline = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return is_gone(pid)


class TestChildrenOfEnvironments:
    @pytest.mark.parametrize('fork', [0, 1])
    @pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'])
    def test_die_of_signals(self, keeper, name, fork):
        make, pids = keeper
        worker = make(f'{name}-v{fork}')
        # The worker itself lives on.
        os.kill(worker.pid, getattr(signal, name))
        for seed in range(2):
            worker.start_reset(seed)
            worker.result()
        worker.close()
        assert len(pids()) >= 3 and all(map(until_gone, pids()))

    def test_end_with_a_worker_that_is_killed(self, keeper):
        """Though nobody asks the worker for anything."""
        make, pids = keeper
        for name in 'Keeper-v1', 'forks-v1', 'groups-v1':
            worker = make(name)
            assert not is_gone(pids()[-1])
            os.kill(worker.pid, signal.SIGKILL)
            assert all(map(until_gone, pids()))
            worker.close()

    @pytest.mark.parametrize('then', ['kill_run', 'hang_and_kill_run'])
    def test_end_with_a_run_that_is_killed(self, keeper, tmp_path, then):
        _, pids = keeper
        script = (
            'import os, time\n'
            'from support.acting import workers\n'
            'kwargs = dict(gym_import="keeper")\n'
            'names = "Keeper-v1", "forks-v1", "groups-v1"\n'
            'made = [workers.Worker(f"gym_my/{name}", kwargs) for name in names]\n'
            f'hang = {then == "hang_and_kill_run"}\n'
            '[os.kill(worker.pid, 19) for worker in made if hang]\n'
            'print(*(worker.pid for worker in made), flush=True)\n'
            'time.sleep(1000)\n'
        )
        process = subprocess.Popen(
            [sys.executable, '-c', script],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        made = list(map(int, process.stdout.readline().split()))
        assert len(made) == 3 and sum(not is_gone(pid) for pid in pids()) == 3
        process.kill()
        # All of them hold the other end of this pipe.
        assert process.communicate(timeout=60) == ('', None)
        assert all(until_gone(pid) for pid in [*made, *pids()])

    def test_are_ended_by_close_and_before_a_restart(self, keeper):
        make, pids = keeper
        worker = make('Keeper-v1')
        # Its images are looked at when it is made, by a reset.
        *ended, first = pids()
        assert all(map(is_gone, ended)) and not is_gone(first)
        worker.restart()
        assert is_gone(first) and not is_gone(pids()[-1])
        worker.close()
        assert all(map(is_gone, pids()))

    def test_are_ended_after_an_error(self, keeper):
        make, pids = keeper
        worker = make('step_fails-v1')
        collector = Collector([worker], seed=0)
        collector.FAILURES = 2
        with pytest.raises(workers.WorkerError, match='nonsense'):
            for _ in range(3):
                collector.step(lambda *_: np.eye(2)[:1])
        worker.close()
        assert len(pids()) >= 4 and all(map(is_gone, pids()))

    def test_are_ended_with_several_at_the_same_time(self, keeper, monkeypatch):
        monkeypatch.setattr(workers, 'CLOSING', 2)
        make, pids = keeper
        group = [make('hangs-v1') for _ in range(3)]
        start = time.monotonic()
        workers.close_workers(group)
        # One after the other they would take 6.
        assert 2 <= time.monotonic() - start < 5.5
        assert all(until_gone(pid) for pid in [*pids(), *(w.pid for w in group)])

    def test_are_ended_with_a_worker_that_hangs(self, keeper):
        make, pids = keeper
        worker = make('Keeper-v1')
        hang(worker)
        assert all(map(until_gone, pids()))

    @pytest.mark.parametrize('kind', ['process', 'none'])
    def test_a_close_that_fails_is_a_warning(self, keeper, capfd, kind):
        _, pids = keeper
        kwargs = {'gym_import': 'keeper'}
        group = workers.make_workers('gym_my/fails-v1', 2, kwargs, kind)
        workers.close_workers(group)
        workers.close_workers(group)
        assert len(pids()) >= 2 and all(map(is_gone, pids()))
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 2 and 'Traceback' not in ''.join(lines)
        assert all('gym_my/fails-v1 did not close: KeyError' in line for line in lines)


class TestLocalWorker:
    def test_error_brings_its_traceback(self):
        worker = workers.LocalWorker('dummy_continuous', KWARGS)
        worker.start_reset(0)
        worker.result()
        worker.start_step(np.zeros(3, np.float32))
        with pytest.raises(workers.WorkerError, match='Traceback(.|\n)*broadcast'):
            worker.result()
        worker.restart()
        episode(worker)
        worker.close()


class TestMakeWorkers:
    def test_several(self):
        group = workers.make_workers('dummy_continuous', 3, KWARGS)
        assert len({worker.pid for worker in group}) == 3
        for index, worker in enumerate(group):
            worker.start_reset(index % 2)
        images = [worker.result()[0]['image'] for worker in group]
        assert (images[0] == images[2]).all() and (images[0] != images[1]).any()
        for worker in group:
            worker.close()
        assert all(is_gone(worker.pid) for worker in group)

    def test_none(self):
        group = workers.make_workers('dummy_continuous', 2, KWARGS, parallel='none')
        assert all(isinstance(worker, workers.LocalWorker) for worker in group)
        np.testing.assert_array_equal(episode(group[0])[0], episode(group[1])[0])

    def test_unknown_parallelism(self):
        with pytest.raises(ValueError, match="'threads'.*'process' or 'none'"):
            workers.make_workers('dummy_continuous', 1, parallel='threads')

    def test_failure_closes_all(self, monkeypatch):
        started = []
        start = workers.Worker._start
        monkeypatch.setattr(
            workers.Worker, '_start', lambda self: started.append(self) or start(self)
        )
        with pytest.raises(ValueError, match='dummy_nonsense'):
            workers.make_workers('dummy_nonsense', 2)
        assert len(started) == 2
        assert all(is_gone(worker.pid) for worker in started)

    def environments(self, group):
        """Return the environment variables of the workers; close them."""
        variables = []
        for worker in group:
            text = pathlib.Path(f'/proc/{worker.pid}/environ').read_text()
            pairs = (line.split('=', 1) for line in text.split('\0') if '=' in line)
            variables.append(dict(pairs))
            worker.close()
        return variables

    @pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
    def test_devices_are_dealt_out(self, monkeypatch):
        monkeypatch.delenv('MUJOCO_EGL_DEVICE_ID', raising=False)
        group = workers.make_workers('dummy_continuous', 3, devices=[4, 6])
        cards = [v['MUJOCO_EGL_DEVICE_ID'] for v in self.environments(group)]
        assert cards == ['4', '6', '4']
        monkeypatch.setenv('MUJOCO_EGL_DEVICE_ID', '9')
        group = workers.make_workers('dummy_continuous', 1, devices=[4, 6])
        cards = [v['MUJOCO_EGL_DEVICE_ID'] for v in self.environments(group)]
        assert cards == ['9']

    def test_renders_where_egl_has_fewer_gpus_than_it_was_dealt(self, monkeypatch):
        for name in 'MUJOCO_GL', 'MUJOCO_EGL_DEVICE_ID':
            monkeypatch.delenv(name, raising=False)
        group = workers.make_workers('dmc_pendulum_swingup', 1, devices=[7])
        group[0].start_reset(0)
        assert group[0].result()[0]['image'].std() > 10
        workers.close_workers(group)

    def test_control_suite_renders(self, monkeypatch):
        monkeypatch.delenv('MUJOCO_GL', raising=False)
        group = workers.make_workers('dmc_cartpole_swingup', 2)
        for worker in group:
            worker.start_reset(5)
        images = [worker.result()[0]['image'] for worker in group]
        for worker in group:
            worker.close()
        assert images[0].shape == (64, 64, 3) and images[0].std() > 10
        np.testing.assert_array_equal(images[0], images[1])
        assert 'MUJOCO_GL' not in os.environ

    def test_no_renderer(self, monkeypatch):
        monkeypatch.setenv('MUJOCO_GL', 'disable')
        with pytest.raises(RuntimeError, match='MUJOCO_GL=disable is set'):
            workers.make_workers('dmc_cartpole_swingup', 1)


class TestCollector:
    def collect(self, episodes, action, repeat=1):
        kwargs = {**KWARGS, 'action_repeat': repeat}
        group = [workers.LocalWorker('dummy_discrete', kwargs) for _ in range(2)]
        group[0].action_space.seed(0)
        collector = Collector(group, seed=0)
        steps, ended = 0, []
        while len(ended) < episodes:
            taken, more = collector.step(lambda *_: [action(group), action(group)])
            steps += taken
            ended += more
        return steps, ended

    def test_discount_is_zero_where_an_episode_terminated(self):
        _, episodes = self.collect(30, lambda group: group[0].action_space.sample())
        died = [len(episode['reward']) < 1 + 50 for episode in episodes]
        assert 0 < sum(died) < len(died)
        for dead, episode in zip(died, episodes, strict=True):
            assert (episode['discount'][:-1] == 1).all()
            assert episode['discount'][-1] == (not dead)

    def test_actions_are_one_hot_but_the_first(self):
        _, episodes = self.collect(4, lambda group: group[0].action_space.sample())
        for episode in episodes:
            assert episode['action'].dtype == np.float32
            assert not episode['action'][0].any()
            assert set(map(tuple, episode['action'][1:])) <= set(map(tuple, np.eye(5)))

    def test_simulator_steps(self):
        steps, episodes = self.collect(2, lambda group: np.eye(5)[4], repeat=3)
        assert steps == 2 * 50
        assert [len(episode['action']) for episode in episodes] == [18, 18]

    def test_action_that_is_not_one_hot(self):
        with pytest.raises(workers.WorkerError, match='not a one-hot float32 vector'):
            self.collect(1, lambda group: np.zeros(5))

    def act(self, collector, steps):
        """Step with fixed actions; return the episodes that ended."""
        policy = lambda _, is_first: np.zeros((len(is_first), 2))  # noqa: E731
        return [one for _ in range(steps) for one in collector.step(policy)[1]]

    def test_failed_environments_are_restarted_and_their_episodes_dropped(self, capfd):
        group = workers.make_workers('dummy_continuous', 2, KWARGS)
        group[1].timeout = 5
        collector = Collector(group, seed=0)
        self.act(collector, 20)
        os.kill(group[0].pid, signal.SIGKILL)
        self.act(collector, 5)
        os.kill(group[1].pid, signal.SIGSTOP)
        pids = [worker.pid for worker in group]
        episodes = self.act(collector, 50)
        assert collector.dropped == 2
        assert not is_gone(group[1].pid) and is_gone(pids[1])
        warnings = capfd.readouterr().err
        assert 'environment 0 failed and is restarted (1 in a row)' in warnings
        assert 'killed by SIGKILL' in warnings and 'no answer within 5 s' in warnings
        assert [len(one['reward']) for one in episodes] == [51]
        assert episodes[0]['origin'].tolist() == [0, 1, 50]
        for worker in group:
            worker.close()

    def test_environment_that_always_fails_ends_the_run_with_its_traceback(self):
        group = workers.make_workers('dummy_continuous', 1, KWARGS)
        collector = Collector(group, seed=0)
        with pytest.raises(workers.WorkerError) as error:
            for _ in range(9):
                collector.step(lambda *_: np.zeros((1, 3)))
        assert 'failed 5 times in a row' in str(error.value)
        assert 'Traceback' in str(error.value) and 'broadcast' in str(error.value)
        assert collector.dropped == 5 and collector.started == [5]
        group[0].close()

    def test_what_others_finish_is_kept_when_one_fails_for_good(self):
        group = workers.make_workers('dummy_continuous', 2, KWARGS, parallel='none')
        collector = Collector(group, seed=0)
        collector.FAILURES = 1
        assert self.act(collector, 49) == []

        def fail():
            raise RuntimeError('broken')

        group[1].start_step = lambda action: setattr(group[1], '_pending', fail)
        steps, ended = collector.step(lambda *_: np.zeros((2, 2)))
        assert steps == 1 and [len(one['reward']) for one in ended] == [51]
        with pytest.raises(workers.WorkerError, match='failed 1 times in a row'):
            collector.step(lambda *_: np.zeros((2, 2)))

    def test_failures_in_a_row_end_with_a_finished_episode(self):
        group = workers.make_workers('dummy_continuous', 1, KWARGS, parallel='none')
        collector = Collector(group, seed=0)
        for _ in range(6):
            collector.step(lambda *_: np.zeros((1, 3)))
            assert len(self.act(collector, 50)) == 1
        assert collector.dropped == 6

    @pytest.mark.parametrize('reward', [1e39, -1e39, np.inf, np.nan, np.ones(2)])
    def test_reward_that_no_float32_holds_drops_the_episode(self, capfd, reward):
        group = workers.make_workers('dummy_continuous', 1, KWARGS, parallel='none')
        collector = Collector(group, seed=0)
        step = group[0]._env.step
        self.act(collector, 1)
        group[0]._env.step = lambda action: (step(action)[0], reward, *step(action)[2:])
        self.act(collector, 1)
        assert collector.dropped == 1
        assert f'reward {reward}' in capfd.readouterr().err

    @pytest.mark.parametrize('reward', [np.ones(1), [[0.5]], np.float16(2), 3, 3e38])
    def test_arrays_of_one_number_are_rewards(self, reward):
        group = workers.make_workers('dummy_continuous', 1, KWARGS, parallel='none')
        step = group[0]._env.step
        group[0]._env.step = lambda action: (step(action)[0], reward, *step(action)[2:])
        (episode,) = self.act(Collector(group, seed=0), 25)
        assert episode['reward'].dtype == np.float32
        assert (episode['reward'][1:] == np.float32(np.max(reward))).all()

    def test_restart_that_fails_is_a_failure(self, monkeypatch):
        group = workers.make_workers('dummy_continuous', 1, KWARGS)
        monkeypatch.setattr(group[0], '_task', 'dummy_nonsense')
        os.kill(group[0].pid, signal.SIGKILL)
        with pytest.raises(workers.WorkerError, match='dummy_nonsense'):
            Collector(group, seed=0).step(lambda *_: np.zeros((1, 2)))

    @pytest.mark.parametrize('parallel', ['none', 'process'])
    def test_groups_taken_in_turn_record_the_same_episodes(self, parallel):
        """Of three environments, whatever the groups: the action depends on the image
        alone. All steps are counted once.
        """

        def policy(observation, is_first):
            sizes.append(len(is_first))
            return observation['image'][:, 20, [20, 40], 0] / 128 - 1

        found = {}
        for groups in 1, 2:
            sizes, steps = [], 0
            envs = workers.make_workers('dummy_continuous', 3, KWARGS, parallel)
            collector = Collector(envs, seed=0, groups=groups)
            episodes = found[groups] = {}
            while len(episodes) < 6:
                taken, ended = collector.step([policy, policy][:groups])
                steps += taken
                episodes.update((tuple(one['origin']), one) for one in ended)
            assert steps == 6 * 50
            assert sizes[:2] == ([3, 3] if groups == 1 else [2, 1])
            for env in envs:
                env.close()
        assert found[1].keys() == found[2].keys()
        for origin, episode in found[1].items():
            for key, value in episode.items():
                np.testing.assert_array_equal(value, found[2][origin][key], key)

    def test_one_group_computes_while_the_policy_chooses_for_the_other(self):
        """And an episode that has begun, but of which no step was seen, is not lost
        where the run is resumed then.
        """
        calls = []

        class Recording(workers.LocalWorker):
            def start_step(self, action):
                calls.append((self.name, 'starts'))
                super().start_step(action)

            def result(self):
                calls.append((self.name, 'is waited for'))
                return super().result()

        def policy(observation, is_first):
            calls.append('policy')
            return np.zeros((1, 2))

        envs = [Recording('dummy_continuous', KWARGS) for _ in range(2)]
        for number, env in enumerate(envs):
            env.name = number
        collector = Collector(envs, seed=0, groups=2)
        assert collector.step(policy) == (0, [])
        assert [collector.step(policy)[0] for _ in range(4)] == [1] * 4
        turn = [
            'policy',
            (0, 'starts'),
            (1, 'is waited for'),
            'policy',
            (1, 'starts'),
            (0, 'is waited for'),
        ]
        assert calls[-9:] == turn + turn[:3]
        assert collector.unfinished == {(0, 0): 2, (1, 0): 2}
        assert collector.to_start == [1, 1]
        ended = []
        while len(ended) < 2:
            ended += collector.step(policy)[1]
        # The first has already begun its next one.
        assert not collector.unfinished
        assert collector.started == [2, 1] and collector.to_start == [1, 1]
        # A run that had more environments before.
        collector.started.append(7)
        assert collector.to_start == [1, 1, 7]

    def test_seeds_of_episodes_fit_into_31_bits(self):
        seeds = []

        class Recording(workers.LocalWorker):
            def start_reset(self, seed=None):
                seeds.append(seed)
                super().start_reset(seed)

        kwargs = {**KWARGS, 'time_limit': 1}
        envs = [Recording('dummy_continuous', kwargs) for _ in range(4)]
        self.act(Collector(envs, seed=2**63 - 1), 25)
        assert len(set(seeds)) == 100 and all(type(seed) is int for seed in seeds)
        assert 0 <= min(seeds) and 2**30 < max(seeds) < 2**31

    def test_episodes_go_on_by_index(self):
        """An episode is a function of the seed, the environment and the index."""
        images = {}
        for first in (0, 1):
            group = workers.make_workers('dummy_continuous', 2, KWARGS, parallel='none')
            collector = Collector(group, seed=3)
            collector.started = [first, first]
            assert not collector.unfinished
            self.act(collector, 1)
            assert len(collector.unfinished) == 2
            for one in self.act(collector, 100):
                assert one['origin'][2] == 50
                images.setdefault(tuple(one['origin'][:2]), []).append(
                    one['image'][0].tobytes()
                )
        assert set(images) == {(env, i) for env in (0, 1) for i in (0, 1, 2)}
        assert len(images[0, 1]) == 2 and len(set(images[0, 1])) == 1
        assert len({image for same in images.values() for image in same}) == 6


class TestProcesses:
    SCRIPT = """
import sys
print('main script', flush=True)
sys.path.insert(0, {root!r})
from support.acting import workers
worker = workers.make_workers({task!r}, 1)[0]
worker.start_reset(0)
worker.result()
worker.start_step(worker.action_space.sample())
print('reward', worker.result()[1], flush=True)
{then}
"""

    def start(self, folder, task='dummy_continuous', then='worker.close()', env=None):
        script = folder / 'script.py'
        script.write_text(self.SCRIPT.format(root=str(ROOT), task=task, then=then))
        return subprocess.Popen(
            [sys.executable, 'script.py'],
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            text=True,
        )

    @pytest.mark.parametrize('task', ['dummy_continuous', 'dmc_pendulum_swingup'])
    def test_no_tensorflow_and_no_main_script(self, tmp_path, task):
        """The caller may be anywhere, and have unrelated files of our names."""
        (tmp_path / 'workers.py').write_text('raise SystemExit("wrong module")')
        stubs = tmp_path / 'stubs'
        stubs.mkdir()
        (stubs / 'tensorflow.py').write_text('raise SystemExit("TensorFlow imported")')
        process = self.start(tmp_path, task, env={'PYTHONPATH': str(stubs)})
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        lines = output.splitlines()
        assert lines[0] == 'main script' and lines[1].startswith('reward')
        assert len(lines) == 2

    def test_worker_ends_with_its_killed_parent(self, tmp_path):
        then = 'print(worker.pid, flush=True); import time; time.sleep(1000)'
        process = self.start(tmp_path, then=then)
        lines = [process.stdout.readline() for _ in range(3)]
        assert not is_gone(int(lines[-1]))
        process.kill()
        # The worker holds the other end of this pipe, until it ends.
        process.communicate(timeout=300)

    def test_worker_that_hangs_ends_with_its_killed_parent(self, tmp_path):
        then = (
            'print(worker.pid, flush=True); import os, time\n'
            'os.kill(worker.pid, 19); time.sleep(1000)'
        )
        process = self.start(tmp_path, then=then)
        for _ in range(3):
            process.stdout.readline()
        process.kill()
        # The worker holds the other end of this pipe, until it ends.
        process.communicate(timeout=300)

    def test_worker_ends_with_a_forgetful_parent(self, tmp_path):
        process = self.start(tmp_path, then='')
        process.communicate(timeout=300)
        assert process.returncode == 0
