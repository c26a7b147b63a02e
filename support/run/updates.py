"""The form of a run's updates: TensorFlow's graph, or that graph compiled by XLA."""

import pathlib
import statistics
import time

import tensorflow as tf

from support.learning import xla
from support.run import config_file, profiling
from support.system import faults

# The first update of each form compiles it. This many more are timed.
TIMED = 5
NEEDED = 2 * (1 + TIMED)


def may_compile(config, gpus, replicas=1):
    """Return whether `--jit auto` has a choice.

    Args:
      config: `configs.Config`.
      gpus: how many TensorFlow sees. On CPUs XLA is slower at most sizes.
      replicas: among which updates are split; XLA compiles for one.

    Returns:
      whether it has; never with `--deterministic`, as another run could choose
      otherwise.
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
    """Make updates, and find out which form of them is faster.

    The first phase that has enough updates tries both forms in turn. These are ordinary
    updates. Later updates have the faster form. A run that is resumed from before the
    trial takes the same form for each update of the trial again, without measuring. So
    its numbers are the same.

    Args:
      agent: `agent.Dreamer`.
      may_compile: result of the function of this name; if False, the agent's form is
        kept.
      choice: result of the trial; None before. A dict of `compiled`, `start` (number of
        the trial's first update), `graph_ms` and `xla_ms` (medians of an update), or of
        `compiled` alone if XLA could not compile.
      keep: function that takes the choice as soon as it is made.
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
        """Begin a phase of `count` updates."""
        if self._active and not self.choice:
            enough = count >= NEEDED
            self._start = self._agent.gradient_step if enough else None
            self._seconds = {False: [], True: []}

    def __call__(self, batch):
        """Make an update by `Dreamer.train`; return its metrics."""
        turn = self._turn()
        metrics = self._train(batch, turn)
        faults.reach('update')
        if self._profile:
            self._profile.updated(metrics, turn is None)
        return metrics

    def end(self):
        """End the profile: the run makes no more updates."""
        if self._profile:
            self._profile.end()

    def _turn(self):
        """Return the next update's index in the trial; None if it is not part of it."""
        if not self._active or self._start is None:
            return None
        turn = self._agent.gradient_step - self._start
        return turn if 0 <= turn < NEEDED else None

    def _train(self, batch, turn):
        agent = self._agent
        if not self._active:
            return agent.train(batch)
        faster = bool(self.choice and self.choice['compiled'])
        agent.compiled = faster if turn is None else bool(turn % 2)
        if self.choice or turn is None:
            return agent.train(batch)
        return self._try(batch, turn)

    def _try(self, batch, turn):
        """Make an update of the trial and measure it."""
        agent, began = self._agent, time.perf_counter()
        try:
            metrics = agent.train(batch)
        except tf.errors.OpError as error:
            # Only the first compilation may fail: the weights are as before.
            if turn != 1:
                raise
            xla.warn('the training step', error)
            agent.compiled = False
            self._choose(dict(compiled=False))
            return agent.train(batch)
        float(next(iter(metrics.values())))  # Waits for the GPU.
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
    """Return a choice in words."""
    form = 'compiled by XLA' if choice['compiled'] else 'not compiled'
    if 'graph_ms' not in choice:
        return f'{form}: XLA cannot; chosen by --jit auto'
    return (
        f'{form}, chosen by --jit auto ({choice["graph_ms"]:.3g} ms an update in '
        f"TensorFlow's graph, {choice['xla_ms']:.3g} ms by XLA)"
    )
