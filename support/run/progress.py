"""What a run shows: a header, bars on a terminal, plain lines elsewhere, advice.

Rich draws the bars and respects NO_COLOR. Where output is no terminal there is a line
every log interval, and one a minute in a phase that takes longer.
"""

import collections
import dataclasses
import math
import pathlib
import sys
import time

import rich.console
import rich.progress
import tensorflow as tf

from support.run import advice, startup, updates
from support.storage import finished, replay
from support.system import limits

# Phases that happen once, and those whose steps are the run's own.
ONCE = ('prefill', 'pretraining')
COLLECTING = ('prefill', 'collecting')

# Metrics of a log line, with their names there. Of two entropies the share is shown.
SHOWN = dict(
    div='KL {:.3g}',
    reward_loss='reward loss {:.3g}',
    action_ent_share='entropy {:.0%}',
    action_ent='entropy {:.3g}',
)


@dataclasses.dataclass
class Pace:
    """What the phases of one name did: how many they were, `done` steps or updates in
    `seconds`. The very first step or update, which is compiled, does not count.

    After every `MEMORY` seconds the past counts half, because a machine's speed changes
    and a process may be suspended for hours.
    """

    MEMORY = 600

    phases: float = 0
    done: float = 0
    seconds: float = 0
    warm: bool = False

    @property
    def rate(self):
        """Steps or updates a second; None before any were measured."""
        return self.done / self.seconds if self.done and self.seconds else None

    def add(self, amount, seconds):
        """Count steps or updates."""
        if self.warm:
            self.done += amount
            self.seconds += seconds
        self.warm = True
        if self.seconds > self.MEMORY:
            self.phases, self.done, self.seconds = (
                x / 2 for x in (self.phases, self.done, self.seconds)
            )


