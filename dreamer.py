"""Dreamer: learning behaviors by latent imagination (Hafner et al., ICLR 2020).

    python dreamer.py --logdir ./logs --task dmc_walker_walk

The training loop and the command line; agent.py has the agent.

Shapes: A action, E environments.
"""

import contextlib
import functools
import pathlib
import sys
import traceback

if sys.flags.safe_path:  # Then Python does not look for modules beside this file.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from support.system import command_line, signals, streams, temporary

if __name__ == '__main__':
    streams.protect()
    # Until there is a run to save, Ctrl-C ends the program silently.
    signals.end_by(*signals.ASKING)
    temporary.provide('dreamer')

import configs

if __name__ == '__main__':
    # Report mistakes before the import of TensorFlow, which takes seconds.
    with command_line.refusing('dreamer'):
        configs.parse(sys.argv[1:])

from support.acting.collector import Collector
from support.run import startup  # noqa: F401 (first: it imports TensorFlow without its chatter)

# isort: split
import numpy as np

import tools
import wrappers
from agent import Dreamer, Policy
from support.acting import workers
from support.run import (
    advice,
    checkpoints,
    config_file,
    exporting,
    progress,
    reporting,
    saving,
    updates,
)
from support.run.timing import Stopwatch, timed
from support.scaling import machines
from support.storage import episodes, finished
from support.system.command_line import UserError


