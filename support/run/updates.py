"""Which form a run's updates have: TensorFlow's graph, or what XLA compiles of it."""

import pathlib
import statistics
import time

import tensorflow as tf

from support.learning import xla
from support.run import config_file, profiling
from support.system import faults

# Of each form the first update compiles it, and as many more are timed.
TIMED = 5
NEEDED = 2 * (1 + TIMED)


def may_compile(config, gpus, replicas=1):
    """Whether `--jit auto` may find that XLA is faster.

    Args:
      config: `configs.Config`.
      gpus: how many TensorFlow sees. On CPUs XLA is slower at most sizes.
      replicas: among which updates are split; XLA compiles for one.

    Returns:
      False, too, with `--deterministic`: another run could choose otherwise.
    """
    automatic = config.jit == 'auto' and not config.deterministic
    return automatic and gpus == 1 and replicas == 1


def make(agent, config, strategy, keep, tell):
    """Make the `Updates` of a run, with the choice that it has made before.

    Args:
      agent: `agent.Dreamer`.
      config: `configs.Config`.
      strategy: of `replicas.make_strategy`; None for one device.
      keep: of `Updates`.
      tell: of `profiling.Profile`.
    """
    gpus = len(tf.config.list_physical_devices('GPU'))
    replicas = strategy.num_replicas_in_sync if strategy else 1
    logdir = pathlib.Path(config.logdir)
    choice = config_file.read_choice(logdir)
    profile = profiling.Profile(logdir, tell) if config.profile else None
    return Updates(agent, may_compile(config, gpus, replicas), choice, keep, profile)


class Updates:
    """Makes updates, and finds out meanwhile which form of them is faster.

    The first phase that has enough of them tries both forms in turn. All are ordinary
    updates. Those that come after have the faster form. A run that goes on from before
    the trial repeats it update by update, without a clock: its numbers are the same.

    Args:
      agent: `agent.Dreamer`.
      may_compile: of the function of this name; without it updates are as the agent's.
      choice: what came of the trial, if it has been made: a dict of `compiled`; of
        `start`, the number of its first update; of `graph_ms` and `xla_ms`, medians of
        an update. Only `compiled` is there if XLA could not compile.
      keep: takes the choice as soon as it is made.
      profile: `profiling.Profile` of updates in the form that stays, or None.
    """

    def __init__(
        self, agent, may_compile, choice=None, keep=lambda choice: None, profile=None
    ):
        self._agent, self._keep = agent, keep
        self._active, self._profile = may_compile, profile
        self.choice = choice if may_compile else None
        self._start = (self.choice or {}).get('start')
        self._seconds = {False: [], True: []}

    def begin(self, count):
        """A phase of `count` updates begins."""
        if self._active and not self.choice:
            enough = count >= NEEDED
            self._start = self._agent.gradient_step if enough else None
            self._seconds = {False: [], True: []}

    def __call__(self, data):
        """Make an update by `Dreamer.train`; return its metrics."""
        turn = self._turn()
        metrics = self._train(data, turn)
        faults.reach('update')
        if self._profile:
            self._profile.updated(metrics, turn is None)
        return metrics

    def end(self):
        """The run makes no more updates."""
        if self._profile:
            self._profile.end()

    def _turn(self):
        """Which update of the trial the next one is; None if it is of none."""
        if not self._active or self._start is None:
            return None
        turn = self._agent.gradient_step - self._start
        return turn if 0 <= turn < NEEDED else None

    def _train(self, data, turn):
        agent = self._agent
        if not self._active:
            return agent.train(data)
        faster = bool(self.choice and self.choice['compiled'])
        agent.compiled = faster if turn is None else bool(turn % 2)
        if self.choice or turn is None:
            return agent.train(data)
        return self._try(data, turn)

    def _try(self, data, turn):
        """An update of the trial, by the clock."""
        agent, began = self._agent, time.perf_counter()
        try:
            metrics = agent.train(data)
        except tf.errors.OpError as error:
            # It has changed nothing yet.
            if turn != 1:
                raise
            xla.warn('the training step', error)
            agent.compiled = False
            self._choose(dict(compiled=False))
            return agent.train(data)
        float(next(iter(metrics.values())))  # Until the GPU has done it.
        if turn > 1:
            self._seconds[agent.compiled].append(time.perf_counter() - began)
        if turn == NEEDED - 1:
            graph, compiled = (
                statistics.median(self._seconds[form]) for form in (False, True)
            )
            self._choose(
                dict(
                    compiled=compiled < graph,
                    start=self._start,
                    graph_ms=1000 * graph,
                    xla_ms=1000 * compiled,
                )
            )
        return metrics

    def _choose(self, choice):
        self.choice, self._start = choice, choice.get('start')
        self._keep(choice)


def describe(choice):
    """A choice in words."""
    form = 'compiled by XLA' if choice['compiled'] else 'not compiled'
    if 'graph_ms' not in choice:
        return f'{form}: XLA cannot; chosen by --jit auto'
    return (
        f'{form}, chosen by --jit auto ({choice["graph_ms"]:.3g} ms an update in '
        f"TensorFlow's graph, {choice['xla_ms']:.3g} ms by XLA)"
    )
