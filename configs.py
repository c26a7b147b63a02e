"""The configuration: one field per flag, the presets, parsing and checking.

Order of precedence: defaults < the suite's preset < `--configs` presets, left to
right < flags. Sources: *paper* is Dream to Control (ICLR 2020), *TF2* the author's
2020 TensorFlow 2 release, whose defaults these are where nothing else is said.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import pathlib
import sys

from support.storage import episodes
from support.system import atomic, faults, limits

CHANGEABLE = frozenset(
    'logdir steps eval_every log_every save_every envs eval_envs parallel precision '
    'jit deterministic verbose worker_timeout replay_memory replay_capacity '
    'allow_config_change eval_video lab_renderer lab_level_cache lab_dataset'.split()
)

# Flags without effect on a method.
_PLANS = 'plan_candidates', 'plan_iterations', 'plan_elites', 'plan_horizon'
IDLE = dict(
    dreamer=_PLANS,
    no_value=('value_lr', 'disclam', *_PLANS),
    planet=(
        *('horizon', 'disclam', 'value_lr', 'actor_lr', 'actor_layers'),
        *('actor_entropy_decay', 'action_init_std', 'expl_action'),
    ),
)

# Groups of flags in --help: each begins with this one, as in `Config`.
HELP_GROUPS = dict(
    logdir='run',
    envs='environments',
    representation='world model',
    batch_size='training',
    discount='behaviour',
    plan_candidates='planning',
)


class ConfigError(ValueError):
    """A configuration that cannot run; the message is one line for the user."""


def _flag(
    default, help, choices=None, minimum=None, maximum=None, above=None, path=False
):
    return dataclasses.field(
        default=default,
        metadata=dict(
            help=help,
            choices=choices,
            minimum=minimum,
            maximum=maximum,
            above=above,
            path=path,
        ),
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that defines a run. Steps are *environment* (simulator) steps, with
    the action repeat counted, unless a flag says agent steps or gradient steps.
    """

    # Run.
    logdir: str = _flag(
        './logs', 'folder of the run; the same command resumes it', path=True
    )
    task: str = _flag('dmc_walker_walk', 'SUITE_NAME, for example dmc_cartpole_balance')
    method: str = _flag(
        'dreamer',
        'of choosing actions: an actor with a value '
        'network, an actor without one, or the PlaNet planner',
        ('dreamer', 'no_value', 'planet'),
    )
    seed: int = _flag(
        0, 'seed of networks, noise, replay and episodes', minimum=0, maximum=2**32 - 1
    )
    steps: int = _flag(
        5_000_000,
        'length of the run, prefill included [environment steps; paper: 5e6]',
        minimum=1,
    )
    eval_every: int = _flag(
        10_000, 'between evaluations [environment steps]', minimum=1
    )
    log_every: int = _flag(
        1_000,
        'between lines of losses, after training phases [environment steps]',
        minimum=1,
    )
    save_every: int = _flag(
        10_000,
        'between checkpoints; they wait for the end of an episode, at most as long '
        'again [environment steps]',
        minimum=1,
    )
    precision: str = _flag(
        'auto',
        'of the networks: float16, float32 or bfloat16; '
        'auto is bfloat16 on GPUs of compute capability 8.0 and above, 16 on '
        'older ones and 32 elsewhere; losses are always float32',
        ('auto', '16', '32', 'bfloat16'),
    )
    jit: str = _flag(
        'auto',
        'compile the training step with XLA; auto: on one GPU, if that turns out to '
        'be faster',
        ('auto', 'true', 'false'),
    )
    deterministic: bool = _flag(
        False,
        'the same numbers in every run on a GPU, too, which is slower; without a GPU '
        'they always are',
    )
    allow_config_change: bool = _flag(
        False, 'resume a logdir that was started with other settings'
    )
    verbose: bool = _flag(False, "print TensorFlow's and the simulators' own messages")

    # Environments.
    envs: int = _flag(
        1, 'environments that collect in parallel', minimum=1, maximum=1000
    )
    eval_envs: int = _flag(
        1,
        'environments that evaluate in parallel, one episode each',
        minimum=1,
        maximum=1000,
    )
    parallel: str = _flag(
        'process',
        'where simulators run; none is the main process, '
        'which is not safe with software rendering',
        ('process', 'none'),
    )
    worker_timeout: float = _flag(
        300.0, 'until a silent simulator counts as dead [seconds]', above=0, maximum=1e6
    )
    action_repeat: int = _flag(2, 'simulator steps per action [paper: 2]', minimum=1)
    time_limit: int = _flag(1000, 'longest episode [environment steps]', minimum=1)
    render_quality: str = _flag(
        'standard',
        'of MuJoCo; fast is without shadows and '
        'multisampling, 3 to 6 times quicker without a GPU',
        ('standard', 'fast'),
    )
    same_game: bool = _flag(
        False,
        'Atari: a lost life ends the training episode, and '
        'the same game goes on [common practice]; off: a new game '
        '[both releases]',
    )
    lab_actions: str = _flag(
        '',
        "DeepMind Lab: actions such as '0,0,0,1,0,0,0; "
        "-20,0,0,0,0,0,0' (look_lr, look_ud, strafe, move, fire, "
        'jump, crouch); empty is the nine of the release [TF1]',
    )
    lab_renderer: str = _flag('software', 'of DeepMind Lab', ('software', 'hardware'))
    lab_holdout: bool = _flag(
        False, 'DeepMind Lab: evaluate on hold-out levels (the releases never did)'
    )
    lab_level_cache: str = _flag(
        '',
        'DeepMind Lab: folder for compiled levels, shared '
        'by all environments; empty is none',
        path=True,
    )
    lab_dataset: str = _flag(
        '',
        'DeepMind Lab: folder of the images that two psychlab levels show',
        path=True,
    )
    observation: str = _flag(
        'image',
        'what the agent sees: images [paper], the vector that the simulator gives of '
        'its state, or both',
        ('image', 'state', 'both'),
    )
    eval_video: bool = _flag(
        True, 'film evaluations, where the environment can be rendered'
    )
    gym_import: str = _flag(
        '', 'module that registers further Gymnasium environments when imported'
    )
    prefill: int = _flag(
        5000,
        'steps of random actions before training '
        '[environment steps; TF1: 2,500 agent steps]',
        minimum=1,
    )
    prefill_episodes: int = _flag(
        1,
        'whole episodes of random actions, too, before training [paper: 5]',
        minimum=1,
    )
    eval_noise: float = _flag(
        0.0, 'std of Gaussian noise on evaluation actions, or their epsilon', minimum=0
    )
    clip_rewards: str = _flag(
        'none', 'bound rewards in training; logged returns stay raw', ('none', 'tanh')
    )

    # World model.
    representation: str = _flag(
        'reconstruction',
        'what the world model learns from besides rewards: '
        'predicting images, telling them apart, or nothing [paper, section 4]',
        ('reconstruction', 'contrastive', 'reward'),
    )
    contrastive_window: int = _flag(
        0,
        'sequences whose images a state is contrasted with, its own among them; 0 '
        'is the whole batch; memory is 4 * batch_size * batch_length^2 * window bytes, '
        'several times over [TF1: 10]',
        minimum=0,
    )
    log_images: bool = _flag(
        True,
        'for contrastive and reward representations, train a decoder beside them '
        'for the open-loop videos',
    )
    deter_size: int = _flag(200, 'units of the deterministic (GRU) state', minimum=1)
    stoch_size: int = _flag(30, 'dimensions of the stochastic state', minimum=1)
    num_units: int = _flag(
        400,
        'units of hidden layers in the heads, the actor and '
        'the value network [paper: 300]',
        minimum=1,
    )
    rssm_units: int = _flag(
        200, 'units of hidden layers in the RSSM [paper: 200]', minimum=1
    )
    reward_layers: int = _flag(
        2, 'hidden layers of the reward head [paper: 3]', minimum=1
    )
    actor_layers: int = _flag(4, 'hidden layers of the actor [paper: 3]', minimum=1)
    dense_act: str = _flag(
        'elu', 'activation of dense layers', ('elu', 'relu', 'silu', 'tanh')
    )
    cnn_act: str = _flag(
        'relu', 'activation of convolutions', ('elu', 'relu', 'silu', 'tanh')
    )
    cnn_depth: int = _flag(
        32,
        'channels of the first convolution; the others are multiples of it',
        minimum=1,
    )
    image_noise: bool = _flag(
        False,
        'images are (value + uniform noise) / 256 - 0.5, as input and as target '
        '[TF1]; off: value / 255 - 0.5 [TF2]',
    )
    reward_scale: float = _flag(1.0, 'weight of the reward loss', minimum=0)
    pcont: bool = _flag(False, 'predict the discount, for tasks with early termination')
    pcont_scale: float = _flag(
        10.0, 'weight of the discount loss [TF2: 10, TF1: 1]', minimum=0
    )
    free_nats: float = _flag(3.0, 'KL below this costs nothing [nats]', minimum=0)
    free_nats_per_step: bool = _flag(
        False, 'apply free nats to each step [paper], not to the batch mean [TF2]'
    )
    kl_scale: float = _flag(1.0, 'weight of the KL (beta)', minimum=0)

    # Training.
    batch_size: int = _flag(50, 'sequences in a batch', minimum=1)
    batch_length: int = _flag(50, 'steps in a sequence [agent steps]', minimum=2)
    train_every: int = _flag(
        1000, 'collected between training phases [environment steps]', minimum=1
    )
    train_episodes: int = _flag(
        0,
        'whole episodes, too, that are collected between training phases '
        '[paper: 1, with 100 updates an episode]',
        minimum=0,
    )
    train_steps: int = _flag(
        100, 'updates in a training phase [gradient steps]', minimum=1
    )
    pretrain: int = _flag(100, 'updates after the prefill [gradient steps]', minimum=0)
    model_lr: float = _flag(6e-4, 'learning rate of the world model', above=0)
    value_lr: float = _flag(8e-5, 'learning rate of the value network', above=0)
    actor_lr: float = _flag(8e-5, 'learning rate of the actor', above=0)
    adam_epsilon: float = _flag(
        1e-7, "of Adam, beside the gradient's root mean square [TF1: 1e-4]", above=0
    )
    grad_clip: float = _flag(100.0, 'global gradient norm is clipped to this', above=0)
    dataset_balance: bool = _flag(
        False,
        'draw every row of an episode equally often; off: whole sequences, so '
        'that the two ends of an episode are drawn less often',
    )
    replay_memory: float = _flag(
        0,
        'episodes held in memory, others are read from '
        'disk; 0 is a quarter of all memory [bytes]',
        minimum=0,
    )
    replay_capacity: int = _flag(
        0,
        'episodes kept on disk, the oldest are deleted; 0 is all [environment steps]',
        minimum=0,
    )

    # Behaviour.
    discount: float = _flag(0.99, 'gamma', minimum=0, maximum=1)
    actor_entropy: float = _flag(
        0.0,
        "weight of the actor's entropy beside the imagined returns, in their standard "
        'deviations [paper: 0]',
        minimum=0,
    )
    actor_entropy_decay: float = _flag(
        0.0,
        'gradient steps over which actor_entropy falls linearly to a tenth of itself, '
        'where it stays; 0 is constant',
        minimum=0,
    )
    disclam: float = _flag(0.95, 'lambda of the lambda return', minimum=0, maximum=1)
    horizon: int = _flag(15, 'imagined steps [agent steps]', minimum=2)
    action_init_std: float = _flag(
        5.0, 'std of the actor before the tanh at the start', above=0
    )
    action_dist: str = _flag(
        'auto',
        'of the actor; auto follows the action space',
        ('auto', 'tanh_normal', 'onehot'),
    )
    expl: str = _flag(
        'auto',
        'exploration while collecting; auto is additive_gaussian '
        'for continuous actions and epsilon_greedy for discrete ones',
        ('auto', 'additive_gaussian', 'epsilon_greedy'),
    )
    expl_action: str = _flag(
        'sample',
        'what is explored around: a sample of the policy [TF2] or its mode [paper]',
        ('sample', 'mode'),
    )
    expl_amount: float = _flag(
        0.3, 'std of the Gaussian exploration noise, or epsilon', minimum=0
    )
    expl_decay: float = _flag(
        0.0,
        'gradient steps over which expl_amount falls '
        'linearly to expl_min, 0 is constant (the 2020 flag of '
        'this name was a half-life)',
        minimum=0,
    )
    expl_min: float = _flag(0.0, 'exploration noise after the decay', minimum=0)

    # Planning (--method planet; PlaNet, appendix A).
    plan_candidates: int = _flag(
        1000, 'action sequences tried in an iteration', minimum=1
    )
    plan_iterations: int = _flag(10, 'refits of the search distribution', minimum=1)
    plan_elites: int = _flag(100, 'best candidates that it is refitted to', minimum=1)
    plan_horizon: int = _flag(12, 'length of a plan [agent steps]', minimum=1)

    @property
    def observes(self):
        """Names of what is observed: 'image', 'state', or both."""
        return ('image', 'state') if self.observation == 'both' else (self.observation,)


