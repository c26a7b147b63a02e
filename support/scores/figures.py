"""The paper's figures 4 and 6 to 12 as data: what has to be run, and how it is drawn.

*Dream to Control*, Hafner et al., ICLR 2020, arXiv 1912.01603v3. `unknown` says what no
source tells. Values that were read off the figures are in `paper_figures.csv`, whose
source is in README.md.

A method and its folder have one name: `METHOD`, `METHOD_REPRESENTATION`, and each of
these with a flag of dreamer.py and its value, as in `dreamer-horizon-10`.
"""

import dataclasses
import itertools

from support.system.command_line import UserError

METHODS = ('dreamer', 'no_value', 'planet')
REPRESENTATIONS = ('reconstruction', 'contrastive', 'reward')

# All 20, in the order of figure 6.
CONTROL_SUITE = tuple(
    f'dmc_{name}'
    for name in (
        'cartpole_balance walker_stand cup_catch walker_walk cartpole_balance_sparse '
        'reacher_easy quadruped_walk hopper_stand cheetah_run finger_turn_hard '
        'quadruped_run cartpole_swingup pendulum_swingup finger_turn_easy walker_run '
        'reacher_hard cartpole_swingup_sparse finger_spin hopper_hop acrobot_swingup'
    ).split()
)
HORIZONS = (3, 5, 10, 15, 20, 25, 30, 40)
REPEATS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    `kind`: 'curves' (a panel for each task), 'settings' (likewise, the final score over
    the value of a flag) or 'bars' (final scores in one panel). `steps` [environment
    steps] is the length of the runs and the end of the horizontal axis. `bin`
    [environment steps] is the distance between the vertices of a curve, each the mean
    and the standard deviation over seeds. `lines` are columns of `results/published/`.
    """

    number: int
    title: str
    kind: str
    tasks: tuple
    methods: tuple
    steps: int
    unknown: str
    seeds: int = 5
    lines: tuple = ('a3c_1e8_state', 'd4pg_1e8_pixels')
    bin: int = 100_000

    @property
    def flags(self):
        """Flags of dreamer.py for every run, before those of its method."""
        return ['--configs', 'paper', '--steps', str(self.steps)]


_HORIZON_OF_BASELINES = (
    'The text names a horizon of 20 for the comparison in appendix D, which an earlier '
    'version of the paper had as its default; no value has 15 here and PlaNet 12, as '
    'in the code of the paper.'
)
_REPRESENTATIONS = ('dreamer', 'dreamer_contrastive', 'dreamer_reward')

FIGURES = {
    figure.number: figure
    for figure in (
        Figure(
            4,
            'imagination horizons',
            'settings',
            (
                'dmc_cartpole_swingup',
                'dmc_cheetah_run',
                'dmc_quadruped_walk',
                'dmc_walker_walk',
            ),
            tuple(f'{m}-horizon-{h}' for m in METHODS for h in HORIZONS),
            5_000_000,
            'The paper gives neither the seeds nor the steps of its final scores; they '
            'are not those of the runs of figures 7 and 8.',
            lines=(),
        ),
        Figure(
            6,
            'final scores',
            'bars',
            CONTROL_SUITE,
            ('dreamer', 'planet'),
            5_000_000,
            'The paper does not say of how many episodes a final score is the mean.',
            lines=('dreamer_5e6', 'planet_5e6', 'd4pg_1e8_pixels', 'a3c_1e8_state'),
        ),
        Figure(
            7,
            'methods',
            'curves',
            tuple(
                f'dmc_{name}'
                for name in (
                    'acrobot_swingup cartpole_swingup_sparse hopper_hop hopper_stand '
                    'pendulum_swingup quadruped_walk walker_run walker_walk'
                ).split()
            ),
            METHODS,
            2_000_000,
            _HORIZON_OF_BASELINES,
        ),
        Figure(
            8,
            'representations',
            'curves',
            tuple(
                f'dmc_{name}'
                for name in (
                    'acrobot_swingup cheetah_run cup_catch finger_spin hopper_stand '
                    'pendulum_swingup quadruped_run walker_stand'
                ).split()
            ),
            _REPRESENTATIONS,
            2_000_000,
            '',
        ),
        Figure(
            9,
            'Atari and DeepMind Lab',
            'curves',
            tuple(
                f'atari_{name}'
                for name in (
                    'assault boxing fishing_derby freeway frostbite hero ice_hockey '
                    'kangaroo kung_fu_master montezuma_revenge pong tennis'
                ).split()
            )
            + ('dmlab_rooms_collect_good_objects_train', 'dmlab_rooms_watermaze'),
            ('dreamer',),
            20_000_000,
            'The paper has 14 games. boxing and kangaroo are certain, ten are likely, '
            'since the site of the paper shows them, and two are unknown. So are the '
            'seeds, the scores of SimPLe, and those of IMPALA: the line of IMPALA is '
            'another published run.',
            lines=('dqn_2e8', 'rainbow_2e8', 'impala_1e9'),
        ),
        Figure(
            10,
            'methods, all tasks',
            'curves',
            CONTROL_SUITE,
            METHODS,
            5_000_000,
            'Where the axis of the paper ends is unknown. ' + _HORIZON_OF_BASELINES,
            lines=('a3c_1e8_state', 'd4pg_1e8_pixels', 'slac_3e6'),
        ),
        Figure(
            11,
            'representations, all tasks',
            'curves',
            CONTROL_SUITE,
            _REPRESENTATIONS,
            2_000_000,
            'Where the axis of the paper ends is unknown.',
        ),
        Figure(
            12,
            'action repeats',
            'curves',
            CONTROL_SUITE,
            tuple(f'dreamer-repeat-{repeat}' for repeat in REPEATS),
            2_000_000,
            'The tasks, the repeats and the end of the axis are unknown: these are all '
            '20 tasks, with half and twice the usual repeat. The runs of the paper had '
            'an older setting of the hyperparameters.',
            seeds=2,
            lines=(),
        ),
    )
}

_OTHERS = {
    1: 'a diagram',
    2: 'single images: evaluate.py --video shows them',
    3: 'a diagram',
    5: 'a strip of predicted images: evaluate.py --dream strip.png',
}


def find(number):
    """Return the `Figure` with `number`; raise UserError if it needs no runs."""
    if number not in FIGURES:
        what = f' is {_OTHERS[number]}' if number in _OTHERS else ' does not exist'
        raise UserError(
            f'figure {number} of the paper{what}; possible: '
            f'{", ".join(map(str, FIGURES))}'
        )
    return FIGURES[number]


def split(name):
    """Split a method's name into METHOD or METHOD_REPRESENTATION, flag and value. The
    last two are empty if it has none.
    """
    method, flag, value = (*name.split('-', 2), '', '')[:3]
    return method, flag, value


def flags_of(name):
    """Return the flags of dreamer.py for a method's name.

    `repeat` is short for `action_repeat`, and the `horizon` of PlaNet is that of its
    plan. Raises UserError on an unknown method. Whether dreamer.py accepts the flag and
    its value is not checked.
    """
    base, flag, value = split(name)
    for method, representation in itertools.product(METHODS, REPRESENTATIONS):
        if base in (method, f'{method}_{representation}'):
            break
    else:
        raise UserError(
            f"unknown method '{base}'; possible: {', '.join(METHODS)}, each also with "
            '_contrastive or _reward, and then with a flag, as in dreamer-horizon-10'
        )
    flags = ['--method', method, '--representation', representation]
    if base == name:
        return flags
    if not flag or not value or '/' in name:
        raise UserError(
            f"'{name}' names no flag with a value; possible: such as dreamer-horizon-10"
        )
    if flag == 'horizon' and method == 'planet':
        flag = 'plan_horizon'
    return [*flags, f'--{"action_repeat" if flag == "repeat" else flag}', value]
