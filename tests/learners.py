"""The proof: small agents learn, from images alone, to move a point to a target, one by
continuous actions, one by discrete ones past a hazard that ends the episode.

Score 0 is a random policy and 1 the best possible. The tests that use this are in
several files, so that they run at the same time.
"""

import dataclasses
import functools

import numpy as np

import configs
import dreamer
import wrappers
from support.acting import workers
from support.acting.collector import Collector

BAR = 0.8
SMALL = """--precision 32 --parallel none --prefill 2500 --train_every 400
    --train_steps 40 --eval_every 1e9 --save_every 1e9 --log_every 400 --eval_envs 10
    --batch_size 16 --batch_length 6 --horizon 10 --deter_size 100 --stoch_size 20
    --num_units 100 --rssm_units 100 --cnn_depth 4 --cnn_act elu --model_lr 3e-3
    --discount 0.85"""
# Small values make an untrained value network harmless: with a discount of 0.95 the
# actor runs after its errors until the tanh is flat, and takes 1,000 updates to return.
POINT = f'--task dummy_continuous {SMALL} --pretrain 100 --action_init_std 1'
# A bonus for entropy spares half of that. Several environments share calls of a policy.
CONTINUOUS = f"""{POINT} --steps 20000 --envs 5 --actor_lr 6e-4 --value_lr 1e-3
    --kl_scale 0.3 --actor_entropy 0.1"""
# The same trap is worse for a categorical, which is certain of one action before the
# world model knows its rewards, and stays so: hence the bonus for entropy, by which all
# of eleven seeds learn with twice as many channels. Much exploration shows the ends.
# Short episodes show more beginnings, where the hazard is near.
DISCRETE = f"""--task dummy_discrete {SMALL} --steps 12500 --pretrain 200
    --time_limit 25 --batch_length 8 --discount 0.95 --actor_lr 2e-4 --value_lr 1e-3
    --actor_entropy 0.3 --kl_scale 1 --pcont true --dataset_balance true
    --clip_rewards tanh --expl_amount 0.8 --expl_min 0.3 --expl_decay 1500"""
# Processors compute float16 slowly: fewer images, which teach less.
FLOAT16 = f"""{DISCRETE} --precision 16 --jit true --batch_size 8 --steps 9500"""
# A vector of few numbers says little beside the KL. The actor has no bonus.
STATES = f"""{POINT} --steps 9500 --actor_lr 3e-4 --value_lr 5e-4 --kl_scale 0.02
    --observation state --batch_size 8 --horizon 6"""
EPISODES = 50


def make_run(logdir, seed, flags):
    config = configs.parse(
        [*flags.split(), '--logdir', str(logdir), '--seed', str(seed)]
    )
    envs = workers.make_envs(config, config.envs, config.eval_envs, None)
    return dreamer.Run(config, envs[: config.envs], envs[config.envs :])


def play(run, policy, count):
    """New episodes in the environment for evaluation."""
    collector = Collector(run.eval_envs, seed=12345)
    episodes = []
    while len(episodes) < count:
        episodes += collector.step(policy)[1]
    return episodes


@functools.cache
def policys_return(task, time_limit, policy):
    """Mean return of `policy`, a function of the environment."""
    env = wrappers.make(task, action_repeat=1, time_limit=time_limit)
    env.action_space.seed(0)
    returns = []
    for seed in range(100):
        env.reset(seed=seed)
        returns.append(0)
        ended = False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(policy(env))
            returns[-1] += reward
            ended = terminated or truncated
    return np.mean(returns)


def random_action(env):
    return env.action_space.sample()


def expert_action(env):
    action = env.unwrapped.expert_action()
    if isinstance(env.action_space, wrappers.OneHotSpace):
        action = np.eye(*env.action_space.shape, dtype=np.float32)[action]
    return action


def score(run, count=EPISODES):
    task = run.config.task, run.config.time_limit
    low, best = (policys_return(*task, of) for of in (random_action, expert_action))
    own = np.mean(
        [episode['reward'].sum() for episode in play(run, run.eval_policy, count)]
    )
    result = (own - low) / (best - low)
    print(
        f'after {run.gradient_step} updates: random {low:.1f}, best {best:.1f}, '
        f'agent {own:.1f}: score {result:.2f}'
    )
    return result


def train(run, bar=BAR, count=EPISODES, first=4):
    """Train until the agent scores `bar`, at most the run's steps; return the score.

    It plays `count` episodes after every tenth of the steps from the `first` on.
    """
    steps = run.config.steps
    for tenths in range(first, 11):
        run.config = dataclasses.replace(run.config, steps=steps * tenths // 10)
        run.loop()
        result = score(run, count)
        if result >= bar:
            break
    return result


def check_discounts(run):
    """The discount head knows, in episodes it has not seen, where they ended."""
    # Random ones: the agent avoids the end.
    episodes = play(run, run.random_policy, 300)
    data = {
        key: np.concatenate([episode[key] for episode in episodes])[None]
        for key in episodes[0]
    }
    is_first = np.concatenate(
        [np.arange(len(episode['reward'])) == 0 for episode in episodes]
    )[None]
    world = run.agent.world
    noise = run.agent.eval_rng.normal((*is_first.shape, run.config.stoch_size))
    post, _ = world.rssm.observe(world.encoder(data), data['action'], is_first, noise)
    # The labels are 0 and gamma, not 0 and 1.
    predicted = world.discounts(world.rssm.feature(post)) / run.config.discount
    ends, others = (predicted[data['discount'] == end].numpy() for end in (0, 1))
    # Not on average alone.
    low, high = np.mean(ends < 0.5), np.mean(others > 0.9)
    print(
        f'predicted discount / gamma at {len(ends)} ends {ends.mean():.2f}, '
        f'{low:.0%} below 0.5; at {len(others)} others {others.mean():.2f}, '
        f'{high:.0%} above 0.9'
    )
    assert len(ends) > 100
    assert ends.mean() < 0.2 and others.mean() > 0.9 and low > 0.8 and high > 0.9


def check_learns(logdir, seed, flags):
    """Train an agent. It must score `BAR` and, if it predicts discounts, know where
    episodes ended.
    """
    run = make_run(logdir, seed, flags)
    assert train(run) >= BAR
    if run.config.pcont:
        check_discounts(run)