# Discrete control with early termination (paper, section 3 and appendix A).
_ONE_HOT = dict(
    horizon=10,
    kl_scale=0.1,
    clip_rewards='tanh',
    pcont=True,
    expl_amount=0.4,
    expl_min=0.1,
    expl_decay=200_000.0,
    eval_noise=0.001,
)
# With TF1's episodes, schedule and prefill of 2,500 agent steps.
_DISCRETE = dict(
    _ONE_HOT, action_repeat=4, time_limit=108_000, prefill=10_000, train_every=2_000
)
# What keeps a discrete actor alive until the world model knows the rewards: without a
# bonus it is certain within 300 updates. Where an image says little, as of a thin pole,
# 3 free nats are more than a step tells, and nothing teaches the dynamics. Rewards are
# few and small after tanh, beside thousands of pixels. An agent that gets a new game
# after each life does not see how a game continues.
_TUNED = dict(
    actor_entropy=0.3,
    actor_entropy_decay=3_000.0,
    free_nats=0.0,
    reward_scale=10.0,
    same_game=True,
    dataset_balance=True,
)

SUITE_PRESETS = {
    'dmc': {},
    'atari': _DISCRETE,
    # TF1's command for DeepMind Lab has no discount head.
    'dmlab': dict(_DISCRETE, pcont=False),
    # Most environments bring a time limit of their own.
    'gym': dict(action_repeat=1, time_limit=108_000, pcont=True, dataset_balance=True),
    'dummy': dict(action_repeat=1, time_limit=50),
}

