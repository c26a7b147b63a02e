"""How a run keeps its episodes, and how it is saved and resumed.

A checkpoint holds the agent and, in a state that JSON can hold, the run's counters.
Episodes are files that outlive a crash. Those that are newer than the checkpoint are
counted when the run is resumed.
"""

import dataclasses
import pathlib
import shlex
import time

import numpy as np

import tools
from support.acting import workers
from support.run import logger, startup
from support.run.timing import timed
from support.storage import replay
from support.system.command_line import UserError


class NotToBeSaved(RuntimeError):
    """It ends a run whose state must not replace what is saved."""


def open_replay(config, action_size, state_size):
    """Open the replay of the episodes in the logdir.

    Args:
      config: `configs.Config`.
      action_size, state_size: of the environments.

    Raises:
      UserError: the episodes are of another action or state size.
    """
    stored = replay.Replay(
        pathlib.Path(config.logdir) / 'episodes',
        length=config.batch_length,
        observes=config.observes,
        seed=tools.spawn_seed(config.seed, 'replay'),
        balance=config.dataset_balance,
        memory=int(config.replay_memory) or None,
        capacity=config.replay_capacity // config.action_repeat,
    )
    for what, found, size in (
        ('actions', stored.action_size, action_size),
        ('numbers in a state', stored.state_size, state_size),
    ):
        if found not in (None, size):
            raise UserError(
                f'the episodes in {config.logdir} have {found} {what} and '
                f'{config.task} has {size}; choose another --logdir'
            )
    return stored


class Resumable:
    """What `dreamer.Run` does to keep episodes, to be saved and to be resumed.

    Attributes:
      should_log, should_eval, should_save: `tools.Every`, of environment steps.
      phase: `tools.Phase`, the current training phase.
      episodes: number of training episodes kept since the run began.
      dropped: number of episodes that were not kept, without `collector.dropped`.
      metrics: of the updates since the last log, a dict each.
      logged: environment steps at the last log.
      random: generator of the random actions of the prefill.
    """

    def keep(self, ended):
        """Put training episodes that have ended into the replay."""
        # They count as dropped until they are kept: an error may end the run before.
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

    @timed('save')
    def save(self):
        """Write a checkpoint. A run that is resumed has lost its unfinished episodes,
        so that they count as dropped there.
        """
        self.agent.check_weights()
        # Episodes that are counted must be on the disk.
        self.replay.flush()
        unfinished = self.collector.unfinished
        self.checkpoints.save(
            dict(
                metrics_size=self.logger.metrics.sync(),
                newest_episode=self.replay.newest,
                replay=self.replay.get_state(),
                random=self.random.bit_generator.state,
                started=self.collector.to_start,
                due=dict(
                    log=self.should_log.last,
                    eval=self.should_eval.last,
                    save=self.should_save.last,
                ),
                phase=dataclasses.asdict(self.phase),
                episodes=self.episodes,
                metrics=[
                    {key: float(value) for key, value in metrics.items()}
                    for metrics in self.metrics
                ],
                logged=self.logged,
                dropped=self.dropped + self.collector.dropped + len(unfinished),
                unfinished=[[*key, steps] for key, steps in unfinished.items()],
            )
        )

    def save_between_episodes(self):
        """Save if it is due and no episode would be lost.

        Several environments may never be between episodes together. After twice the
        interval a run is saved in any case.
        """
        late = self.step - self.should_save.last >= 2 * self.config.save_every
        if (late or not self.collector.unfinished) and self.should_save(self.step):
            self.save()

    def restore(self):
        """Set the counters to those of the newest checkpoint, or to those of a run that
        begins. Lines of metrics that are newer than the checkpoint are undone.
        """
        config = self.config
        state = self.checkpoints.restore()
        due = state.get('due', dict(log=None, eval=None, save=0))
        self.should_log = tools.Every(config.log_every, due['log'])
        self.should_eval = tools.Every(config.eval_every, due['eval'])
        self.should_save = tools.Every(config.save_every, due['save'])
        self.phase = tools.Phase(**state.get('phase', {}))
        self.episodes = state.get('episodes', 0)
        self.metrics = state.get('metrics', [])
        self.logged = state.get('logged', -1)
        self.dropped = state.get('dropped', 0)
        self.random = self.prefill_rng()
        self.logger = logger.Logger(self.logdir, state.get('metrics_size', 0))
        if state:
            print(f'resumed at step {self.step}', flush=True)
            self.replay.set_state(state['replay'])
            self.random.bit_generator.state = state['random']
            self.collector.started[: len(state['started'])] = state['started']
        counted = {
            (env, index): steps for env, index, steps in state.get('unfinished', ())
        }
        for found in self.replay.newer(state.get('newest_episode', '')):
            self.count_later_episode(*found, counted)
        self.log_start = (time.monotonic(), self.step, self.gradient_step)

    def count_later_episode(self, count, entry, episode, counted):
        """Count an episode that is newer than the checkpoint, and log it again.

        Args:
          count, entry, episode: of `Replay.newer`; the first is the episode's number
            among all.
          counted: steps that the checkpoint has counted of episodes that were
            unfinished then, by (environment, episode index). It took them for dropped.
        """
        steps = (entry.rows - 1) * self.config.action_repeat
        env, index, steps = entry.origin or (0, count - 1, steps)
        started = self.collector.started
        started += [0] * (env + 1 - len(started))
        started[env] = max(started[env], index + 1)
        self.dropped -= (env, index) in counted
        self.agent.env_step += steps - counted.get((env, index), 0)
        self.episodes += 1
        if self.agent.train_start >= 0:
            self.phase = self.phase.at(self.step, self.episodes, self.config)
        self.log_episodes('train', [episode], count)
        # The generator of the checkpoint would repeat this episode's random actions.
        self.random = self.prefill_rng(self.step)

    def save_after(self, error):
        """Save what can be saved after `error` has ended the run.

        Numbers that are not finite are dumped beside the checkpoints. After an error of
        the disk, or one of `NotToBeSaved`, nothing is saved. Otherwise the weights are
        whole, also in an update that failed.

        Returns:
          where it is, as the end of a message.
        """
        try:
            if isinstance(error, FloatingPointError):
                now = time.strftime('%Y%m%dT%H%M%S')
                prefix = self.logdir / 'dumps' / f'{now}-{self.step}'
                prefix.parent.mkdir(exist_ok=True)
                self.checkpoints.write(prefix)
                return f'; a dump of the networks is in {prefix}.*'
            if isinstance(error, (NotToBeSaved, OSError)):
                return ''
            self.save()
            return '\ndreamer: saved; the same command continues from here'
        except Exception as second:  # The first error must be reported in any case.
            return f'; it could not be saved: {startup.explain(second)}'

    def farewell(self):
        """Return the last line: at which step the run was saved, what to do next."""
        evaluate = f'python evaluate.py --logdir {shlex.quote(self.config.logdir)}'
        if self.stop:
            what, then = 'stopped', 'the same command continues'
        else:
            what, then = 'finished', 'the same command with more --steps continues'
        return f'{what}: saved at step {self.step:,}; {then}; next: {evaluate}'

    def prefill_rng(self, *key):
        """Return a generator of random actions, another one for each `key`."""
        return np.random.default_rng(
            tools.spawn_seed(self.config.seed, 'prefill', *key)
        )
