"""The loop's counting, with several environments."""

import collections
import json

import pytest

import configs
import dreamer
import workers


class Counting(workers.LocalWorker):
    """Counts the simulator's steps itself."""

    steps = 0

    def result(self):
        result = super().result()
        if len(result) == 5:
            self.steps += result[4]['simulator_steps']
        return result


@pytest.mark.slow
@pytest.mark.parametrize('envs', [1, 2, 4])
def test_steps_and_updates_are_counted_exactly(tmp_path, envs):
    config = configs.parse([
        '--logdir', str(tmp_path), '--task', 'dummy_continuous', '--configs', 'debug',
        '--steps', '171', '--prefill', '50', '--time_limit', '30', '--action_repeat',
        '2', '--train_every', '25', '--train_steps', '2', '--pretrain', '3',
        '--log_images', 'false', '--representation', 'reward', '--envs', str(envs),
        '--precision', '32'])
    kwargs = {name: getattr(config, name) for name in configs.ENVIRONMENT_FLAGS}
    group = [Counting(config.task, kwargs) for _ in range(envs)]
    # One of them ends three times as often, and must not count more for that.
    evaluation = [workers.LocalWorker(config.task, kwargs | {'time_limit': limit})
                  for limit in (10, 30)]
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
    start = int(run.agent.train_start)
    assert start >= 50
    assert run.gradient_step == 3 + 2 * ((run.step - start) // 25)
    lines = [json.loads(line) for line in
             (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert {line['test/length'] for line in lines if 'test/length' in line} == {10}
    assert 'gradient_step' in lines[-1] and lines[-1]['step'] == run.step
