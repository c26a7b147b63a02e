"""A run is saved and goes on: its checkpoints, what came after the newest, and what an
error leaves.
"""

import dataclasses
import shlex
import time

import numpy as np

import tools
from support.run import logger, startup


class NotToBeSaved(RuntimeError):
    """It ends a run whose state must not replace what is saved."""


class Resumable:
    """What `dreamer.Run` does to be saved and resumed.

    It has the run's agent, replay, collector, checkpoints and counters, and the
    schedules `every`.
    """

    @property
    def every(self):
        """Schedules by name, whose last calls are part of a checkpoint."""
        return dict(log=self.should_log, eval=self.should_eval, save=self.should_save)

    def save(self):
        """Write a checkpoint: networks, optimisers, loss scales, counters and noise,
        and as a state all else that the run goes on from. Episodes that have not ended
        are dropped on resume, and count as such.
        """
        self.agent.check_weights()
        # What is counted must be there when the run goes on.
        self.replay.flush()
        unfinished = self.collector.unfinished
        self.checkpoints.save(
            dict(
                metrics_size=self.logger.sync(),
                newest_episode=self.replay.newest,
                replay=self.replay.get_state(),
                random=self.random.bit_generator.state,
                started=self.collector.to_start,
                due={name: every.last for name, every in self.every.items()},
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

    def restore(self):
        """Go on from the newest checkpoint, if there is one, with the metrics as they
        were. Episodes that are newer, after a crash, stay in the replay: their steps
        count, and their metrics are written again.
        """
        state = self.checkpoints.restore()
        self.logged = state.get('logged', -1)
        self.logger = logger.Logger(self.logdir, state.get('metrics_size', 0))
        if state:
            print(f'resumed at step {self.step}', flush=True)
            self.replay.set_state(state['replay'])
            self.random.bit_generator.state = state['random']
            self.collector.started[: len(state['started'])] = state['started']
            for name, last in state['due'].items():
                self.every[name].last = last
            self.phase = tools.Phase(**state['phase'])
            self.episodes = state['episodes']
            self.metrics = state['metrics']
            self.dropped = state['dropped']
        counted = {
            (env, index): steps for env, index, steps in state.get('unfinished', ())
        }
        for found in self.replay.newer(state.get('newest_episode', '')):
            self.count_later_episode(*found, counted)

    def count_later_episode(self, count, entry, episode, counted):
        """Count an episode that is newer than the checkpoint, the `count`th of all;
        `counted` are steps that it has of those that were unfinished then, and that it
        took for dropped.
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
        # Its random actions were drawn from what the checkpoint holds.
        self.random = self.prefill_rng(self.step)

    def save_after(self, error):
        """Keep what can be kept when `error` ends the run: a dump beside the
        checkpoints if numbers were not finite, and a checkpoint unless the disk or the
        weights are at fault: between updates, and in a broken one, they are whole.
        Returns where it is, as the end of a message.
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
            return '\ndreamer: saved; the same command goes on from here'
        except Exception as second:  # Whatever it is, the first one is to be told.
            return f'; it could not be saved: {startup.explain(second)}'

    def farewell(self):
        """The last line: at which step the run was saved, and what to do next."""
        evaluate = f'python evaluate.py --logdir {shlex.quote(self.config.logdir)}'
        if self.stop:
            what, then = 'stopped', 'the same command goes on'
        else:
            what, then = 'finished', 'the same command with more --steps goes on'
        return f'{what}: saved at step {self.step:,}; {then}; next: {evaluate}'

    def prefill_rng(self, *key):
        """The generator of random actions, anew for each `key`."""
        return np.random.default_rng(
            tools.spawn_seed(self.config.seed, 'prefill', *key)
        )
