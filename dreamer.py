"""Dreamer: learning behaviors by latent imagination (Hafner et al., ICLR 2020).

    python dreamer.py --logdir ./logs --task dmc_walker_walk

The training loop and the command line; the agent itself is in agent.py.

Shapes: A action, E environments.
"""

import dataclasses
import os
import pathlib
import signal
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Off by default on processors without AVX-512, where it doubles the speed too.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')

import numpy as np
import tensorflow as tf

import configs
import distribution
import logger
import replay
import tools
import workers
import wrappers
from agent import Dreamer, Policy


def fit_to_actions(config, space):
    """Settle the automatic action head and exploration by the action space; raises
    ConfigError where those that were asked for do not fit it."""
    discrete = isinstance(space, wrappers.OneHot)
    if discrete and config.method == 'planet':
        raise configs.ConfigError(
            f'--method planet plans continuous actions and those of {config.task} are '
            'discrete; possible: dreamer, no_value')
    fitting = dict(
        action_dist='onehot' if discrete else 'tanh_normal',
        expl='epsilon_greedy' if discrete else 'additive_gaussian')
    for name, value in fitting.items():
        asked = getattr(config, name)
        if asked not in ('auto', value):
            raise configs.ConfigError(
                f'--{name} {asked} does not fit the '
                f"{'discrete' if discrete else 'continuous'} actions of {config.task}; "
                f'possible: auto, {value}')
    return dataclasses.replace(config, **fitting)


class Run:
    """One run: the agent, its environments, its replay and its logs.

    Args:
      config: `configs.Config`.
      envs, eval_envs: workers.
      strategy: of `distribution.make_strategy`.
    """

    def __init__(self, config, envs, eval_envs, strategy=None):
        config = fit_to_actions(config, envs[0].action_space)
        self.config = config
        self.logdir = pathlib.Path(config.logdir)
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.action_size, = envs[0].action_space.shape
        self.agent = Dreamer(config, self.action_size, strategy)
        self.checkpoints = tf.train.CheckpointManager(
            tf.train.Checkpoint(agent=self.agent), str(self.logdir / 'checkpoints'), 2)
        self.restore()
        # The counters are part of the seeds: a resumed run must not draw the same
        # sequences, nor start the same episodes, as it did before.
        self.replay = replay.Replay(
            self.logdir / 'episodes', length=config.batch_length,
            seed=(config.seed, self.gradient_step), balance=config.dataset_balance,
            memory=int(config.replay_memory) or None)
        if self.replay.action_size not in (None, self.action_size):
            raise configs.ConfigError(
                f'the episodes in {self.logdir} have {self.replay.action_size} actions '
                f'and {config.task} has {self.action_size}; choose another --logdir')
        # After a crash there are episodes that are newer than the checkpoint.
        self.agent.env_step.assign(
            max(self.step, self.replay.steps * config.action_repeat))
        self.logger = logger.Logger(self.logdir)
        self.random = np.random.default_rng((config.seed, self.step))
        self.collector = workers.Collector(envs, config.seed, self.replay.episodes)
        self.eval_envs = eval_envs
        self.policy = Policy(self.agent, len(envs), training=True)
        self.eval_policy = Policy(self.agent, len(eval_envs), training=False)
        self.metrics = []
        self.stop = False
        self.log_start = (time.time(), self.step, self.gradient_step)

    @property
    def step(self):
        """Environment steps taken, prefill included."""
        return int(self.agent.env_step)

    @property
    def gradient_step(self):
        """Updates made."""
        return int(self.agent.gradient_step)

    @property
    def phases(self):
        """Training phases that the steps since the prefill have earned."""
        return (self.step - int(self.agent.train_start)) // self.config.train_every

    def loop(self):
        """Algorithm 1 of the paper."""
        config = self.config
        last = self.step if self.gradient_step else None
        should_eval = tools.Every(config.eval_every, last)
        should_log = tools.Every(config.log_every, last)
        should_save = tools.Every(config.save_every, last)
        self.prefill()
        while not self.stop:
            self.train()
            if should_log(self.step) or self.step >= config.steps:
                self.log()
            if should_eval(self.step):
                self.evaluate()
            if self.step >= config.steps or self.stop:
                break
            if should_save(self.step):
                self.save()
            until = int(self.agent.train_start) + (self.phases + 1) * config.train_every
            self.collect(self.policy, min(until, config.steps))
        self.save()

    def prefill(self):
        """Collect with random actions, one whole episode at least."""
        started = self.agent.train_start >= 0
        if not started:
            print(f'collecting {self.config.prefill} steps with random actions',
                  flush=True)
            self.collect(self.random_policy, self.config.prefill)
        while not self.stop and not self.replay.episodes:
            self.collect(self.random_policy, self.step + 1)
        if not self.stop and not started:
            self.agent.train_start.assign(self.step)
            print(f'training begins with {self.config.pretrain} updates', flush=True)

    def collect(self, policy, until):
        """Act until `until` environment steps have been taken."""
        while self.step < until and not self.stop:
            steps, episodes = self.collector.step(policy)
            self.agent.env_step.assign_add(steps)
            for episode in episodes:
                self.replay.add(episode)
                self.log_episodes('train', [episode])

    def train(self):
        """The updates that are due: all of `pretrain`, and `train_steps` for every
        `train_every` environment steps, however collecting and resuming cut them."""
        config = self.config
        due = config.pretrain + self.phases * config.train_steps - self.gradient_step
        for batch in self.replay.stream(config.batch_size, max(0, due)):
            self.metrics.append(self.agent.train(batch))
            if len(self.metrics) % 50 == 0:
                self.agent.check_finite()
            if self.stop:
                break

    def evaluate(self):
        """One episode in every evaluation environment, and videos."""
        seed = np.random.SeedSequence((self.config.seed, 1, self.step))
        collector = workers.Collector(self.eval_envs, int(seed.generate_state(1)[0]))
        episodes = collector.first_episodes(self.eval_policy, lambda: self.stop)
        if not episodes:
            return
        self.log_episodes('test', episodes)
        self.logger.video(self.step, 'eval', episodes[0]['image'])
        if self.agent.world.decoder:
            self.log_openloop()

    def log_openloop(self):
        """A video of what the world model predicts."""
        # What is looked at must not change what is trained on.
        state = self.replay.get_state()
        batch = self.replay.sample(self.config.batch_size)
        self.replay.set_state(state)
        # Six sequences, of one episode each where there are such.
        joined = batch['is_first'][:, 1:].any(1)
        rows = np.argsort(joined, kind='stable')[:6]
        video = self.agent.openloop({key: x[rows] for key, x in batch.items()})
        self.logger.video(self.step, 'openloop', video.numpy(), 10)

    def log(self):
        """Means of the losses since the last call, and speeds."""
        now = (time.time(), self.step, self.gradient_step)
        seconds, steps, updates = (
            new - old for new, old in zip(now, self.log_start, strict=True))
        values = {}
        for key in self.metrics[0] if self.metrics else ():
            # Steps that were skipped are counted below; their norms are infinite.
            numbers = np.array([metrics[key] for metrics in self.metrics])
            finite = numbers[np.isfinite(numbers)]
            values[key] = finite.mean() if finite.size else np.nan
        values.update(gradient_step=self.gradient_step, fps=steps / seconds,
                      updates_per_s=updates / seconds)
        values['episodes_skipped'] = self.replay.skipped
        for name, optimizer in self.agent.optimizers.items():
            values[f'{name}_skipped'] = int(optimizer.skipped.numpy())
        self.logger.scalars(self.step, values)
        self.metrics = []
        self.log_start = now

    def log_episodes(self, mode, episodes):
        """Mean raw return and length [agent steps] of episodes."""
        score = float(np.mean([episode['reward'].sum() for episode in episodes]))
        length = float(np.mean([len(episode['reward']) - 1 for episode in episodes]))
        self.logger.scalars(self.step, {
            f'{mode}/return': score, f'{mode}/length': length,
            'episodes': self.replay.episodes})
        print(f'step {self.step}: {mode} return {score:.1f}, length {length:.0f}',
              flush=True)

    def random_policy(self, image, is_first):
        """Uniform actions."""
        if self.config.action_dist == 'onehot':
            choices = self.random.integers(self.action_size, size=len(image))
            return np.eye(self.action_size, dtype=np.float32)[choices]
        return self.random.uniform(-1, 1, (len(image), self.action_size))

    def save(self):
        """Write a checkpoint: networks, optimisers, loss scales, counters, noise."""
        self.checkpoints.save()

    def restore(self):
        """Load the newest checkpoint, if there is one."""
        path = self.checkpoints.latest_checkpoint
        if path:
            try:
                status = self.checkpoints.checkpoint.restore(path)
                status.assert_existing_objects_matched()
            except (ValueError, AssertionError, tf.errors.OpError) as error:
                raise configs.ConfigError(
                    f'{path} is damaged or of another network '
                    f'({str(error).splitlines()[0]})') from None
            print(f'resumed at step {self.step}', flush=True)

    def request_stop(self, number, frame):
        """Signal handler: finish the current step, save, exit. A second signal ends the
        program at once."""
        self.stop = True
        signal.signal(number, signal.SIG_DFL)
        print('stopping: saving first, again to quit at once', file=sys.stderr)


