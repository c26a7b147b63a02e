"""What a run reports: losses, speeds, returns of episodes, evaluations, videos."""

import dataclasses
import time

import numpy as np

import tools
from support.acting.collector import Collector
from support.run import config_file, logger, openloop
from support.run.evaluation import CONTEXT
from support.run.timing import timed
from support.storage import finished
from support.system import faults


class Reporting:
    """What `dreamer.Run` does to log and to evaluate."""

    def announce(self):
        """Show what runs, and take back that the run has finished."""
        choice = self.updates.choice
        self.progress.header(self.agent, self.row_bytes, self.step, choice)
        finished.withdraw(self.logdir)
        self.logger.text(self.step, 'config', config_file.as_table(self.config))
        settings = dataclasses.asdict(self.config)
        del settings['logdir']
        self.logger.hyperparameters(settings)

    @timed('log')
    def log(self):
        """Log the means of the losses since the last call, speeds and counts."""
        now = (time.monotonic(), self.step, self.gradient_step)
        seconds, steps, updates = (
            new - old for new, old in zip(now, self.log_start, strict=True)
        )
        values = dict(
            logger.means(self.metrics),
            gradient_step=self.gradient_step,
            fps=steps / seconds if seconds else 0,
            updates_per_s=updates / seconds if seconds else 0,
            episodes_skipped=self.replay.skipped,
            episodes_dropped=self.dropped + self.collector.dropped,
            **self.stopwatch.lap(),
        )
        for name, optimizer in self.agent.optimizers.items():
            values[f'{name}_skipped'] = int(optimizer.skipped.numpy())
        self.logger.scalars(self.step, values)
        self.progress.log(self.step, values)
        self.metrics = []
        self.logged, self.log_start = self.step, now

    @timed('log')
    def log_episodes(self, mode, episodes, count):
        """Log the mean raw return and length [agent steps] of episodes.

        Args:
          mode: 'train' or 'test'.
          episodes: dicts of `Collector.step`.
          count: how many episodes the replay has.
        """
        score = float(np.mean([episode['reward'].sum() for episode in episodes]))
        length = float(np.mean([len(episode['reward']) - 1 for episode in episodes]))
        self.logger.scalars(
            self.step,
            {f'{mode}/return': score, f'{mode}/length': length, 'episodes': count},
        )
        if mode == 'train':
            self.progress.episode(score, length)
        else:
            self.progress.evaluated(self.step, score, length)

    @timed('evaluate')
    def evaluate(self):
        """Log the return of one episode in every evaluation environment, and videos."""
        # A resumed run repeats, with the same noise, an evaluation that a signal or an
        # error has broken off.
        last, self.should_eval.last = self.should_eval.last, None
        noise = self.agent.eval_rng.state.numpy()
        whole = False
        try:
            episodes = self.evaluation_episodes()
            whole = not self.stop
        finally:
            if not whole:
                self.agent.eval_rng.state.assign(noise)
        if not whole:
            return
        self.should_eval.last = last
        self.log_episodes('test', episodes, self.replay.episodes)
        if self.config.eval_video and 'image' in episodes[0]:
            self.logger.video(self.step, 'eval', episodes[0]['image'])
        if self.agent.world.decoders:
            self.log_openloop()

    def evaluation_episodes(self):
        """Return the first episode of each evaluation environment; fewer if the run
        shall stop. Short episodes must not count more often than long ones.
        """
        seed = tools.spawn_seed(self.config.seed, 'eval_episodes', self.step)
        collector = Collector(self.eval_envs, seed)
        count = len(self.eval_envs)
        # With `pcont` an episode can end before its time limit.
        total = None if self.config.pcont else self.config.time_limit * count
        self.progress.start('evaluating', total)
        first = {}
        while len(first) < count and not self.stop:
            steps, ended = collector.step(self.eval_policy)
            faults.reach('evaluation')
            self.progress.advance(steps)
            for episode in ended:
                first.setdefault(int(episode['origin'][0]), episode)
        self.dropped += collector.dropped
        return [first[env] for env in sorted(first)]

    def log_openloop(self):
        """Log what the world model predicts: a video, or a plot of state vectors."""
        # This batch must not change which batches are trained on.
        state = self.replay.get_state()
        batch = self.replay.sample(self.config.batch_size)
        self.replay.set_state(state)
        # Six sequences, of one episode each if there are such.
        joined = batch['is_first'][:, 1:].any(1)
        rows = np.argsort(joined, kind='stable')[:6]
        batch = {key: x[rows] for key, x in batch.items()}
        predicted = self.agent.openloop(batch, CONTEXT)
        if 'image' in predicted:
            video = openloop.frames(batch['image'], predicted['image'])
            self.logger.video(self.step, 'openloop', video, 10)
        else:
            picture = openloop.plot(batch['state'][:3], predicted['state'][:3], CONTEXT)
            self.logger.picture(self.step, 'openloop', picture)

    def keep_choice(self, choice):
        """Store and show what `--jit auto` has chosen, before updates depend on it."""
        config_file.write_choice(choice, self.logdir)
        values = {f'jit_{name}': x for name, x in choice.items() if name != 'start'}
        self.logger.scalars(self.step, values)
        self.progress.choice(choice)