class Run(saving.Resumable, reporting.Reporting):
    """One run: the agent, its environments and its replay.

    Args:
      config: `configs.Config`.
      envs, eval_envs: workers.
      strategy: from `replicas.make_strategy`; None for one device.
      automatic: whether `--precision auto` chose the precision.
    """

    def __init__(self, config, envs, eval_envs, strategy=None, automatic=False):
        discrete = isinstance(envs[0].action_space, wrappers.OneHotSpace)
        self.config = config = configs.fit_to_actions(config, discrete)
        self.logdir = pathlib.Path(config.logdir)
        (self.action_size,) = envs[0].action_space.shape
        self.state_size = workers.state_size(envs[0])
        self.row_bytes = episodes.row_bytes(
            self.action_size, self.state_size, config.observes
        )
        configs.check_length(config, self.row_bytes)
        self.lock = checkpoints.Lock(self.logdir)
        self.agent = Dreamer(config, self.action_size, strategy, self.state_size)
        self.checkpoints = checkpoints.Checkpoints(
            self.logdir / 'checkpoints', self.agent, config.keep_checkpoints
        )
        self.replay = saving.open_replay(config, self.action_size, self.state_size)
        self.progress = progress.Progress(config, automatic=automatic)
        self.updates = updates.make(
            self.agent, config, strategy, self.keep_choice, self.progress.line
        )
        # One half of the environments steps while the policy chooses for the other.
        halves = 2 if config.envs > 1 and config.parallel == 'process' else 1
        seed = tools.spawn_seed(config.seed, 'episodes')
        self.collector = Collector(envs, seed, halves)
        self.policy = [
            Policy(self.agent, len(group), training=True)
            for group in self.collector.groups
        ]
        self.eval_envs = eval_envs
        self.eval_policy = Policy(self.agent, len(eval_envs), training=False)
        self.stop = False
        self.stopwatch = Stopwatch()
        self.restore()

    @property
    def step(self):
        """Environment steps taken, prefill included."""
        return self.agent.env_step

    @property
    def gradient_step(self):
        """Updates made."""
        return self.agent.gradient_step

    def loop(self):
        """Run Algorithm 1 of the paper.

        `prefill` collects its seed episodes, `train` makes its updates of the world
        model and the behavior, and `collect` interacts with the environment.
        """
        config = self.config
        self.announce()
        self.prefill()
        while not self.stop:
            self.train()
            if self.stop:
                break
            ended = self.step >= config.steps
            # Unlike `self.step`, the step of the phase is the same after a resume.
            step = self.step if ended else self.phase.step
            if self.should_log(step) or (ended and self.step > self.logged):
                self.log()
            if self.should_eval(step):
                self.evaluate()
            if ended:
                break
            self.collect(
                self.policy,
                self.phase.step + config.train_every,
                self.phase.episodes + config.train_episodes,
                config.steps,
            )
        self.updates.end()
        self.save()
        if not self.stop:
            finished.state(self.logdir, self.step)

    def prefill(self):
        """Collect `prefill` steps with random actions, and at least one episode."""
        config = self.config
        started = self.agent.train_start >= 0
        policy, name = self.random_policy, 'prefill'
        if not started:
            self.collect(policy, config.prefill, config.prefill_episodes, name=name)
        # The user may have deleted the episodes of a resumed run.
        if not self.replay.episodes:
            self.collect(policy, self.step, self.episodes + 1, name=name)
        if not self.stop and not started:
            self.agent.train_start = self.step
            self.phase = tools.Phase(0, self.step, self.episodes)

    @timed('collect')
    def collect(self, policy, steps, episodes=0, end=np.inf, name='collecting'):
        """Act in the environments and put the episodes that end into the replay.

        Args:
          policy: for `Collector.step`.
          steps, episodes: environment steps and kept episodes since the start of the
            run; collecting ends when both are reached.
          end: environment steps at which collecting ends in any case.
          name: of this activity, for the progress display.
        """
        self.progress.start(name, max(0, min(steps, end) - self.step))
        while not self.stop and self.step < end:
            if self.step >= steps and self.episodes >= episodes:
                break
            taken, ended = self.collector.step(policy)
            self.agent.env_step += taken
            self.progress.advance(taken)
            self.keep(ended)
            self.save_between_episodes()

    @timed('train')
    def train(self):
        """Make the updates that are due: `pretrain` after the prefill, and
        `train_steps` for every `train_every` environment steps. After a stop, the
        resumed run makes the missing ones.
        """
        config = self.config
        self.phase = self.phase.at(self.step, self.episodes, config)
        total = config.pretrain + self.phase.number * config.train_steps
        updates = max(0, total - self.gradient_step)
        name = 'training' if self.phase.number else 'pretraining'
        self.progress.start(name, updates, 'updates')
        self.updates.begin(updates)
        for batch in self.batches(updates):
            self.metrics.append(self.updates(batch))
            self.progress.advance()
            if len(self.metrics) % 50 == 0:
                self.agent.check_finite()
        self.agent.check_finite()
        self.progress.finish()

    # Parts of the steps above.

    def batches(self, updates):
        """Yield a batch of replay for each update, until the run shall stop."""
        stream = self.replay.stream(
            self.config.batch_size, updates, self.agent.on_device
        )
        with contextlib.closing(stream):
            for _ in range(updates):
                if self.stop:
                    break
                yield next(stream)

    def random_policy(self, observation, is_first):
        """Choose uniform actions [E, A]."""
        envs, size = len(is_first), self.action_size
        if self.config.action_dist == 'onehot':
            return np.eye(size, dtype=np.float32)[self.random.integers(size, size=envs)]
        return self.random.uniform(-1, 1, (envs, size))

    def request_stop(self):
        """Let the run end its current step, save and exit."""
        self.stop = True


class LeadingRun(machines.Leading, Run):
    """A run on several machines, as the first of them executes it."""


def set_up(argv):
    """Prepare what a run needs; end the program if anything is wrong.

    Args:
      argv: words of the command line.

    Returns:
      config: `configs.Config`.
      strategy, team: from `machines.connect`.
      envs: workers; empty on machines that only learn.
      automatic: whether `--precision auto` chose the precision.
    """
    envs = []
    try:
        config = configs.parse(argv)
        advice.warn_of_flags(argv, config)
        exporting.refuse_to_train(config.logdir)
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
    """Run the command line; return the exit code."""
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
        if not isinstance(error, machines.ONE_LINE_ERRORS):
            traceback.print_exc()  # A mistake in this program.
        saved = run.save_after(error) if run else ''
        print(f'dreamer: stopped: {startup.explain(error)}{saved}', file=sys.stderr)
        return 1
    finally:
        workers.close_workers(envs)
        if run:
            run.lock.release()
    return 0


if __name__ == '__main__':
    sys.exit(main())
