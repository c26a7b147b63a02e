"""What a run shows while it goes on: bars on a terminal, plain lines elsewhere, advice.

Rich draws the bars and respects NO_COLOR. Where output is no terminal there is a line
every log interval, and one a minute in a phase that takes longer.
"""

import collections
import dataclasses
import math
import pathlib
import shutil
import sys
import time

import numpy as np
import rich.console
import rich.progress
import tensorflow as tf

import configs
from support.envs import rendering
from support.run import startup, updates
from support.storage import finished, metrics, replay
from support.system import limits

# Phases that happen once, and those whose steps are the run's own.
ONCE = ('prefill', 'pretraining')
COLLECTING = ('prefill', 'collecting')

# Updates of this many seconds tell how long a run will take.
ADVISE_AFTER = 30
# Fewer rendered frames a second than this are worth a word.
SLOW_RENDERING = 150
# An actor below this share of the largest entropy hardly tries anything else.
CERTAIN_BELOW = 0.03
SOFTWARE = ('llvmpipe', 'softpipe', 'swrast', 'software')


@dataclasses.dataclass
class Pace:
    """What the phases of one name did: how many they were, `done` steps or updates in
    `seconds`. The very first step or update, which is compiled, does not count.
    """

    phases: int = 0
    done: int = 0
    seconds: float = 0.0
    warm: bool = False

    @property
    def rate(self):
        """Steps or updates a second; None before any were measured."""
        return self.done / self.seconds if self.done and self.seconds else None


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
        self._returns = []
        self._best = None
        self._advised = False
        self._certain = None

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
            text = f'0/{total:,} {unit}' if total else ''
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
        pace = self._paces[self._name]
        if pace.warm:
            pace.done += amount
            pace.seconds += now - self._now
        pace.warm, self._now = True, now
        before, self._done = self._done, self._done + amount
        every = self._config.log_every
        if self._bars:
            self._bars.update(self._phase_bar, advance=amount, text=self._state())
            if self._name in COLLECTING:
                self._bars.advance(self._run_bar, amount)
        elif now - self._printed > self._silence or (
            self._name == 'prefill'
            and self._done != self._total
            and before // every < self._done // every
        ):
            self.line(f'{self._name}: {self._state()}')

    def finish(self):
        """The phase has ended."""
        if self._bars:
            self._bars.update(self._phase_bar, visible=False)
        elif self._name in ONCE and self._done:
            took = duration(time.monotonic() - self._began)
            self.line(f'{self._name}: {self._done:,} {self._unit} done in {took}')
        self._name = None

    def _state(self):
        """Of the phase: what is done, its rate, the time that remains."""
        seconds = self._now - self._began
        rate = self._done / seconds if seconds else math.inf
        state = f'{self._done:,}'
        # A prefill goes on to the end of its first episode: nobody knows how long.
        known = self._total and self._done <= self._total
        if known:
            state += f'/{self._total:,}'
        state += f' {self._unit}, {rate:.3g} {self._unit}/s'
        if known and rate:
            state += f', {duration((self._total - self._done) / rate)} left'
        return state

    def episode(self, score):
        """A training episode has ended; its return goes into the next log line."""
        self._returns.append(score)

    def evaluated(self, step, score, length):
        """The line of an evaluation: raw return, length [agent steps], and the best."""
        if self._best is None or score > self._best[1]:
            self._best = step, score
        self.line(
            f'step {step:,}: evaluation return {score:.1f}, length {length:.0f}, '
            f'best so far {self._best[1]:.1f} (step {self._best[0]:,})'
        )

    def log(self, step, updates, values):
        """The line of a log interval, from the values that are logged."""
        total = self._config.steps
        parts = []
        if self._returns:
            parts.append(f'train return {sum(self._returns) / len(self._returns):.1f}')
        parts += [
            f'{name} {values[name]:.4g}'
            for name in ('model_loss', 'actor_loss', 'value_loss')
            if name in values
        ]
        parts += [
            f'{values["fps"]:.3g} steps/s',
            f'{values["updates_per_s"]:.3g} updates/s',
        ]
        left = self.remaining(step, updates)
        if left is not None:
            parts.append(f'{duration(left)} left')
        done = f'{step:,}/{total:,} ({step / total:.0%})'
        self.line(f'step {done}: {", ".join(parts)}')
        self._returns = []
        if not self._certain:
            self._certain = advise_certain(self._config, values)
            if self._certain:
                self.line(f'advice: {self._certain}')
        if self._bars:
            self._bars.update(
                self._run_bar,
                completed=step,
                text=f'{done} steps' + (f', {parts[-1]}' if left else ''),
            )

    def remaining(self, step, updates):
        """Seconds until the run's end by the rates of collecting, training and
        evaluations. None before the first two were measured: the rates of prefill and
        pretraining can be far from them.
        """
        paces = self._paces
        return self._remaining(
            step, updates, paces['collecting'].rate, paces['training'].rate
        )

    def _remaining(self, step, updates, collect, train):
        paces, config = self._paces, self._config
        if not collect or not train:
            return None
        steps = max(0, config.steps - step)
        due = config.pretrain + config.train_steps * (
            max(0, config.steps - config.prefill) // config.train_every
        )
        seconds = steps / collect + max(0, due - updates) / train
        evaluations = paces['evaluating']
        if evaluations.phases:
            seconds += (
                steps // config.eval_every * evaluations.seconds / evaluations.phases
            )
        return seconds

    @property
    def advice_is_due(self):
        """Whether the phase has gone on for long enough to tell what may help."""
        return not self._advised and self._paces[self._name].seconds >= ADVISE_AFTER

    def advise(self, step, updates):
        """Print, once, what may help, if speeds have been measured. Prefill and
        pretraining are enough: the order of magnitude counts.
        """
        paces = self._paces
        seconds = self._remaining(
            step,
            updates,
            paces['collecting'].rate or paces['prefill'].rate,
            paces['training'].rate or paces['pretraining'].rate,
        )
        if self._advised or seconds is None:
            return
        self._advised = True
        frames = self._paces['prefill'].rate or self._paces['collecting'].rate
        for text in (
            advise_time(self._config, seconds, gpu_names()),
            advise_rendering(
                self._config, frames / self._config.action_repeat, gpu_names()
            ),
        ):
            if text:
                self.line(f'advice: {text}')

    def choice(self, choice):
        """The row of `Updates.choice`, in the header or where it is made."""
        if choice:
            self.line(f'{"training":<11} {updates.describe(choice)}')

    def header(self, agent, row_bytes, step, choice=None):
        """Print what runs, on what, how long, and where its results are. A run that is
        resumed goes on with its best evaluation, and with its `choice`.
        """
        config = self._config
        self._best = best_evaluation(config)
        if self._bars:
            self._bars.update(self._run_bar, completed=step)
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
            ('rendering', renderer()),
            ('parameters', parameters),
            ('steps', steps_left(config, step)),
            ('replay', replay_size(config, row_bytes)),
            ('logs', f'{config.logdir} (tensorboard --logdir {config.logdir})'),
        ]
        for name, text in rows:
            if text:
                self.line(f'{name:<11} {text}')
        self.choice(choice)
        flags = None if gpus else startup.cpu_flags()
        for text in (
            advise_tuned(config),
            advise_disk(config, row_bytes, step),
            startup.advise_precision(config, flags),
        ):
            if text:
                self.line(f'advice: {text}')