def main(argv=None):
    """The command line; returns the exit code."""
    try:
        config = configs.parse(argv)
        logdir = pathlib.Path(config.logdir)
        config_path = logdir / 'config.json'
        changes = configs.differences(config, config_path)
        if changes and not config.allow_config_change:
            raise configs.ConfigError(
                f"{logdir} belongs to another configuration ({'; '.join(changes)}); "
                'choose another --logdir or add --allow_config_change true')
        tools.keep_freed_memory()
        config, devices = tools.set_up_devices(config)
        strategy = distribution.make_strategy(config)
        kwargs = {name: getattr(config, name) for name in configs.ENVIRONMENT_FLAGS}
        envs = workers.make_workers(
            config.task, config.envs + config.eval_envs, kwargs, config.parallel,
            devices, config.worker_timeout, evaluation=config.eval_envs)
    except (ValueError, RuntimeError, OSError) as error:
        configs.fail(error)
    try:
        try:
            run = Run(config, envs[:config.envs], envs[config.envs:], strategy)
            configs.write(config, config_path)
        except (configs.ConfigError, OSError) as error:
            configs.fail(error)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, run.request_stop)
        try:
            run.loop()
        except (workers.WorkerError, FloatingPointError, OSError) as error:
            print(f'dreamer: stopped: {error}', file=sys.stderr)
            if isinstance(error, workers.WorkerError):
                run.save()
            return 1
        finally:
            run.logger.close()
    finally:
        for env in envs:
            env.close()


if __name__ == '__main__':
    sys.exit(main())