PRESETS = {
    'debug': dict(
        steps=600,
        eval_every=200,
        log_every=100,
        save_every=200,
        prefill=100,
        time_limit=100,
        train_every=100,
        train_steps=2,
        pretrain=2,
        batch_size=4,
        batch_length=10,
        horizon=5,
        deter_size=16,
        stoch_size=4,
        num_units=16,
        rssm_units=16,
        cnn_depth=4,
        plan_candidates=20,
        plan_iterations=2,
        plan_elites=4,
        plan_horizon=3,
    ),
    # Sequences of 50 and the paper's rates, with networks and a batch for which a core
    # has the time: with sequences of 16 a state did not learn velocities. Where images
    # say little, free nats and a whole KL kept what moves out of the state. The bonus
    # holds the actor back until the world model, slow at this size, knows the rewards.
    'small': dict(
        steps=100_000,
        eval_every=5_000,
        save_every=5_000,
        batch_size=16,
        cnn_depth=8,
        num_units=200,
        free_nats=0.0,
        kl_scale=0.1,
        actor_entropy=0.3,
        actor_entropy_decay=3_000.0,
        render_quality='fast',
        plan_candidates=100,
        plan_iterations=5,
        plan_elites=10,
        plan_horizon=10,
    ),
    'discrete': _DISCRETE,
    'tuned': _TUNED,
    # The paper's text; where it is silent, TF1, with which its results were made.
    'paper': dict(
        num_units=300,
        rssm_units=200,
        reward_layers=3,
        actor_layers=3,
        image_noise=True,
        pcont_scale=1.0,
        free_nats=3.0,
        free_nats_per_step=True,
        reward_scale=1.0,
        same_game=False,
        dataset_balance=False,
        train_episodes=1,
        prefill_episodes=5,
        adam_epsilon=1e-4,
        precision='32',
        actor_entropy=0.0,
        expl_action='mode',
    ),
}