def steps_left(config, step):
    """How far the run in the logdir is."""
    text = f'{max(0, config.steps - step):,} to go, {step:,} of {config.steps:,} done'
    if finished.step_of(pathlib.Path(config.logdir)) >= config.steps:
        return f'{text}; finished'
    if step >= config.steps:
        return f'{text}; not finished'
    return text


def duration(seconds):
    """Seconds for people: '0:07', '1:02:03', '3 d 4 h'."""
    hours, rest = divmod(int(seconds), 3600)
    if hours >= 48:
        return f'{hours // 24} d {hours % 24} h'
    minutes, seconds = divmod(rest, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def returns(config, kind):
    """Steps and returns of the logdir's episodes of a kind, 'train' or 'test'."""
    try:
        folder = pathlib.Path(config.logdir)
        return metrics.read_points(folder, f'{kind}/return')[:2]
    except OSError:
        return np.array([]), np.array([])


def best_evaluation(config):
    """Step and return of the best evaluation in the logdir; None without any."""
    steps, scores = returns(config, 'test')
    best = scores.argmax() if len(scores) else None
    return None if best is None else (int(steps[best]), float(scores[best]))


def gpu_names():
    """Names of the GPUs that TensorFlow sees."""
    return [
        tf.config.experimental.get_device_details(gpu).get('device_name', gpu.name)
        for gpu in tf.config.list_physical_devices('GPU')
    ]


def renderer():
    """Which renderer draws the images, and on what; empty if it is not MuJoCo's
    business.
    """
    name = rendering.renderer_in_use()
    return name and f'{name}, {rendering.render_device(name) or "unknown device"}'


def replay_bytes(config, row_bytes, steps):
    """Bytes of `steps` environment steps in replay, of which it may keep fewer."""
    kept = min(steps, config.replay_capacity or steps)
    return kept / config.action_repeat * row_bytes


def replay_size(config, row_bytes):
    """What the replay will take by the end of the run."""
    disk = replay_bytes(config, row_bytes, config.steps)
    memory = min(disk, config.replay_memory or replay.default_memory())
    return f'by the end {size(disk)} on disk, {size(memory)} in memory'


def size(count):
    """Bytes for people."""
    unit = 1e9 if count >= 1e9 else 1e6
    return f'{count / unit:.3g} {"GB" if unit == 1e9 else "MB"}'


def advise_certain(config, values):
    """What may help where the actor always chooses the same and returns do not rise:
    those of the last quarter of episodes are no better than those of the first.
    """
    share = values.get('action_ent_share', 1)
    if not share < CERTAIN_BELOW:
        return None
    _, scores = returns(config, 'train')
    quarter = len(scores) // 4
    if quarter < 5 or scores[-quarter:].mean() > scores[:quarter].mean():
        return None
    return (
        f'the actor is certain of its actions (entropy {share:.1%} of the largest) '
        'while returns do not rise, and may not come back; '
        + (
            'a larger --actor_entropy keeps it uncertain'
            if config.actor_entropy
            else '--configs tuned keeps it uncertain by a bonus for entropy'
        )
        + ' (in a new --logdir)'
    )


def advise_tuned(config):
    """What is known of the paper's settings on games, where a run has them."""
    if config.action_dist != 'onehot' or config.actor_entropy:
        return None
    return (
        "with the paper's settings for discrete actions the actor was certain within "
        '300 updates on atari_boxing (small networks); --configs tuned keeps it alive'
    )


def advise_disk(config, row_bytes, step):
    """A warning if the episodes to come do not fit on the disk; else None."""
    needed = replay_bytes(config, row_bytes, max(0, config.steps - step))
    free = shutil.disk_usage(config.logdir).free
    if needed > free:
        return (
            f'the episodes to come take {size(needed)}, and {size(free)} are free '
            f'where {config.logdir} is; lower --steps or choose another --logdir'
        )
    return None


def advise_time(config, seconds, gpus):
    """What a run of networks larger than the small preset's will take without a GPU."""
    small = configs.Config(**configs.PRESETS['small'])
    larger = any(
        getattr(config, name) > getattr(small, name)
        for name in ('batch_size', 'batch_length', 'cnn_depth', 'num_units', 'horizon')
    )
    if gpus or not larger or seconds < 3600:
        return None
    return (
        f'without a GPU the rest of this run will take about {seconds / 3600:.1f} '
        'hours, by the updates and steps measured so far; --configs small has '
        f'networks for a CPU and a run of {small.steps:,} steps (in a new '
        '--logdir)'
    )


def advise_rendering(config, frames, gpus=()):
    """What is faster where `frames` a second are slow; None where they are not. `gpus`
    are names of those that TensorFlow sees.
    """
    device = renderer()
    if not device or frames > SLOW_RENDERING:
        return None
    advice = f'{frames:.0f} frames a second with the renderer {device}'
    faster = []
    if config.render_quality != 'fast':
        faster.append(
            '--render_quality fast is 3 to 6 times as fast, without shadows '
            '(in a new --logdir)'
        )
    if any(name in device.lower() for name in SOFTWARE):
        hint = 'a GPU with its EGL driver is faster still'
        if gpus:
            hint = (
                "the GPU could draw, and NVIDIA's EGL is missing: in a container set "
                'NVIDIA_DRIVER_CAPABILITIES=all, or compute,utility,graphics'
            )
        faster.append(hint)
    return f'{advice}; {"; ".join(faster)}' if faster else None
