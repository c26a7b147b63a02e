"""The proof: a small agent learns, from images alone, to move a point to a target.

Score 0 is a random policy and 1 the best possible. The controls break one thing each
and must miss the bar that the agent has to pass; they are no part of the suite:

    python -m pytest tests/test_learning.py -m controls -s
"""

import numpy as np
import pytest
import tensorflow as tf

import configs
import dreamer
import replay
import workers
import wrappers

BAR = 0.8
# Small values make an untrained value network harmless: with a discount of 0.95 the
# actor runs after its errors until the tanh is flat, and takes 1,000 updates to return.
FLAGS = """--task dummy_continuous --precision 32 --parallel none --steps 20500
    --prefill 2500 --pretrain 100 --train_every 400 --train_steps 40 --eval_every 1e9
    --save_every 1e9 --log_every 400 --batch_size 16 --batch_length 6 --horizon 10
    --deter_size 100 --stoch_size 20 --num_units 100 --rssm_units 100 --cnn_depth 8
    --cnn_act elu --model_lr 3e-3 --actor_lr 3e-4 --value_lr 5e-4 --action_init_std 1
    --discount 0.85 --kl_scale 0.3""".split()
EPISODES = 30


def make_run(logdir, seed):
    config = configs.parse([*FLAGS, '--logdir', str(logdir), '--seed', str(seed)])
    kwargs = dict(action_repeat=config.action_repeat, time_limit=config.time_limit)
    envs = workers.make_workers(
        config.task, 2, kwargs, config.parallel, evaluation=1)
    return dreamer.Run(config, envs[:-1], envs[-1:])


def agents_return(run):
    """Mean return of the agent's best actions."""
    collector = workers.Collector(run.eval_envs, seed=12345)
    episodes = []
    while len(episodes) < EPISODES:
        episodes += collector.step(run.eval_policy)[1]
    return np.mean([episode['reward'].sum() for episode in episodes])


def policys_return(task, policy):
    """Mean return of `policy`, a function of the environment."""
    env = wrappers.make(task, action_repeat=1, time_limit=50)
    env.action_space.seed(0)
    returns = []
    for seed in range(200):
        env.reset(seed=seed)
        returns.append(0)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(policy(env))
            returns[-1] += reward
            ended = terminated or truncated
    return np.mean(returns)


def expert_action(env):
    action = env.unwrapped.expert_action()
    if isinstance(env.action_space, wrappers.OneHot):
        action = np.eye(*env.action_space.shape, dtype=np.float32)[action]
    return action


def score(run):
    task = run.config.task
    low = policys_return(task, lambda env: env.action_space.sample())
    best = policys_return(task, expert_action)
    own = agents_return(run)
    result = (own - low) / (best - low)
    print(f'random {low:.1f}, best {best:.1f}, agent {own:.1f}: score {result:.2f}')
    return result


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
def test_agent_learns(tmp_path, seed):
    run = make_run(tmp_path, seed)
    run.loop()
    assert score(run) >= BAR


def blank_images(run, monkeypatch):
    monkeypatch.setattr(wrappers.DummyContinuous, 'render',
                        lambda self: np.zeros((64, 64, 3), np.uint8))


def turn_actor_gradient_around(run, monkeypatch):
    monkeypatch.setattr(run.agent.optimizers['actor'], 'scaled', tf.negative)


def shift_actions(run, monkeypatch):
    sample = replay.Replay.sample

    def shifted(self, batch):
        data = sample(self, batch)
        return dict(data, action=np.roll(data['action'], 1, axis=1))

    monkeypatch.setattr(replay.Replay, 'sample', shifted)


def hold_values_at_zero(run, monkeypatch):
    for weight in run.agent.behavior.value.trainable_weights[-2:]:
        weight.assign(tf.zeros_like(weight))
    monkeypatch.setattr(
        run.agent.optimizers['value'], 'apply', lambda tape, loss: tf.constant(0.0))


@pytest.mark.slow
@pytest.mark.controls
@pytest.mark.parametrize('control, must_fail', [
    (blank_images, True), (turn_actor_gradient_around, True),
    (shift_actions, False), (hold_values_at_zero, False)])
def test_control(tmp_path, monkeypatch, control, must_fail):
    run = make_run(tmp_path, seed=0)
    control(run, monkeypatch)
    run.loop()
    result = score(run)
    assert result < BAR or not must_fail