_SMALL_GAMES = dict(
    steps=400_000,
    eval_every=40_000,
    save_every=20_000,
    prefill=20_000,
    train_every=4_000,
    batch_length=32,
    expl_decay=6_000.0,
)
# On top of a suite's preset, of one of `--configs`, or of one with a suite, where the
# actions are discrete.
IF_DISCRETE = {
    'gym': dict(_ONE_HOT, expl_decay=5_000.0, actor_entropy=0.3, free_nats=0.0),
    'small atari': _SMALL_GAMES,
    'small dmlab': _SMALL_GAMES,
    'small gym': dict(batch_length=32, actor_entropy_decay=0.0),
    # The text has epsilon, and not around what; TF1 draws a sample.
    'paper': dict(expl_action='sample'),
}
# Suites whose actions are discrete by their name. Of others the simulator tells.
DISCRETE_SUITES = 'atari', 'dmlab'


def parse(argv, warn=True):
    """Turn command line words into a checked `Config`, and `warn` of what may be meant
    otherwise.

    Prints the help and exits with 0 on `--help`. Raises ConfigError with one line on
    anything that is unknown, malformed or impossible.
    """
    names, flags = _typed(argv)
    config = _resolve(names, flags)
    if warn:
        _warn(config, flags)
    return config


def _typed(argv):
    """Names of presets, and flags by name, as they stand on the command line."""
    flags = vars(_parse_known(_parser(), argv))
    names = flags.pop('configs') or []
    for name in names:
        if name not in PRESETS:
            raise ConfigError(
                f"unknown preset '{name}' in --configs; possible: {', '.join(PRESETS)}"
            )
    return names, flags


