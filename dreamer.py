"""Dreamer: learning behaviors by latent imagination (Hafner et al., ICLR 2020).

    python dreamer.py --logdir ./logs --task dmc_walker_walk

The training loop and the command line; the agent itself is in agent.py.

Shapes: A action, E environments.
"""

import contextlib
import functools
import pathlib
import sys
import time
import traceback

if sys.flags.safe_path:  # Python has not looked for modules beside this file.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from support.system import command_line, signals, streams, temporary

if __name__ == '__main__':
    streams.protect()
    # Until there is a run to save, Ctrl-C ends the program without a word.
    signals.end_by(*signals.ASKING)
    temporary.provide('dreamer')

import configs

if __name__ == '__main__':
    # A mistake is answered before TensorFlow is imported, which takes seconds.
    with command_line.refusing('dreamer'):
        configs.parse(sys.argv[1:])

from support.acting.collector import Collector
from support.run import startup  # noqa: F401 (first: it imports TensorFlow without its chatter)

# isort: split
import numpy as np
import tensorflow as tf

import tools
import wrappers
from agent import Dreamer, Policy
from support.acting import workers
from support.run import (
    advice,
    checkpoints,
    config_file,
    logger,
    openloop,
    progress,
    saving,
    updates,
)
from support.scaling import machines
from support.scaling.team import MachineLost, WeightsDiffer
from support.storage import episodes, finished, replay
from support.system import faults
from support.system.command_line import UserError

# What may end a run that is as it should be; a message says enough.
ONE_LINE_ERRORS = (
    workers.WorkerError,
    MachineLost,
    WeightsDiffer,
    FloatingPointError,
    MemoryError,
    OSError,
    tf.errors.OpError,
)