class Progress:
    """A run's output. A context manager: the bars end with it.

    Args:
      config: `configs.Config` with its precision resolved.
      console: `rich.console.Console`; that of stdout by default.
      silence: longest time without a line where there are no bars [seconds].
      automatic: whether `--precision auto` chose the precision.
    """

    def __init__(self, config, console=None, silence=60, automatic=False):
        self._config = config
        self._automatic = automatic
        self._console = console or rich.console.Console(highlight=False)
        self._silence = silence
        self._bars = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bars = rich.progress.Progress(
                rich.progress.TextColumn('{task.description:<11}'),
                rich.progress.BarColumn(20),
                rich.progress.TextColumn('{task.fields[text]}'),
                console=self._console,
                transient=True,
                refresh_per_second=2,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._run_bar = self._bars.add_task('run', total=config.steps, text='')
            self._phase_bar = self._bars.add_task('', text='', visible=False)
        self._paces = collections.defaultdict(Pace)
        self._name = None
        self._printed = self._now = time.monotonic()
        self._step, self._left = 0, None
        self._returns, self._lengths = [], collections.deque(maxlen=100)
        self._best = None
        self._certain = None
        self._show_run()

    def __enter__(self):
        if self._bars:
            self._bars.start()
            # A second Ctrl-C ends the program without a chance to show it again.
            self._console.show_cursor(True)
        return self

    def __exit__(self, *error):
        self.finish()
        if self._bars:
            self._bars.stop()

    def line(self, text):
        """Print a line, above the bars if there are any."""
        self._console.print(text, markup=False, soft_wrap=not self._bars)
        self._printed = time.monotonic()

    def start(self, name, total, unit='steps'):
        """A phase of `total` steps or updates begins, None if nobody knows how many;
        the one before has ended.
        """
        self.finish()
        self._name, self._total, self._unit = name, total, unit
        self._done, self._began = 0, time.monotonic()
        self._now = self._began
        self._paces[name].phases += 1
        if self._bars:
            text = f'0/{total:,} {unit}' if total else f'0 {unit}'
            self._bars.reset(
                self._phase_bar,
                description=name,
                total=total,
                text=text,
                visible=total != 0,
            )
        elif name in ONCE and total:
            self.line(f'{name}: {total:,} {unit}')

    def advance(self, amount=1):
        """`amount` more steps or updates of the phase are done."""
        now = time.monotonic()
        self._paces[self._name].add(amount, now - self._now)
        self._now = now
        before, self._done = self._done, self._done + amount
        every = self._config.log_every
        if self._bars:
            self._bars.update(self._phase_bar, advance=amount, text=self._state())
            if self._name in COLLECTING:
                self._step += amount
                self._show_run()
        elif now - self._printed > self._silence or (
            self._name == 'prefill'
            and self._done != self._total
            and before // every < self._done // every
        ):
            self.line(f'{self._name}: {self._state()}')

    def finish(self):
        """The phase has ended. A whole prefill, in which nothing else takes time, tells
        whether images are drawn slowly.
        """
        if self._bars:
            self._bars.update(self._phase_bar, visible=False)
        elif self._name in ONCE and self._done:
            took = advice.duration(time.monotonic() - self._began)
            self.line(f'{self._name}: {self._done:,} {self._unit} done in {took}')
        rate = self._paces['prefill'].rate
        if self._name == 'prefill' and rate and self._done >= self._total:
            frames = rate / self._config.action_repeat
            self._advise(advice.advise_rendering(self._config, frames, gpu_names()))
        self._name = None

    def _advise(self, *texts):
        for text in filter(None, texts):
            self.line(f'advice: {text}')

    def _done_of_all(self):
        total = self._config.steps
        return f'{self._step:,}/{total:,} ({self._step / total:.0%})'

    def _show_run(self):
        if self._bars:
            left = '' if self._left is None else f', {advice.duration(self._left)} left'
            text = f'{self._done_of_all()} steps{left}'
            self._bars.update(self._run_bar, completed=self._step, text=text)

    def _state(self):
        """Of the phase: what is done, its rate, the time that remains."""
        seconds = self._now - self._began
        rate = self._done / seconds if seconds else math.inf
        state = f'{self._done:,}'
        # A prefill lasts to the end of its first episode, whose length nobody knows.
        known = self._total and self._done <= self._total
        if known:
            state += f'/{self._total:,}'
        state += f' {self._unit}, {rate:.3g} {self._unit}/s'
        if known and rate:
            state += f', {advice.duration((self._total - self._done) / rate)} left'
        return state

    def episode(self, score, length):
        """A training episode has ended. Its return goes into the next log line, its
        length [agent steps] into the time that remains.
        """
        self._returns.append(score)
        self._lengths.append(length * self._config.action_repeat)

    def evaluated(self, step, score, length):
        """The line of an evaluation: raw return, length [agent steps], and the best."""
        if self._best is None or score > self._best[1]:
            self._best = step, score
        self.line(
            f'step {step:,}: evaluation return {score:.1f}, length {length:.0f}, '
            f'best so far {self._best[1]:.1f} (step {self._best[0]:,})'
        )

    def log(self, step, values):
        """The line of a log interval, from the values that are logged."""
        parts = []
        if self._returns:
            parts.append(f'train return {sum(self._returns) / len(self._returns):.1f}')
        left_out = {'action_ent'} if 'action_ent_share' in values else ()
        parts += [
            text.format(values[key])
            for key, text in SHOWN.items()
            if key in values and key not in left_out
        ]
        parts += [
            f'{values["fps"]:.3g} steps/s',
            f'{values["updates_per_s"]:.3g} updates/s',
        ]
        self._step, self._left = step, self.remaining(step)
        if self._left is not None:
            parts.append(f'{advice.duration(self._left)} left')
        self.line(f'step {self._done_of_all()}: {", ".join(parts)}')
        self._returns = []
        if not self._certain:
            self._certain = advice.advise_certain(self._config, values)
            self._advise(self._certain)
        self._show_run()

    def remaining(self, step):
        """Seconds from `step`, where a training phase has ended, to the run's end, by
        the rates of collecting, training and evaluations. None before the first two
        were measured: the rates of prefill and pretraining can be far from them.
        """
        paces, config = self._paces, self._config
        collect, train = paces['collecting'].rate, paces['training'].rate
        if not collect or not train:
            return None
        steps = max(0, config.steps - step)
        seconds = steps / collect + self._updates_in(steps) / train
        evaluations = paces['evaluating']
        if evaluations.phases:
            seconds += (
                steps // config.eval_every * evaluations.seconds / evaluations.phases
            )
        return seconds

    def _updates_in(self, steps):
        """Updates that come with so many environment steps. A phase needs both its
        steps and its episodes, whose length is the mean of those seen, or the time
        limit where nothing else ends them.
        """
        config = self._config
        length = 0 if config.pcont else config.time_limit
        if self._lengths:
            length = sum(self._lengths) / len(self._lengths)
        phase = max(config.train_every, config.train_episodes * length)
        return config.train_steps * steps / phase

    def choice(self, choice):
        """The row of `Updates.choice`, in the header or where it is made."""
        if choice:
            self.line(f'{"training":<11} {updates.describe(choice)}')

    def header(self, agent, row_bytes, step, choice=None):
        """Print what runs, on what, how long, and where its results are. A resumed run
        keeps its best evaluation and its `choice`.
        """
        config = self._config
        self._best, self._step = best_evaluation(config), step
        self._show_run()
        gpus = gpu_names()
        device = ', '.join(gpus) or f'CPU, {limits.count_cores()}'
        precision = {'16': 'float16', '32': 'float32'}.get(
            config.precision, config.precision
        )
        chosen = ', chosen by --precision auto' if self._automatic else ''
        parameters = ', '.join(
            f'{name} {optimizer.parameters:,}'
            for name, optimizer in agent.optimizers.items()
        )
        rows = [
            ('task', f'{config.task}, seed {config.seed}'),
            ('method', f'{config.method}, {config.representation}'),
            ('device', f'{device}; {precision}{chosen}'),
            ('rendering', advice.renderer()),
            ('parameters', parameters),
            ('steps', steps_left(config, step)),
            ('replay', replay_size(config, row_bytes)),
            ('logs', f'{config.logdir} (tensorboard --logdir {config.logdir})'),
        ]
        for name, text in rows:
            if text:
                self.line(f'{name:<11} {text}')
        self.choice(choice)
        to_come = max(0, config.steps - step)
        updates_to_come = round(
            max(0, config.pretrain - agent.gradient_step)
            + self._updates_in(max(0, config.steps - max(step, config.prefill)))
        )
        self._advise(
            # A setting that defines the run is chosen before it starts.
            None if step else advice.advise_tuned(config),
            advice.advise_disk(config, replay_bytes(config, row_bytes, to_come)),
            None if gpus else advice.advise_small(config, updates_to_come),
            startup.advise_precision(config, None if gpus else startup.cpu_flags()),
        )


def steps_left(config, step):
    """How far the run in the logdir is."""
    text = f'{max(0, config.steps - step):,} to go, {step:,} of {config.steps:,} done'
    if finished.step_of(pathlib.Path(config.logdir)) >= config.steps:
        return f'{text}; finished'
    if step >= config.steps:
        return f'{text}; not finished'
    return text


def best_evaluation(config):
    """Step and return of the best evaluation in the logdir; None without any."""
    steps, scores = advice.returns(config, 'test')
    best = scores.argmax() if len(scores) else None
    return None if best is None else (int(steps[best]), float(scores[best]))


def gpu_names():
    """Names of the GPUs that TensorFlow sees."""
    return [
        tf.config.experimental.get_device_details(gpu).get('device_name', gpu.name)
        for gpu in tf.config.list_physical_devices('GPU')
    ]


def replay_bytes(config, row_bytes, steps):
    """Bytes of `steps` environment steps in replay, of which it may keep fewer."""
    kept = min(steps, config.replay_capacity or steps)
    return kept / config.action_repeat * row_bytes


def replay_size(config, row_bytes):
    """What the replay will take by the end of the run."""
    disk = replay_bytes(config, row_bytes, config.steps)
    memory = min(disk, config.replay_memory or replay.default_memory())
    return f'by the end {advice.size(disk)} on disk, {advice.size(memory)} in memory'