def _resolve(names, flags, discrete=False):
    """The configuration of presets and flags; `discrete`: the task's actions are."""
    suite = _suite(flags.get('task', Config.task))
    discrete = discrete or suite in DISCRETE_SUITES
    values = SUITE_PRESETS[suite] | (IF_DISCRETE.get(suite, {}) if discrete else {})
    for name in names:
        values |= PRESETS[name]
        for key in (name, f'{name} {suite}') if discrete else ():
            values |= IF_DISCRETE.get(key, {})
    values |= flags
    try:
        values['logdir'] = home(values.get('logdir', Config.logdir))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f'--logdir: {error}') from None
    config = check(Config(**values))
    if config.method == 'planet' and flags.get('actor_entropy'):
        raise ConfigError(
            f'--actor_entropy {config.actor_entropy} needs an actor, which --method '
            'planet has not; possible: 0, or --method dreamer or no_value'
        )
    return config


def settle(argv, config, discrete):
    """The configuration once the actions are known to be discrete or not, which `parse`
    could not know. Where the run in the logdir was started by the same words, it is
    that run's, even if a preset has changed since.

    Args:
      argv: words of the command line.
      config: of `parse`, with its precision resolved; its paths stay.
      discrete: whether the task's actions are.
    """
    names, flags = _typed(argv)
    # A simulator may have changed the current folder since.
    paths = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Config)
        if field.metadata['path']
    }
    resolved = dataclasses.replace(
        _resolve(names, flags, discrete), precision=config.precision, **paths
    )
    path = pathlib.Path(config.logdir) / 'config.json'
    stored = _read(path) if path.exists() else {}
    if stored.get('typed') != _kept_words(names, flags):
        return resolved
    kept = {
        name: value
        for name, value in stored['config'].items()
        if name in Config.__dataclass_fields__ and name not in CHANGEABLE
    }
    return dataclasses.replace(resolved, **kept)


def as_typed(argv):
    """The presets and flags of a command line as `config.json` keeps them: without
    flags that may change from one start of a run to the next.
    """
    return _kept_words(*_typed(argv))


def _kept_words(names, flags):
    flags = {name: flags[name] for name in sorted(flags) if name not in CHANGEABLE}
    return dict(configs=names, flags=flags)


def resume_precision(config):
    """An automatic precision becomes that of the run in the logdir, if there is one."""
    path = pathlib.Path(config.logdir) / 'config.json'
    if config.precision != 'auto' or not path.exists():
        return config
    precision = _read(path)['config'].get('precision', 'auto')
    return dataclasses.replace(config, precision=precision)