class Run(saving.Resumable):
    """One run: the agent, its environments, its replay and its logs.

    Args:
      config: `configs.Config`.
      envs, eval_envs: workers.
      strategy: of `replicas.make_strategy`; None for one device.
      automatic: whether `--precision auto` chose the precision.
    """

    def __init__(self, config, envs, eval_envs, strategy=None, automatic=False):
        config = configs.fit_to_actions(
            config, isinstance(envs[0].action_space, wrappers.OneHotSpace)
        )
        self.config = config
        self.logdir = pathlib.Path(config.logdir)
        (self.action_size,) = envs[0].action_space.shape
        self.state_size = workers.state_size(envs[0])
        self.row_bytes = episodes.row_bytes(
            self.action_size, self.state_size, config.observes
        )
        configs.check_length(config, self.row_bytes)
        self.lock = checkpoints.Lock(self.logdir)
        self.agent = self.make_agent(strategy)
        self.checkpoints = checkpoints.Checkpoints(
            self.logdir / 'checkpoints', self.agent
        )
        self.replay = replay.Replay(
            self.logdir / 'episodes',
            length=config.batch_length,
            observes=config.observes,
            seed=tools.spawn_seed(config.seed, 'replay'),
            balance=config.dataset_balance,
            memory=int(config.replay_memory) or None,
            capacity=config.replay_capacity // config.action_repeat,
        )
        for what, stored, size in (
            ('actions', self.replay.action_size, self.action_size),
            ('numbers in a state', self.replay.state_size, self.state_size),
        ):
            if stored not in (None, size):
                raise UserError(
                    f'the episodes in {self.logdir} have {stored} {what} and '
                    f'{config.task} has {size}; choose another --logdir'
                )
        self.progress = progress.Progress(config, automatic=automatic)
        in_turn = config.envs > 1 and config.parallel == 'process'
        self.collector = Collector(
            envs, tools.spawn_seed(config.seed, 'episodes'), 2 if in_turn else 1
        )
        self.eval_envs = eval_envs
        self.policy = [
            Policy(self.agent, len(group), training=True)
            for group in self.collector.groups
        ]
        self.eval_policy = Policy(self.agent, len(eval_envs), training=False)
        self.updates = updates.Updates(
            self.agent,
            updates.may_compile(
                config,
                len(tf.config.list_physical_devices('GPU')),
                strategy.num_replicas_in_sync if strategy else 1,
            ),
            config_file.read_choice(self.logdir),
            self.keep_choice,
        )
        self.random = self.prefill_rng()
        self.should_log = tools.Every(config.log_every)
        self.should_eval = tools.Every(config.eval_every)
        self.should_save = tools.Every(config.save_every, 0)
        self.phase = tools.Phase()
        self.episodes = 0
        self.metrics = []
        self.dropped = 0
        self.stop = False
        self.restore()
        self.log_start = (time.monotonic(), self.step, self.gradient_step)

    def make_agent(self, strategy):
        """The agent for the environment's actions."""
        return Dreamer(self.config, self.action_size, strategy, self.state_size)

    @property
    def step(self):
        """Environment steps taken, prefill included."""
        return self.agent.env_step

    @property
    def gradient_step(self):
        """Updates made."""
        return self.agent.gradient_step

    def loop(self):
        """Algorithm 1 of the paper.

        What is due depends on the training phase and not on the step, so that a run
        that was saved while it collected does nothing twice when it goes on.
        """
        config = self.config
        choice = self.updates.choice
        self.progress.header(self.agent, self.row_bytes, self.step, choice)
        finished.withdraw(self.logdir)
        self.logger.text(self.step, 'config', config_file.as_table(config))
        self.prefill()
        while not self.stop:
            self.train()
            ended = self.step >= config.steps
            step = self.step if ended else self.phase.step
            # The last step too, at which no training phase need end.
            last = ended and self.step > self.logged
            if not self.stop and (self.should_log(step) or last):
                self.log()
            if not self.stop and self.should_eval(step):
                self.evaluate()
            if ended:
                break
            self.collect(
                self.policy,
                self.phase.step + config.train_every,
                self.phase.episodes + config.train_episodes,
                config.steps,
            )
        self.save()
        if not self.stop:
            finished.state(self.logdir, self.step)

    def prefill(self):
        """Collect with random actions, whole episodes among them."""
        config, started = self.config, self.agent.train_start >= 0
        if not started:
            self.collect(
                self.random_policy,
                config.prefill,
                config.prefill_episodes,
                name='prefill',
            )
        if not self.replay.episodes:  # Those of a run that is resumed are gone.
            self.collect(
                self.random_policy, self.step, self.episodes + 1, name='prefill'
            )
        if not self.stop and not started:
            self.agent.train_start = self.step
            self.phase = tools.Phase(0, self.step, self.episodes)

    def collect(self, policy, steps, episodes=0, end=np.inf, name='collecting'):
        """Act until so many environment steps have been taken and so many episodes
        have been kept since the run began, or the run ends.

        Saves fall between episodes; where episodes are long, or those of several
        environments do not end together, they are put off once and then drop what is
        unfinished.
        """
        self.progress.start(name, max(0, min(steps, end) - self.step))
        late = 2 * self.config.save_every

        def done():
            enough = self.step >= steps and self.episodes >= episodes
            return enough or self.step >= end

        while not done() and not self.stop:
            taken, ended = self.collector.step(policy)
            self.progress.advance(taken)
            self.agent.env_step += taken
            # Until they are kept: an error may end the run in between.
            self.dropped += len(ended)
            for episode in ended:
                try:
                    self.replay.add(episode)
                except ValueError as error:
                    raise workers.WorkerError(
                        f'An episode cannot be kept: {error}'
                    ) from error
                self.dropped -= 1
                self.episodes += 1
                self.log_episodes('train', [episode], self.replay.episodes)
            between = not self.collector.unfinished
            if between or self.step - self.should_save.last >= late:
                if self.should_save(self.step):
                    self.save()

    def train(self):
        """The updates that are due: all of `pretrain`, and `train_steps` for every
        `train_every` environment steps, however collecting and resuming cut them.
        """
        config = self.config
        self.phase = self.phase.at(self.step, self.episodes, config)
        phases = self.phase.number
        due = max(0, config.pretrain + phases * config.train_steps - self.gradient_step)
        phase = 'training' if phases else 'pretraining'
        self.progress.start(phase, due, 'updates')
        self.updates.begin(due)
        for batch in self.batches(due):
            self.metrics.append(self.updates(batch))
            faults.reach('update')
            self.progress.advance()
            if self.progress.advice_is_due:
                self.progress.advise(self.step, self.gradient_step)
            if len(self.metrics) % 50 == 0:
                self.agent.check_finite()
        self.agent.check_finite()
        self.progress.finish()
        self.progress.advise(self.step, self.gradient_step)

    def batches(self, updates):
        """Batches of replay for so many updates, fewer where the run shall stop."""
        stream = self.replay.stream(
            self.config.batch_size, updates, self.agent.on_device
        )
        with contextlib.closing(stream):
            for _ in range(updates):
                if self.stop:
                    break
                yield next(stream)

    def evaluate(self):
        """One episode in every evaluation environment, and videos."""
        seed = tools.spawn_seed(self.config.seed, 'eval_episodes', self.step)
        collector = Collector(self.eval_envs, seed)
        # Where episodes can end early, nobody knows how long they will be.
        self.progress.start(
            'evaluating',
            None if self.config.pcont else self.config.time_limit * len(self.eval_envs),
        )
        # Whatever breaks this off: it is done again on resume.
        done, self.should_eval.last = self.should_eval.last, None
        first = {}
        while len(first) < len(self.eval_envs) and not self.stop:
            steps, ended = collector.step(self.eval_policy)
            faults.reach('evaluation')
            self.progress.advance(steps)
            for episode in ended:
                # The first of each environment: short ones must not count more often.
                first.setdefault(int(episode['origin'][0]), episode)
        self.dropped += collector.dropped
        if self.stop:
            return
        self.should_eval.last = done
        played = [first[env] for env in sorted(first)]
        self.log_episodes('test', played, self.replay.episodes)
        if self.config.eval_video and 'image' in played[0]:
            self.logger.video(self.step, 'eval', played[0]['image'])
        if self.agent.world.decoders:
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
        batch = {key: x[rows] for key, x in batch.items()}
        predicted = self.agent.openloop(batch)
        if 'image' in predicted:
            video = openloop.frames(batch['image'], predicted['image'])
            self.logger.video(self.step, 'openloop', video, 10)
        else:
            picture = openloop.plot(
                batch['state'][:3], predicted['state'][:3], self.agent.CONTEXT
            )
            self.logger.picture(self.step, 'openloop', picture)

    def log(self):
        """Means of the losses since the last call, and speeds."""
        now = (time.monotonic(), self.step, self.gradient_step)
        seconds, steps, updates = (
            new - old for new, old in zip(now, self.log_start, strict=True)
        )
        values = logger.means(self.metrics)
        values.update(
            gradient_step=self.gradient_step,
            fps=steps / seconds if seconds else 0,
            updates_per_s=updates / seconds if seconds else 0,
        )
        values['episodes_skipped'] = self.replay.skipped
        values['episodes_dropped'] = self.dropped + self.collector.dropped
        for name, optimizer in self.agent.optimizers.items():
            values[f'{name}_skipped'] = int(optimizer.skipped.numpy())
        self.logger.scalars(self.step, values)
        self.progress.log(self.step, self.gradient_step, values)
        self.metrics = []
        self.logged, self.log_start = self.step, now

    def log_episodes(self, mode, episodes, count):
        """Mean raw return and length [agent steps] of episodes; `count` is how many
        the replay has.
        """
        score = float(np.mean([episode['reward'].sum() for episode in episodes]))
        length = float(np.mean([len(episode['reward']) - 1 for episode in episodes]))
        self.logger.scalars(
            self.step,
            {f'{mode}/return': score, f'{mode}/length': length, 'episodes': count},
        )
        if mode == 'train':
            self.progress.episode(score)
        else:
            self.progress.evaluated(self.step, score, length)

    def keep_choice(self, choice):
        """Store and tell what `--jit auto` has come to, before updates depend on it."""
        config_file.write_choice(choice, self.logdir)
        values = {f'jit_{name}': x for name, x in choice.items() if name != 'start'}
        self.logger.scalars(self.step, values)
        self.progress.choice(choice)

    def random_policy(self, observation, is_first):
        """Uniform actions."""
        if self.config.action_dist == 'onehot':
            choices = self.random.integers(self.action_size, size=len(is_first))
            return np.eye(self.action_size, dtype=np.float32)[choices]
        return self.random.uniform(-1, 1, (len(is_first), self.action_size))

    def request_stop(self):
        """Finish the current step, save, exit."""
        self.stop = True


