"""The configuration: one field per flag, the presets, parsing and checking.

Order of precedence: defaults < the suite's preset < `--configs` presets, left to
right < flags. *paper* means Dream to Control (ICLR 2020). *TF1* and *TF2* mean its
author's releases in TensorFlow 1 and 2; defaults without a source are from TF2.
"""

import argparse
import dataclasses
import functools

from support.storage import episodes
from support.system import command_line
from support.system.command_line import UserError, flag

# Flags that may change when a run is resumed. All others define the run.
CHANGEABLE = frozenset(
    'logdir steps eval_every log_every save_every keep_checkpoints envs eval_envs '
    'parallel precision jit deterministic verbose worker_timeout replay_memory '
    'replay_capacity profile allow_config_change eval_video lab_renderer '
    'lab_level_cache lab_dataset'.split()
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that defines a run. Steps are *environment* (simulator) steps, which
    count the action repeat, unless a flag says agent steps or gradient steps.
    """

    logdir: str = flag(
        './logs',
        'folder of the run; the same command resumes it',
        path=True,
        group='run',
    )
    task: str = flag('dmc_walker_walk', 'SUITE_NAME, for example dmc_cartpole_balance')
    method: str = flag(
        'dreamer',
        'how actions are chosen: by an actor with a value network, by an actor without '
        'one, or by the PlaNet planner',
        ('dreamer', 'no_value', 'planet'),
    )
    seed: int = flag(
        0, 'seed of networks, noise, replay and episodes', minimum=0, maximum=2**32 - 1
    )
    steps: int = flag(
        5_000_000,
        'length of the run, prefill included [environment steps; paper: 5e6]',
        minimum=1,
    )
    eval_every: int = flag(10_000, 'environment steps between evaluations', minimum=1)
    log_every: int = flag(
        1_000,
        'environment steps between lines of losses, which follow training phases',
        minimum=1,
    )
    save_every: int = flag(
        10_000,
        'environment steps between checkpoints; each waits for the end of an episode, '
        'at most as long again',
        minimum=1,
    )
    keep_checkpoints: int = flag(2, 'number of newest checkpoints kept', minimum=1)
    precision: str = flag(
        'auto',
        'float type of the networks; auto is bfloat16 on GPUs of compute capability '
        '8.0 or higher, 16 on older ones and 32 elsewhere; losses are always float32',
        ('auto', '16', '32', 'bfloat16'),
    )
    jit: str = flag(
        'auto',
        'compile the training step with XLA; auto tries it on a single GPU and keeps '
        'what is faster',
        ('auto', 'true', 'false'),
    )
    deterministic: bool = flag(
        False,
        'give the same numbers in every run on a GPU, which is slower; without a GPU '
        'runs always do',
    )
    profile: bool = flag(False, "record TensorFlow's profile of ten updates")
    allow_config_change: bool = flag(
        False, 'resume a logdir that was started with other settings'
    )
    verbose: bool = flag(False, "print TensorFlow's and the simulators' own messages")

    envs: int = flag(
        1,
        'environments that collect in parallel',
        minimum=1,
        maximum=1000,
        group='environments',
    )
    eval_envs: int = flag(
        1,
        'environments that evaluate in parallel, one episode each',
        minimum=1,
        maximum=1000,
    )
    parallel: str = flag(
        'process',
        'process runs each simulator in a separate process; none runs them in the main '
        'process, which is not safe with software rendering',
        ('process', 'none'),
    )
    worker_timeout: float = flag(
        300.0, 'seconds until a silent simulator counts as dead', above=0, maximum=1e6
    )
    action_repeat: int = flag(2, 'simulator steps per action [paper: 2]', minimum=1)
    time_limit: int = flag(1000, 'longest episode [environment steps]', minimum=1)
    render_quality: str = flag(
        'standard',
        'MuJoCo: fast draws without shadows and multisampling, which is 3 to 6 times '
        'quicker without a GPU',
        ('standard', 'fast'),
    )
    same_game: bool = flag(
        False,
        'Atari: the training episode after a lost life continues the same game [common '
        'practice]; off: it begins a new game [both releases]',
    )
    lab_actions: str = flag(
        '',
        "DeepMind Lab: actions such as '0,0,0,1,0,0,0; -20,0,0,0,0,0,0' (look_lr, "
        'look_ud, strafe, move, fire, jump, crouch); empty means the nine of TF1',
    )
    lab_renderer: str = flag(
        'software', 'renderer of DeepMind Lab', ('software', 'hardware')
    )
    lab_holdout: bool = flag(
        False, 'DeepMind Lab: evaluate on hold-out levels, unlike the releases'
    )
    lab_level_cache: str = flag(
        '',
        'DeepMind Lab: folder of compiled levels, which all environments share; empty '
        'means none',
        path=True,
    )
    lab_dataset: str = flag(
        '',
        'DeepMind Lab: folder of the images that two psychlab levels show',
        path=True,
    )
    observation: str = flag(
        'image',
        "what the agent sees: images [paper], the simulator's vector of its state, or "
        'both',
        ('image', 'state', 'both'),
    )
    eval_video: bool = flag(
        True, 'film evaluations, where the environment can be rendered'
    )
    gym_import: str = flag(
        '', 'module that registers further Gymnasium environments when imported'
    )
    prefill: int = flag(
        5000,
        'steps of random actions before training [environment steps; TF1: 2,500 agent '
        'steps]',
        minimum=1,
    )
    prefill_episodes: int = flag(
        1,
        'whole episodes of random actions that are also needed before training [paper: '
        '5]',
        minimum=1,
    )
    eval_noise: float = flag(
        0.0, 'std of Gaussian noise in evaluation, or epsilon', minimum=0
    )
    clip_rewards: str = flag(
        'none', 'bound rewards in training; logged returns stay raw', ('none', 'tanh')
    )

    representation: str = flag(
        'reconstruction',
        'what the world model learns besides rewards: to predict images, to tell them '
        'apart, or nothing [paper, section 4]',
        ('reconstruction', 'contrastive', 'reward'),
        group='world model',
    )
    contrastive_window: int = flag(
        0,
        'sequences with whose images a state is contrasted, including its own; 0 is '
        'the whole batch; memory is several times 4 * batch_size * batch_length^2 * '
        'window bytes [TF1: 10]',
        minimum=0,
    )
    log_images: bool = flag(
        True,
        'train a separate decoder for the open-loop videos where the representation is '
        'contrastive or reward',
    )
    deter_size: int = flag(200, 'units of the deterministic (GRU) state', minimum=1)
    stoch_size: int = flag(30, 'dimensions of the stochastic state', minimum=1)
    num_units: int = flag(
        400,
        'units of the hidden layers of heads, actor and value network [paper: 300]',
        minimum=1,
    )
    rssm_units: int = flag(
        200, 'units of hidden layers in the RSSM [paper: 200]', minimum=1
    )
    reward_layers: int = flag(
        2, 'hidden layers of the reward head [paper: 3]', minimum=1
    )
    actor_layers: int = flag(4, 'hidden layers of the actor [paper: 3]', minimum=1)
    dense_act: str = flag(
        'elu', 'activation of dense layers', ('elu', 'relu', 'silu', 'tanh')
    )
    cnn_act: str = flag(
        'relu', 'activation of convolutions', ('elu', 'relu', 'silu', 'tanh')
    )
    cnn_depth: int = flag(
        32,
        'channels of the first convolution; the others are multiples of it',
        minimum=1,
    )
    image_noise: bool = flag(
        False,
        'images become (value + uniform noise) / 256 - 0.5, as input and as target '
        '[TF1]; off: value / 255 - 0.5 [TF2]',
    )
    reward_scale: float = flag(1.0, 'weight of the reward loss', minimum=0)
    pcont: bool = flag(False, 'predict the discount, for tasks with early termination')
    pcont_scale: float = flag(
        10.0, 'weight of the discount loss [TF2: 10, TF1: 1]', minimum=0
    )
    free_nats: float = flag(3.0, 'KL below this costs nothing [nats]', minimum=0)
    free_nats_per_step: bool = flag(
        False, 'apply free nats to each step [paper], not to the batch mean [TF2]'
    )
    kl_scale: float = flag(1.0, 'weight of the KL (beta)', minimum=0)

    batch_size: int = flag(50, 'sequences in a batch', minimum=1, group='training')
    batch_length: int = flag(50, 'steps in a sequence [agent steps]', minimum=2)
    train_every: int = flag(
        1000, 'environment steps between training phases', minimum=1
    )
    train_episodes: int = flag(
        0,
        'whole episodes that are also needed between training phases [paper: 1, with '
        '100 updates an episode]',
        minimum=0,
    )
    train_steps: int = flag(
        100, 'updates in a training phase [gradient steps]', minimum=1
    )
    pretrain: int = flag(100, 'updates after the prefill [gradient steps]', minimum=0)
    model_lr: float = flag(6e-4, 'learning rate of the world model', above=0)
    value_lr: float = flag(8e-5, 'learning rate of the value network', above=0)
    actor_lr: float = flag(8e-5, 'learning rate of the actor', above=0)
    adam_epsilon: float = flag(
        1e-7, "added to the gradient's root mean square in Adam [TF1: 1e-4]", above=0
    )
    grad_clip: float = flag(100.0, 'global gradient norm is clipped to this', above=0)
    dataset_balance: bool = flag(
        False,
        'draw each row of an episode equally often; off: draw each whole sequence '
        'equally often, and so the two ends of an episode less often',
    )
    replay_memory: float = flag(
        0,
        'bytes of episodes held in memory, others are read from disk; 0 is a quarter '
        'of all memory',
        minimum=0,
    )
    replay_capacity: int = flag(
        0,
        'environment steps kept on disk, older episodes are deleted; 0 keeps all',
        minimum=0,
    )

    discount: float = flag(0.99, 'gamma', minimum=0, maximum=1, group='behaviour')
    actor_entropy: float = flag(
        0.0,
        "weight of the actor's entropy, in standard deviations of the imagined returns "
        '[paper: 0]',
        minimum=0,
    )
    actor_entropy_decay: float = flag(
        0.0,
        'gradient steps over which actor_entropy falls linearly to a tenth, which it '
        'keeps; 0 keeps it constant',
        minimum=0,
    )
    disclam: float = flag(0.95, 'lambda of the lambda return', minimum=0, maximum=1)
    horizon: int = flag(15, 'imagined steps [agent steps]', minimum=2)
    action_init_std: float = flag(
        5.0, 'std of the actor before the tanh at the start', above=0
    )
    action_dist: str = flag(
        'auto',
        'distribution of the actor; auto follows the action space',
        ('auto', 'tanh_normal', 'onehot'),
    )
    expl: str = flag(
        'auto',
        'exploration while collecting; auto is additive_gaussian for continuous '
        'actions and epsilon_greedy for discrete ones',
        ('auto', 'additive_gaussian', 'epsilon_greedy'),
    )
    expl_action: str = flag(
        'sample',
        'action that exploration changes: a sample of the policy [TF2] or its mode '
        '[paper]',
        ('sample', 'mode'),
    )
    expl_amount: float = flag(
        0.3, 'std of the Gaussian exploration noise, or epsilon', minimum=0
    )
    expl_decay: float = flag(
        0.0,
        'gradient steps over which expl_amount falls linearly to expl_min; 0 keeps it '
        'constant (the 2020 flag of this name was a half-life)',
        minimum=0,
    )
    expl_min: float = flag(0.0, 'exploration noise after the decay', minimum=0)

    # PlaNet, appendix A.
    plan_candidates: int = flag(
        1000, 'action sequences tried in an iteration', minimum=1, group='planning'
    )
    plan_iterations: int = flag(10, 'refits of the search distribution', minimum=1)
    plan_elites: int = flag(100, 'best candidates that refits keep', minimum=1)
    plan_horizon: int = flag(12, 'length of a plan [agent steps]', minimum=1)

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
# TF1's episodes, schedule and prefill of 2,500 agent steps.
_DISCRETE = dict(
    _ONE_HOT, action_repeat=4, time_limit=108_000, prefill=10_000, train_every=2_000
)
# Without an entropy bonus a discrete actor is certain within 300 updates, before the
# world model knows the rewards. An image of a thin pole tells less than 3 nats, so that
# with free nats nothing teaches the dynamics. Rewards need weight: they are few, small
# after tanh, and compete with thousands of pixels. An agent that gets a new game after
# each life never sees how a game continues.
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
    # Most environments set a time limit themselves.
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
    # Networks and batch are small enough for one core. Sequences keep their 50 steps:
    # with 16 the states did not learn velocities. Where images say little, free nats
    # and the full weight of the KL kept moving things out of the state. A model of this
    # size learns rewards late; until then the bonus keeps the actor uncertain.
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
    # The paper's text, and where it says nothing TF1, which made the paper's results.
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
# Settings that presets add where actions are discrete. A key names a suite, a preset,
# or a preset together with a suite.
IF_DISCRETE = {
    'gym': dict(_ONE_HOT, expl_decay=5_000.0, actor_entropy=0.3, free_nats=0.0),
    'small atari': _SMALL_GAMES,
    'small dmlab': _SMALL_GAMES,
    'small gym': dict(batch_length=32, actor_entropy_decay=0.0),
    # The text gives epsilon, but not the action that it changes: in TF1 a sample.
    'paper': dict(expl_action='sample'),
}
# Settings that presets add where the agent observes state vectors but no images.
IF_STATE = {
    'small': dict(
        batch_size=10,
        deter_size=100,
        stoch_size=20,
        num_units=100,
        rssm_units=100,
        kl_scale=0.02,  # Few numbers weigh less in the loss than many pixels.
    )
}
# In other suites, only the simulator knows whether the actions are discrete.
DISCRETE_SUITES = 'atari', 'dmlab'


def parse(argv):
    """Return the checked `Config` of the words of a command line.

    On `--help`, print the help and exit with 0. Actions count as continuous unless the
    suite has discrete ones alone; see `resolve`.

    Raises:
      UserError: a word is unknown, malformed or impossible.
    """
    return resolve(*split_words(argv))


def split_words(argv):
    """Return a command line's names of presets, and its flags as {name: value}.

    Raises:
      UserError: a preset, a flag or its form is unknown.
    """
    flags = vars(_parser().parse_args(argv))
    presets = flags.pop('configs') or []
    for name in presets:
        if name not in PRESETS:
            raise UserError(
                f"unknown preset '{name}' in --configs; possible: {', '.join(PRESETS)}"
            )
    return presets, flags


def resolve(presets, flags, discrete=False):
    """Return the checked `Config` of presets and flags.

    Args:
      presets, flags: what `split_words` returns.
      discrete: whether the task's actions are discrete; needed in suites that have
        both kinds.

    Raises:
      UserError: some values exclude one another.
    """
    suite = suite_of(flags.get('task', Config.task))
    discrete = discrete or suite in DISCRETE_SUITES
    values = SUITE_PRESETS[suite] | (IF_DISCRETE.get(suite, {}) if discrete else {})
    for name in presets:
        values |= PRESETS[name]
        for key in (name, f'{name} {suite}') if discrete else ():
            values |= IF_DISCRETE.get(key, {})
        if flags.get('observation') == 'state':
            values |= IF_STATE.get(name, {})
    values |= flags
    try:
        values['logdir'] = command_line.home(values.get('logdir', Config.logdir))
    except argparse.ArgumentTypeError as error:
        raise UserError(f'--logdir: {error}') from None
    config = check(Config(**values))
    if config.method == 'planet' and flags.get('actor_entropy'):
        raise UserError(
            f'--actor_entropy {config.actor_entropy} needs an actor, and --method '
            'planet has none; possible: 0, or --method dreamer or no_value'
        )
    return config


def _parser():
    """Return the parser of the flags. Its result lacks flags that are not given, so
    that presets can set them.
    """
    parser = command_line.Parser(
        prog='dreamer.py',
        description='Dreamer: learning behaviors by latent imagination.',
        formatter_class=functools.partial(
            argparse.HelpFormatter, max_help_position=28, width=88
        ),
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        '--configs',
        nargs='+',
        default=None,
        metavar='PRESET',
        help=f'presets, applied left to right: {", ".join(PRESETS)}; the preset '
        'of the suite comes before them',
    )
    command_line.add_flags(parser, Config)
    return parser


def suite_of(task):
    """Return the suite that a task's name begins with; raise UserError without one."""
    suite = task.split('_')[0]
    if suite not in SUITE_PRESETS or '_' not in task:
        raise UserError(
            f"unknown task '{task}'; tasks are named SUITE_NAME with "
            f'suites: {", ".join(SUITE_PRESETS)} (for example '
            f'{Config.task}, dummy_continuous)'
        )
    return suite


def check(config):
    """Return `config`; raise UserError if some values exclude one another."""
    command_line.check_rules(config)
    if config.plan_elites > config.plan_candidates:
        raise UserError(
            f'--plan_elites {config.plan_elites} is above '
            f'--plan_candidates {config.plan_candidates}'
        )
    if config.prefill > config.steps:
        raise UserError(
            f'--prefill {config.prefill} is above --steps '
            f'{config.steps}; nothing would be learned'
        )
    if 0 < config.replay_memory < 1:
        raise UserError(
            f'--replay_memory {config.replay_memory} is less than a byte; possible: 0 '
            'for a quarter of all memory, or bytes, such as 8e9'
        )
    if 0 < config.replay_capacity < config.action_repeat:
        raise UserError(
            f'--replay_capacity {config.replay_capacity} is less than one action of '
            f'--action_repeat {config.action_repeat}; possible: 0 for all, or at least '
            f'{config.action_repeat}'
        )
    if config.expl_min > config.expl_amount:
        raise UserError(
            f'--expl_min {config.expl_min} is above --expl_amount '
            f'{config.expl_amount}; the noise can only fall'
        )
    return config


def fit_to_actions(config, discrete):
    """Return `config` with the action head and the exploration that the actions need.

    Raises:
      UserError: a flag does not fit the actions.
    """
    if discrete and config.method == 'planet':
        raise UserError(
            f'--method planet plans continuous actions, but {config.task} has discrete '
            'ones; possible: dreamer, no_value'
        )
    fitting = dict(
        action_dist='onehot' if discrete else 'tanh_normal',
        expl='epsilon_greedy' if discrete else 'additive_gaussian',
    )
    for name, value in fitting.items():
        asked = getattr(config, name)
        if asked not in ('auto', value):
            raise UserError(
                f'--{name} {asked} does not fit the '
                f'{"discrete" if discrete else "continuous"} actions of {config.task}; '
                f'possible: auto, {value}'
            )
    for name in ('expl_amount', 'eval_noise') if discrete else ():
        if getattr(config, name) > 1:
            raise UserError(
                f'--{name} {getattr(config, name)} is too much: it is the share of '
                f'random actions, as {config.task} has discrete ones; possible: 0 to 1'
            )
    return dataclasses.replace(config, **fitting)


def check_length(config, row_bytes):
    """Raise UserError if the longest episode is too long for a file of the replay."""
    rows = -(-config.time_limit // config.action_repeat) + 1
    most = episodes.MAX_BYTES // row_bytes
    if rows > most:
        raise UserError(
            f'--time_limit {config.time_limit} with --action_repeat '
            f'{config.action_repeat} allows episodes of {rows - 1:,} agent steps, but '
            f'a file of the replay holds {most - 1:,}; possible: --time_limit up to '
            f'{(most - 1) * config.action_repeat}, or a larger --action_repeat'
        )
