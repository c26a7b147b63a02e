"""What a user can do better: warnings of flags, and lines of advice while a run goes.

Every `advise_*` returns one line, or None where the user has nothing to act on.
"""

import pathlib
import shutil

import numpy as np

import configs
from support.envs import rendering
from support.storage import metrics
from support.system import command_line, limits

# Fewer rendered frames a second than this are worth a line.
SLOW_RENDERING = 150
# An actor below this share of the largest entropy hardly tries anything else.
CERTAIN_BELOW = 0.03
SOFTWARE = ('llvmpipe', 'softpipe', 'swrast', 'software')
# An update at the paper's sizes on two cores [seconds]; see docs/performance.md.
CPU_UPDATE = 3

# Flags without effect, by method.
_PLANS = 'plan_candidates', 'plan_iterations', 'plan_elites', 'plan_horizon'
IDLE = dict(
    dreamer=_PLANS,
    no_value=('value_lr', 'disclam', *_PLANS),
    planet=(
        *('horizon', 'disclam', 'value_lr', 'actor_lr', 'actor_layers'),
        *('actor_entropy_decay', 'action_init_std', 'expl_action'),
    ),
)
# Flags without effect where no images are observed.
OF_IMAGES = 'cnn_depth', 'cnn_act', 'image_noise'


def warn_of_flags(argv, config):
    """Print warnings of flags that may not do what the user expects.

    Args:
      argv: words of the command line.
      config: `configs.Config` that they stand for.
    """
    _, flags = configs.split_words(argv)
    suite = configs.SUITE_PRESETS[configs.suite_of(config.task)]
    if suite.get('pcont') and not config.pcont:
        command_line.warn(
            f'without --pcont the agent cannot know that {config.task} can end early'
        )
    idle = [f'--{name}' for name in flags if name in IDLE[config.method]]
    if idle:
        plan = f'; plans have --plan_horizon {config.plan_horizon}'
        command_line.warn(
            f'--method {config.method} makes no use of '
            f'{", ".join(idle)}{plan * ("--horizon" in idle)}'
        )
    of_images = [f'--{name}' for name in flags if name in OF_IMAGES]
    if of_images and 'image' not in config.observes:
        command_line.warn(f'--observation state makes no use of {", ".join(of_images)}')
    crowd = max(config.envs, config.eval_envs)
    if crowd > 2 * limits.cores():
        command_line.warn(
            f'{crowd} environments at once on {limits.count_cores()} will wait for one '
            'another'
        )


def advise_tuned(config):
    """The preset for games, where a run has the paper's settings for them."""
    if config.action_dist != 'onehot' or config.actor_entropy:
        return None
    return (
        "with the paper's settings for discrete actions the actor was certain within "
        '300 updates on atari_boxing (small networks); --configs tuned keeps it alive'
    )


def advise_disk(config, needed):
    """A warning if the `needed` bytes of episodes to come do not fit on the disk."""
    free = shutil.disk_usage(config.logdir).free
    if needed <= free:
        return None
    return (
        f'the episodes to come take {size(needed)}, and {size(free)} are free '
        f'where {config.logdir} is; lower --steps or choose another --logdir'
    )


def advise_small(config, updates):
    """The preset for a CPU, where no GPU is seen, networks are larger than that
    preset's, and the `updates` to come may take more than an hour.
    """
    small = configs.Config(**configs.PRESETS['small'])
    larger = any(
        getattr(config, name) > getattr(small, name)
        for name in ('batch_size', 'batch_length', 'cnn_depth', 'num_units', 'horizon')
    )
    seconds = CPU_UPDATE * updates
    if not larger or seconds < 3600:
        return None
    longest = f'{seconds / 3600:.0f} hours' if seconds < 172_800 else 'days'
    return (
        f'without a GPU this takes {longest}: {updates:,} updates are left, and at '
        f"the paper's sizes one takes {CPU_UPDATE} seconds on two cores; --configs "
        'small has networks for a CPU (in a new --logdir)'
    )


def advise_rendering(config, frames, gpus=()):
    """What draws faster, where `frames` a second are slow. `gpus` are the names of
    those that TensorFlow sees.
    """
    device = renderer()
    if not device or frames > SLOW_RENDERING:
        return None
    faster = []
    if config.render_quality != 'fast':
        faster.append(
            '--render_quality fast is 3 to 6 times as fast, without shadows '
            '(in a new --logdir)'
        )
    if gpus and any(name in device.lower() for name in SOFTWARE):
        faster.append(
            "the GPU could draw, and NVIDIA's EGL is missing: in a container set "
            'NVIDIA_DRIVER_CAPABILITIES=all, or compute,utility,graphics'
        )
    advice = f'{frames:.0f} frames a second with the renderer {device}'
    return f'{advice}; {"; ".join(faster)}' if faster else None


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


def renderer():
    """The renderer of images and its device; empty where MuJoCo renders nothing."""
    name = rendering.renderer_in_use()
    return name and f'{name}, {rendering.render_device(name) or "unknown device"}'


def returns(config, kind):
    """Steps and returns of the logdir's episodes of a kind, 'train' or 'test'."""
    try:
        return metrics.read_points(pathlib.Path(config.logdir), f'{kind}/return')[:2]
    except OSError:
        return np.array([]), np.array([])


def size(count):
    """Bytes for people."""
    unit = 1e9 if count >= 1e9 else 1e6
    return f'{count / unit:.3g} {"GB" if unit == 1e9 else "MB"}'


def duration(seconds):
    """Seconds for people: '0:07', '1:02:03', '3 d 4 h'."""
    hours, rest = divmod(int(seconds), 3600)
    if hours >= 48:
        return f'{hours // 24} d {hours % 24} h'
    minutes, seconds = divmod(rest, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