class LeadingRun(machines.Leading, Run):
    """A run that several machines share, on the first of them."""


def set_up(argv):
    """From the command line to its configuration, what its networks are spread over,
    the team of several machines or None, the environments, which the first machine has,
    and whether the precision was chosen here; ends the program if anything is wrong.
    """
    envs = []
    try:
        config = configs.parse(argv)
        advice.warn_of_flags(argv, config)
        startup.keep_freed_memory()
        config = config_file.resume_precision(config)
        automatic = config.precision == 'auto'
        config, devices = startup.set_up_devices(config)
        strategy, team = machines.connect(config)
        if not (team and team.rank):
            envs = workers.make_envs(config, config.envs, config.eval_envs, devices)
            discrete = isinstance(envs[0].action_space, wrappers.OneHotSpace)
            config = config_file.settle(argv, config, discrete)
            config_file.refuse_changes(config, config.logdir)
    except (ValueError, RuntimeError, OSError) as error:
        workers.close_workers(envs)
        command_line.fail(error)
    return config, strategy, team, envs, automatic


def main(argv=None):
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    config, strategy, team, envs, automatic = set_up(argv)
    if team and team.rank:
        return machines.serve(argv, config, team)
    make_run = functools.partial(LeadingRun, team) if team else Run
    run = None
    try:
        try:
            groups = envs[: config.envs], envs[config.envs :]
            run = make_run(config, *groups, strategy, automatic)
            config_file.write(config, run.logdir, argv)
        except (UserError, OSError) as error:
            command_line.fail(error)
        signals.heed(run.request_stop, 'saving')
        with run.progress:
            run.loop()
        run.logger.close()
        run.progress.line(run.farewell())
    except Exception as error:
        if not isinstance(error, ONE_LINE_ERRORS):
            traceback.print_exc()  # A fault of the program's own.
        saved = run.save_after(error) if run else ''
        print(f'dreamer: stopped: {startup.explain(error)}{saved}', file=sys.stderr)
        return 1
    finally:
        workers.close_workers(envs)
    return 0


if __name__ == '__main__':
    sys.exit(main())