def _warn(config, flags):
    if SUITE_PRESETS[_suite(config.task)].get('pcont') and not config.pcont:
        print(
            f'dreamer: warning: without --pcont the agent cannot know that '
            f'{config.task} can end early',
            file=sys.stderr,
        )
    idle = [f'--{name}' for name in flags if name in IDLE[config.method]]
    if idle:
        plan = f'; plans have --plan_horizon {config.plan_horizon}'
        print(
            f'dreamer: warning: --method {config.method} makes no use of '
            f'{", ".join(idle)}{plan * ("--horizon" in idle)}',
            file=sys.stderr,
        )
    crowd = max(config.envs, config.eval_envs)
    if crowd > 2 * limits.cores():
        print(
            f'dreamer: warning: {crowd} environments at once on '
            f'{limits.count_cores()} will wait for one another',
            file=sys.stderr,
        )


def check(config):
    """Return `config`, or raise ConfigError if its values cannot run together."""
    for field in dataclasses.fields(config):
        value, rule = getattr(config, field.name), field.metadata
        if rule['choices'] and value not in rule['choices']:
            raise ConfigError(
                f"--{field.name} is '{value}'; possible: {', '.join(rule['choices'])}"
            )
        if rule['minimum'] is not None and value < rule['minimum']:
            raise ConfigError(
                f'--{field.name} is {value}; it must be at least {rule["minimum"]}'
            )
        if rule['maximum'] is not None and value > rule['maximum']:
            raise ConfigError(
                f'--{field.name} is {value}; it must be at most {rule["maximum"]}'
            )
        if rule['above'] is not None and value <= rule['above']:
            raise ConfigError(
                f'--{field.name} is {value}; it must be above {rule["above"]}'
            )
    if config.plan_elites > config.plan_candidates:
        raise ConfigError(
            f'--plan_elites {config.plan_elites} is above '
            f'--plan_candidates {config.plan_candidates}'
        )
    if config.prefill > config.steps:
        raise ConfigError(
            f'--prefill {config.prefill} is above --steps '
            f'{config.steps}; nothing would be learned'
        )
    if 0 < config.replay_memory < 1:
        raise ConfigError(
            f'--replay_memory {config.replay_memory} is less than a byte; possible: 0 '
            'for a quarter of all memory, or bytes, such as 8e9'
        )
    if 0 < config.replay_capacity < config.action_repeat:
        raise ConfigError(
            f'--replay_capacity {config.replay_capacity} is less than one action of '
            f'--action_repeat {config.action_repeat}; possible: 0 for all, or at least '
            f'{config.action_repeat}'
        )
    if config.expl_min > config.expl_amount:
        raise ConfigError(
            f'--expl_min {config.expl_min} is above --expl_amount '
            f'{config.expl_amount}; the noise can only fall'
        )
    return config


def fit_to_actions(config, discrete):
    """Settle the automatic action head and exploration for actions that are discrete or
    not; raises ConfigError where those that were asked for do not fit them.
    """
    if discrete and config.method == 'planet':
        raise ConfigError(
            f'--method planet plans continuous actions and those of {config.task} are '
            'discrete; possible: dreamer, no_value'
        )
    fitting = dict(
        action_dist='onehot' if discrete else 'tanh_normal',
        expl='epsilon_greedy' if discrete else 'additive_gaussian',
    )
    for name, value in fitting.items():
        asked = getattr(config, name)
        if asked not in ('auto', value):
            raise ConfigError(
                f'--{name} {asked} does not fit the '
                f'{"discrete" if discrete else "continuous"} actions of {config.task}; '
                f'possible: auto, {value}'
            )
    for name in ('expl_amount', 'eval_noise') if discrete else ():
        if getattr(config, name) > 1:
            raise ConfigError(
                f'--{name} {getattr(config, name)} is too much: with the discrete '
                f'actions of {config.task} a share of random ones; possible: 0 to 1'
            )
    return dataclasses.replace(config, **fitting)


