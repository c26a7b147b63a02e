"""The loop: what it counts, with several environments, and what it traces."""

import collections
import os
import signal
import time

import forks
import pytest
import tensorflow as tf

import agent
import configs
import dreamer
import tools
from support.acting import workers
from support.run import checkpoints
from support.storage import episodes, finished, replay
from support.storage.metrics import read as read_metrics
from support.system import faults


class Counting(workers.LocalWorker):
    """Count the simulator's steps itself."""

    steps = 0

    def result(self):
        result = super().result()
        if len(result) == 5:
            self.steps += result[4]['simulator_steps']
        return result


@pytest.fixture
def quick(monkeypatch):
    """Updates that only count, with a loss that tells one batch from another, and first
    call `quick['then']`, if it is set, with how many there were: what is tested is
    around them.
    """
    called = {}
    build = agent.Dreamer.__init__

    def init(self, *args):
        def train(batch):
            called.get('then', lambda _: None)(self.gradient_step)
            self.gradient_step += 1
            images = tf.cast(batch['image'], tf.float32)
            return {'model_loss': tf.reduce_mean(images)}

        build(self, *args)
        self.train = train

    monkeypatch.setattr(agent.Dreamer, '__init__', init)
    return called


@pytest.mark.slow
@pytest.mark.parametrize('envs', [1, 4])
def test_steps_and_updates_are_counted_exactly(tmp_path, quick, envs):
    flags = (
        '--task dummy_continuous --configs debug --steps 171 '
        '--prefill 50 --time_limit 30 --action_repeat 2 '
        '--train_every 25 --train_steps 2 --pretrain 3 '
        f'--envs {envs} --precision 32'
    )
    config = configs.parse(['--logdir', str(tmp_path), *flags.split(), *forks.QUICK])
    kwargs = dict(action_repeat=2, time_limit=30)
    group = [Counting(config.task, kwargs) for _ in range(envs)]
    # One of them ends three times as often, and must not count more for that.
    evaluation = [
        workers.LocalWorker(config.task, kwargs | {'time_limit': limit})
        for limit in (10, 30)
    ]
    run = dreamer.Run(config, group, evaluation)
    made = collections.Counter()
    train = run.agent.train
    run.agent.train = lambda batch: made.update(updates=1) or train(batch)
    run.loop()
    run.logger.close()
    # At most one step more of every environment than was asked for.
    assert 171 <= run.step < 171 + 2 * envs
    assert run.step == sum(env.steps for env in group)
    assert run.gradient_step == made['updates']
    start = run.agent.train_start
    assert start >= 50
    assert run.gradient_step == 3 + 2 * ((run.step - start) // 25)
    lines = list(read_metrics(tmp_path))
    assert {line['test/length'] for line in lines if 'test/length' in line} == {10}
    assert 'gradient_step' in lines[-1] and lines[-1]['step'] == run.step


def phases(config, lengths):
    """Steps at which phases are due, of episodes with so many steps."""
    phase, step, seen = tools.Phase(), 0, []
    for count, length in enumerate(lengths):
        for taken in range(1, length + 1):
            new = phase.at(step + taken, count + (taken == length), config)
            seen += [step + taken] * (new.number - phase.number)
            phase = new
        step += length
    return seen


def test_a_phase_is_due_when_both_its_steps_and_its_episodes_are_there():
    def due(*flags, lengths=(300, 30, 30, 250, 100)):
        flags = ['--task', 'dummy_continuous', '--train_every', '100', *flags]
        return phases(configs.parse(flags), lengths)

    assert due() == [100, 200, 300, 400, 500, 600, 700]
    # Episodes end at 300, 330, 360, 610 and 710.
    assert due('--train_episodes', '1') == [300, 400, 610, 710]
    assert due('--train_episodes', '2') == [330, 610]
    assert due('--train_episodes', '1', lengths=(100, 100)) == [100, 200]


@pytest.mark.slow
@pytest.mark.parametrize('envs', [1, 3])
def test_phases_by_episodes_are_the_same_after_resuming(tmp_path, quick, envs):
    """All metrics of a run that stopped at saves and was started again, with the same
    batches. That the networks are the same as well is seen with the faults.
    """

    def follow(logdir, *stops):
        flags = '--task dummy_discrete --configs debug --precision 32 --time_limit 30'
        flags += f' --train_every 40 --train_episodes 2 --prefill_episodes {envs + 2}'
        flags += f' --steps 400 --save_every 50 --log_every 40 --envs {envs}'
        flags += ' --parallel none --representation reward --log_images false'
        for stop in (*stops, None):
            config = configs.parse(['--logdir', str(logdir), *flags.split()])
            group = [
                workers.LocalWorker(config.task, dict(time_limit=30, action_repeat=1))
                for _ in range(envs + 1)
            ]
            run = dreamer.Run(config, group[:envs], group[envs:])
            save = run.save

            def save_and_stop(run=run, save=save, stop=stop):
                save()
                run.stop = run.stop or bool(stop) and run.step >= stop

            run.save = save_and_stop
            run.loop()
            run.logger.close()
            run.lock.release()
        lines = read_metrics(logdir)
        return [
            {
                k: v
                for k, v in line.items()
                if k not in ('fps', 'updates_per_s') and not k.startswith('time_')
            }
            for line in lines
        ]

    parts = follow(tmp_path / 'parts', 200)
    # With several environments, a save drops what is unfinished.
    stops = () if envs == 1 else (200,)
    assert parts == follow(tmp_path / 'others', *stops)
    updates = [line['gradient_step'] for line in parts if 'gradient_step' in line]
    assert len(updates) > 4 and updates[-1] > updates[0]


@pytest.mark.slow
def test_steps_of_episodes_that_were_open_at_a_save_count_once(tmp_path):
    """Those that ended between the save and a crash are in the replay; the others are
    dropped. And a run may go on with fewer environments.
    """

    def start(envs):
        flags = (
            '--task dummy_discrete --configs debug --log_images false '
            f'--representation reward --envs {envs} --precision 32 '
            '--parallel none'
        )
        config = configs.parse(['--logdir', str(tmp_path), *flags.split()])
        group = [
            workers.LocalWorker(config.task, dict(time_limit=50, action_repeat=1))
            for _ in range(envs + 1)
        ]
        return dreamer.Run(config, group[:envs], group[envs:])

    run = start(3)
    run.collect(run.random_policy, 90)
    while len(run.collector.unfinished) < 3:
        run.collect(run.random_policy, run.step + 1)
    opened = run.collector.unfinished
    run.save()
    # Not all of them end.
    while len(opened.keys() & run.collector.unfinished.keys()) > 1:
        run.collect(run.random_policy, run.step + 1)
    run.replay.flush()
    # Simulator steps of the episodes on disk, as `opened` has those until the save.
    ended = {
        origin[:2]: origin[2]
        for origin in (
            episodes.inspect(path).origin for path in (tmp_path / 'episodes').iterdir()
        )
    }
    assert len(opened.keys() & ended.keys()) == 2
    run.lock.release()  # The crash.

    run = start(1)
    left = [opened[key] for key in opened.keys() - ended.keys()]
    assert run.step == sum(ended.values()) + sum(left)
    assert run.dropped == len(left) == 1
    run.collect(run.random_policy, run.step + 60)
    run.save()
    run.lock.release()
    run = start(3)
    assert len(run.collector.started) == 3 and min(run.collector.started) > 0


@pytest.mark.slow
def test_nothing_is_traced_twice_in_a_whole_run(tmp_path, monkeypatch):
    """With evaluations, videos, saves and episodes of different lengths."""
    traced = collections.Counter()
    for kind, name in (agent.Policy, 'choose'), (agent.Dreamer, '_update_replica'):
        plain = getattr(kind, name)

        def count(self, *args, name=name, plain=plain):
            traced[name] += 1
            return plain(self, *args)

        monkeypatch.setattr(kind, name, count)
    flags = (
        '--task dummy_discrete --configs debug --steps 400 '
        '--train_every 25 --eval_every 100 --parallel none '
        '--precision 32 --envs 2'
    )
    config = configs.parse(['--logdir', str(tmp_path), *flags.split()])
    group = workers.make_workers(config.task, 3, dict(time_limit=50), 'none')
    run = dreamer.Run(config, group[:2], group[2:])
    run.loop()
    run.logger.close()
    assert run.gradient_step > 10
    # One policy acts in training and one in evaluation.
    assert traced == dict(choose=2, _update_replica=1)
    assert run.agent.form.experimental_get_tracing_count() == 1
    assert run.agent.openloop.experimental_get_tracing_count() == 1


def short(logdir, *flags):
    """Words of a short run in this process."""
    words = '--task dummy_continuous --configs debug --parallel none --precision 32'
    return ['--logdir', str(logdir), *words.split(), *forks.QUICK, *flags]


def losses(logdir):
    """The lines of log intervals."""
    lines = read_metrics(logdir)
    return [line for line in lines if 'gradient_step' in line]


def exhausted():
    """TensorFlow's own error, with the message that an update would give."""

    @tf.function
    def update(size):
        return tf.random.normal([size, 1024])

    update(2**40)


def own_fault():
    raise KeyError('a fault of the program')


@pytest.mark.parametrize(
    'fail, words',
    [
        (exhausted, ['out of memory', 'OOM when allocating tensor', '--batch_size']),
        (own_fault, ['a fault of the program']),
    ],
)
def test_error_in_an_update_saves_and_is_one_line(tmp_path, capfd, quick, fail, words):
    quick['then'] = lambda step: fail() if step == 4 else None
    assert dreamer.main(short(tmp_path)) == 1
    del quick['then']
    error = capfd.readouterr().err
    *before, line, saved = error.splitlines()
    assert line.startswith('dreamer: stopped: ') and saved.startswith('dreamer: saved')
    for word in words:
        assert word in line
    assert any('Traceback' in text for text in before) == (fail is own_fault)
    assert before == [] or fail is own_fault
    assert dreamer.main(short(tmp_path)) == 0
    # Two updates at 100 steps, two at 200.
    assert 'resumed at step 300\n' in capfd.readouterr().out
    updates = [line['gradient_step'] for line in losses(tmp_path)]
    assert updates == sorted(set(updates)) and updates[-1] == 2 + 2 * 5


def test_error_while_the_agent_is_built_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(dreamer, 'Dreamer', lambda *_: exhausted())
    assert dreamer.main(short(tmp_path)) == 1
    error = capfd.readouterr().err
    (line,) = error.splitlines()
    assert line.startswith('dreamer: stopped: out of memory')


def test_an_episode_that_cannot_be_kept_ends_the_run_saved(
    tmp_path, capfd, monkeypatch, quick
):
    add = replay.Replay.add

    def refuse(self, episode):
        if self.episodes == 2:
            episode['reward'] = episode['reward'][1:]
        return add(self, episode)

    with monkeypatch.context() as patch:
        patch.setattr(replay.Replay, 'add', refuse)
        assert dreamer.main(short(tmp_path)) == 1
    line, saved = capfd.readouterr().err.splitlines()
    assert 'reward has the shape (100,), not (101,)' in line
    assert saved.startswith('dreamer: saved')
    assert dreamer.main(short(tmp_path)) == 0
    assert 'resumed at step 300\n' in capfd.readouterr().out
    last = losses(tmp_path)[-1]
    assert last['episodes_dropped'] == 1 and last['step'] == 600


def test_an_evaluation_that_is_broken_off_is_made_anew_with_the_same_noise(
    tmp_path, monkeypatch, quick
):
    choose, calls = agent.Policy.__call__, []

    def broken(self, *inputs):
        calls.append(inputs)
        if len(calls) == 5:
            raise RuntimeError('a fault of the policy')
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return choose(self, *inputs)

    def main(name):
        # The planner draws noise in evaluations too.
        flags = '--eval_every', '100', '--steps', '200'
        return dreamer.main(short(tmp_path / name, *flags))

    def returns(name):
        return [
            (line['step'], line['test/return'])
            for line in read_metrics(tmp_path / name)
            if 'test/return' in line
        ]

    assert main('whole') == 0
    with monkeypatch.context() as patch:
        patch.setattr(agent.Policy, '__call__', broken)
        assert main('broken') == 1 and len(calls) == 5
        assert main('broken') == 0 and len(calls) == 10
    assert not returns('broken')
    assert main('broken') == 0
    assert returns('broken') == returns('whole')
    assert [step for step, _ in returns('whole')] == [100, 200]


def test_prefill_that_its_first_episode_overruns(tmp_path, capfd, quick):
    assert dreamer.main(short(tmp_path, '--prefill', '10', '--steps', '150')) == 0
    lines = capfd.readouterr().out.splitlines()
    prefill = [line for line in lines if line.startswith('prefill')]
    assert prefill[0] == 'prefill: 10 steps'
    assert prefill[-1].startswith('prefill: 100 steps done in')
    assert len(prefill) == 3 and not any('-' in line for line in prefill)
    # A run whose episodes were taken away begins with another one.
    for path in (tmp_path / 'episodes').iterdir():
        path.unlink()
    assert dreamer.main(short(tmp_path, '--prefill', '10', '--steps', '300')) == 0
    lines = capfd.readouterr().out.splitlines()
    prefill = [line for line in lines if line.startswith('prefill')]
    assert len(prefill) <= 2 and not any('-' in line for line in prefill)


def test_only_a_run_that_was_evaluated_to_its_end_has_finished(
    tmp_path, capfd, monkeypatch, quick
):
    reached = []

    def interrupt(place):
        reached.append(place)
        if place == 'evaluation' and reached.count(place) == 250:
            terminate()

    def terminate(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        while 'stopping: ' not in capfd.readouterr().err:
            time.sleep(0.01)

    def evaluations():
        lines = read_metrics(tmp_path)
        return [line['step'] for line in lines if 'test/return' in line]

    def last_line():
        return capfd.readouterr().out.splitlines()[-1]

    evaluate = f'next: python evaluate.py --logdir {tmp_path}'
    flags = '--steps', '300', '--eval_every', '100'
    with monkeypatch.context() as patch:
        # The third evaluation, of 100 steps as all of them, is the last one.
        patch.setattr(faults, 'reach', interrupt)
        assert dreamer.main(short(tmp_path, *flags)) == 0
    assert evaluations() == [100, 200] and finished.step_of(tmp_path) == -1
    assert dreamer.main(short(tmp_path, *flags)) == 0
    out = capfd.readouterr().out
    assert '0 to go, 300 of 300 done; not finished\n' in out
    assert out.splitlines()[-1] == (
        'finished: saved at step 300; the same command with more --steps continues; '
        + evaluate
    )
    assert evaluations() == [100, 200, 300] and finished.step_of(tmp_path) == 300
    quick['then'] = terminate
    assert dreamer.main(short(tmp_path, '--steps', '500')) == 0
    assert last_line() == (
        f'stopped: saved at step 400; the same command continues; {evaluate}'
    )
    assert finished.step_of(tmp_path) == -1


def test_a_due_save_does_not_wait_for_the_end_of_a_long_episode(tmp_path, quick):
    flags = '--steps', '700', '--time_limit', '400', '--save_every', '50'
    assert dreamer.main(short(tmp_path, *flags)) == 0
    paths = checkpoints.find(tmp_path / 'checkpoints')
    # At the end of the run, and before it twice 50 steps after the one before.
    assert [checkpoints.read(path)['due']['save'] for path in paths] == [700, 700]
    assert [path.name for path in paths] == ['ckpt-7', 'ckpt-8']


def test_speeds_do_not_follow_a_clock_that_is_set(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(time, 'time', lambda: 1e9)
    assert dreamer.main(short(tmp_path)) == 0
    lines = losses(tmp_path)
    assert len(lines) > 4 and all(line['fps'] > 0 for line in lines)
    assert all(line['updates_per_s'] > 0 for line in lines)


@pytest.mark.slow
def test_the_last_step_is_logged_once_where_no_training_phase_ends(tmp_path, quick):
    """At 100 environment steps a phase ends, at 130 the run."""

    def lines():
        flags = '--steps 130 --prefill 50 --train_every 50 --log_every 10'
        flags += ' --time_limit 30'
        config = configs.parse(short(tmp_path, *flags.split()))
        group = [
            workers.LocalWorker(config.task, dict(time_limit=30, action_repeat=1))
            for _ in range(2)
        ]
        run = dreamer.Run(config, group[:1], group[1:])
        run.loop()
        run.logger.close()
        run.lock.release()
        return [line for line in read_metrics(tmp_path) if 'fps' in line]

    assert [line['step'] for line in lines()][-2:] == [100, 130]
    # Going on with what is finished adds nothing.
    assert [line['step'] for line in lines()][-2:] == [100, 130]