def check_length(config, row_bytes):
    """Raise ConfigError if the longest episode does not fit into a file of the
    replay.
    """
    rows = -(-config.time_limit // config.action_repeat) + 1
    most = episodes.MAX_BYTES // row_bytes
    if rows > most:
        raise ConfigError(
            f'--time_limit {config.time_limit} with --action_repeat '
            f'{config.action_repeat} allows episodes of {rows - 1:,} agent steps, and '
            f'a file of the replay holds {most - 1:,}; possible: --time_limit up to '
            f'{(most - 1) * config.action_repeat}, or more --action_repeat'
        )


def differences(config, path):
    """Compare with a run's `config.json`.

    Returns a list of 'name: old -> new' for the settings that define the run and
    differ; empty if the file does not exist. Raises ConfigError if it is unreadable.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    old = _read(path)['config']
    new = dataclasses.asdict(config)
    return [
        f'{name}: {old.get(name)} -> {value}'
        for name, value in new.items()
        if name not in CHANGEABLE and old.get(name) != value
    ]


def refuse_changes(config, folder, flag='--logdir'):
    """Raise ConfigError if the run in `folder` was started with other settings, unless
    that is allowed; `flag` is what names the folder.
    """
    changes = differences(config, pathlib.Path(folder) / 'config.json')
    if changes and not config.allow_config_change:
        raise ConfigError(
            f'{folder} belongs to another configuration ({"; ".join(changes)}); '
            f'choose another {flag} or add --allow_config_change true'
        )


def as_table(config):
    """The configuration as a Markdown table."""
    rows = [
        f'| {name} | {value} |' for name, value in dataclasses.asdict(config).items()
    ]
    return '\n'.join(['| flag | value |', '|---|---|', *rows])


def read(path):
    """The configuration of a run, from its `config.json`.

    Settings that may change between runs, and later versions may have added, are the
    defaults where they are missing. Raises ConfigError, with one line, if the file
    cannot be read or is of another version.
    """
    stored = _read(path)['config']
    names = {field.name for field in dataclasses.fields(Config)}
    missing = names - set(stored) - CHANGEABLE
    unknown = set(stored) - names
    for keys, what in ((missing, 'has no'), (unknown, 'has settings unknown here:')):
        if keys:
            raise ConfigError(
                f'{path} {what} {", ".join(sorted(keys))}; it is damaged '
                'or of another version of this program'
            )
    return check(Config(**stored))


def _read(path):
    """What a `config.json` holds."""
    try:
        stored = json.loads(path.read_text())
        stored['config'].items()
        return stored
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{path} is not a readable configuration ({error}); '
            'choose another --logdir or repair it'
        ) from None


def read_choice(path):
    """What `--jit auto` has come to in the run of a `config.json`, as `write_choice`
    stored it; None where it has not.
    """
    path = pathlib.Path(path)
    return _read(path).get('jit_choice') if path.exists() else None


def write_choice(choice, path):
    """Store what `--jit auto` has come to, a dict that JSON can hold, beside what is in
    a `config.json`.
    """
    _write_json(_read(pathlib.Path(path)) | dict(jit_choice=choice), path)


def write(config, path, typed=None):
    """Store the configuration, what was typed for it (`as_typed`), and the library
    versions, whole or not at all. What `--jit auto` has come to stays.
    """

    def version(name):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    names = (
        'tensorflow',
        'keras',
        'tensorflow-probability',
        'numpy',
        'gymnasium',
        'dm_control',
        'mujoco',
    )
    choice = read_choice(path)
    _write_json(
        {
            'config': dataclasses.asdict(config),
            'typed': typed,
            'versions': {
                'python': sys.version.split()[0],
                **{name: version(name) for name in names},
            },
            **({'jit_choice': choice} if choice else {}),
        },
        path,
    )


def _write_json(stored, path):
    text = json.dumps(stored, indent=2)
    faults.reach('config')
    atomic.write(path, f'{text}\n'.encode())


class Parser(argparse.ArgumentParser):
    """Raise ConfigError where others print their usage and exit, and takes no
    beginnings of flags for flags.
    """

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        raise ConfigError(message)


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=28, width=88)


def home(text):
    """Read a path of the command line, where a leading `~` or `~NAME` is a home, also
    behind `=`, where a shell leaves it as it is.

    The path is absolute: a simulator in this process may change the current folder.
    """
    path = os.path.expanduser(text)
    if path.startswith('~'):
        raise argparse.ArgumentTypeError(
            f"'{text}' begins with the home of nobody here; a folder of that name is "
            f'./{text}'
        )
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is relative to the current folder, which is gone ({error})"
        ) from None


def home_path(text):
    """`home`, as a `pathlib.Path`."""
    return pathlib.Path(home(text))


def number(kind, minimum=-math.inf, rule=' of at least {}'):
    """A reader of numbers of the command line.

    Args:
      kind: int for whole numbers, also written as 1e6; float for finite ones.
      minimum: the least that is taken.
      rule: what the message says behind "is not a number"; {} is the minimum.
    """

    def read(text):
        try:
            value = float(text)
            if not max(minimum, -sys.float_info.max) <= value < math.inf:
                raise ValueError
            if kind is float:
                return value
            if value != int(value):
                raise ValueError
            # Not every whole number is a float.
            return int(text) if text.lstrip('+-').isdigit() else int(value)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"'{text}' is not a {'whole ' * (kind is int)}number"
                f'{rule.format(minimum)}'
            ) from None

    return read


def _boolean(text):
    if text.lower() not in ('true', 'false'):
        raise argparse.ArgumentTypeError(f"'{text}' is not true or false")
    return text.lower() == 'true'


def _parser():
    """One argument per field; absent flags stay absent, so that presets show."""
    parser = Parser(
        prog='dreamer.py',
        description='Dreamer: learning behaviors by latent imagination.',
        formatter_class=_HelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        '--configs',
        nargs='+',
        default=None,
        metavar='PRESET',
        help=f'presets, applied left to right: {", ".join(PRESETS)}; the suite of '
        'the task picks its own first',
    )
    for field in dataclasses.fields(Config):
        if field.name in HELP_GROUPS:
            group = parser.add_argument_group(HELP_GROUPS[field.name])
        choices = field.metadata['choices']
        text = field.metadata['help'].replace('%', '%%')
        group.add_argument(
            f'--{field.name}',
            type=_reader(field),
            **_bare(field),
            metavar=('|'.join(choices) if choices else field.type.__name__.upper()),
            help=f'{text} (default: {field.default})',
        )
    return parser


def _bare(field):
    """Arguments by which a flag without a word behind it is true, where it may be."""
    if field.type is bool:
        return dict(nargs='?', const=True)
    choices = field.metadata['choices'] or ()
    return dict(nargs='?', const='true') if 'true' in choices else {}


def _parse_known(parser, argv):
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split('=')[0]
        names = [f'--{field.name}' for field in dataclasses.fields(Config)]
        close = difflib.get_close_matches(word, names + ['--configs'], 3, 0.5)
        hint = f'did you mean {" or ".join(close)}? ' if close else ''
        raise ConfigError(
            f"unknown argument '{unknown[0]}'; {hint}--help lists all flags"
        )
    return args


def _reader(field):
    """A function from a word of the command line to the type of `field`."""
    if field.metadata['path']:
        return lambda text: home(text) if text else text
    return {
        bool: _boolean,
        # `check` knows the least of each.
        int: number(int, rule=', such as 1000 or 1e3'),
        float: number(float, rule=' that is finite'),
        str: str,
    }[field.type]


def _suite(task):
    suite = task.split('_')[0]
    if suite not in SUITE_PRESETS or '_' not in task:
        raise ConfigError(
            f"unknown task '{task}'; tasks are named SUITE_NAME with "
            f'suites: {", ".join(SUITE_PRESETS)} (for example '
            f'{Config.task}, dummy_continuous)'
        )
    return suite


def print_error(message, program):
    """Print an error as one line on stderr: of a simulator's traceback its last."""
    lines = str(message).strip().splitlines()
    if any(line.startswith('Traceback (most recent') for line in lines):
        lines = lines[-1:]
    line = ' '.join(map(str.strip, lines))
    print(f'{program}: error: {line}', file=sys.stderr)


def fail(message, program='dreamer'):
    """End the program with one line on stderr and exit code 2."""
    print_error(message, program)
    raise SystemExit(2)


@contextlib.contextmanager
def refusing(program):
    """End the program as `fail` does where the block raises ConfigError."""
    try:
        yield
    except ConfigError as error:
        fail(error, program)
