"""Figures of local runs beside published results, by matplotlib.

Colours are those of methods, the same in every figure; own results are solid, published
ones dashed, pale or hatched.
"""

import io
import itertools
import math
import textwrap

import matplotlib

matplotlib.use('Agg')  # Machines that train have no display.

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402
from matplotlib.ticker import EngFormatter, MaxNLocator  # noqa: E402

from support.scores import comparison, figures  # noqa: E402
from support.scores.comparison import BASELINES, baseline_label  # noqa: E402
from support.scores.tables import format_score  # noqa: E402

# One colour a method, in every figure, whether local or published (Okabe and Ito's
# palette, which stays apart for colour-blind readers; greys are for what only others
# have run). Methods that are not here take the spare ones in alphabetical order.
COLORS = {
    'dreamer': '#0072B2',
    'planet': '#009E73',
    'no_value': '#E69F00',
    'dreamer_contrastive': '#CC79A7',
    'dreamer_reward': '#D55E00',
    'd4pg': '#333333',
    'a3c': '#999999',
    'dqn': '#BBBBBB',
    'c51': '#888888',
    'rainbow': '#555555',
    'iqn': '#222222',
    'impala': '#333333',
    'slac': '#B22222',
}
SPARE_COLORS = (
    '#7F3C8D',
    '#8C564B',
    '#B5BD00',
    '#56B4E9',
    '#F0A3A3',
    '#4B4BC8',
    '#004D40',
    '#E6007E',
    '#8CD17D',
    '#5D001E',
    '#B8A1F0',
    '#806000',
)
# Of final scores that are drawn as lines; alternating within each suite.
LINE_STYLES = (':', '-.', (0, (5, 1)), (0, (1, 3)))
RELEASED = 'Dreamer, released curves'
SAME_STEPS = 'Dreamer, same steps'

# Drawing.


def method_colors(methods):
    """A colour for each of `methods`, the same in every figure."""
    spare = itertools.cycle(SPARE_COLORS)
    return COLORS | {
        method: next(spare) for method in sorted(set(methods)) if method not in COLORS
    }


def task_title(task):
    """`dmc_walker_walk` as `Walker Walk`."""
    return (
        task.removeprefix('dmc_')
        .removeprefix('atari_')
        .removeprefix('dmlab_')
        .replace('_', ' ')
        .title()
    )


def make_grid(count, height, width=2.6, columns=5, **kwargs):
    """A figure with `count` panels, five in a row as in the paper, and their axes."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    # The legend needs room, also above a single panel.
    figure = Figure(
        (max(width * columns + 0.5, 6.5), height * lines + 1.2), layout='constrained'
    )
    axes = figure.subplots(lines, columns, squeeze=False, **kwargs).flatten()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def draw_curves(
    tasks, curves, published, colors, key='test/return', xmax=None, paper=None
):
    """Learning curves: a panel for each of `tasks`, local ones solid with the spread
    over seeds as a band, the released ones dashed, final scores as lines. With `paper`,
    a `figures.Figure`, its lines only, and what was read off it as points.
    """
    figure, panels = make_grid(len(tasks), 2.0, columns=4 if paper else 5)
    handles = {}
    for ax, task in zip(panels, tasks):
        if published:
            _draw_published(ax, task, published, colors, handles, paper, xmax)
        for method in sorted(m for t, m in curves if t == task):
            label = f'{method}, own'
            handles[label] = _draw_curve(ax, curves[task, method], colors[method])
        ax.set_title(task_title(task), fontsize=10)
        # Tasks of a suite share their axis: their lengths are to be compared.
        ends = [
            curve.steps[-1]
            for (name, _), curve in curves.items()
            if name.split('_')[0] == task.split('_')[0]
        ]
        ax.set_xlim(0, (xmax or max(ends, default=5e6) or 1) * 1.02)
        # The paper's panels each have a range of their own.
        if task.startswith('dmc_') and key.endswith('return') and not paper:
            ax.set_ylim(-20, 1040)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(EngFormatter(sep=''))
        _plain(ax)
    _label_axes(figure, 'environment steps', key, RELEASED in handles)
    _legend(figure, handles)
    return figure


def _draw_curve(ax, curve, color):
    """A method's mean and spread; return the line."""
    marker = '.' if len(curve.steps) <= 25 else None
    (line,) = ax.plot(
        curve.steps, curve.mean, color=color, marker=marker, lw=1.8, zorder=3
    )
    low, high = curve.mean - curve.std, curve.mean + curve.std
    ax.fill_between(curve.steps, low, high, color=color, alpha=0.25, lw=0)
    return line


def _draw_published(ax, task, published, colors, handles, paper, xmax):
    if task in published.curves and (not paper or 'dreamer' in paper.methods):
        curve = published.curves[task]
        # What lies far behind the end of this axis would stretch the other one.
        inside = (curve[0] <= (xmax or math.inf)).sum()
        steps, mean, std, _ = curve[:, : inside + 1]
        color = colors['dreamer']
        (handles[RELEASED],) = ax.plot(steps, mean, color=color, ls='--', lw=1.2)
        ax.fill_between(steps, mean - std, mean + std, color=color, alpha=0.1, lw=0)
    for column, value in published.finals.get(task, {}).items():
        if column in paper.lines if paper else column != 'dreamer_5e6':
            handles[baseline_label(column)] = ax.axhline(
                value,
                color=colors[column.split('_')[0]],
                lw=1,
                ls=LINE_STYLES[list(BASELINES).index(column) % 4],
            )
    for point in published.of_figure(paper.number, task) if paper else []:
        if point.x <= (xmax or math.inf):
            handles[f'{point.method}, {point.label}'] = _draw_points(
                ax, [point], colors[point.method]
            )


def _draw_points(ax, points, color, **style):
    """Values of a figure of the paper with the error of reading; return the handle."""
    return ax.errorbar(
        [point.x for point in points],
        [point.score for point in points],
        [point.error or 0 for point in points],
        **dict(color=color, marker='D', mfc='white', ms=4, lw=1, ls='', zorder=4),
        **style,
    )


def draw_settings(paper, tasks, rows, published, colors):
    """Final scores over the value of the flag that `paper`, a `figures.Figure`, varies:
    a panel for each of `tasks`, own ones solid with the spread over seeds, what was
    read off the paper dashed.
    """
    figure, panels = make_grid(len(tasks), 2.6, columns=4)
    handles = {}
    names = [figures.split(name) for name in paper.methods]
    for (ax, task), base in itertools.product(
        zip(panels, tasks), dict.fromkeys(name[0] for name in names)
    ):
        points = [
            point
            for point in (published.of_figure(paper.number, task) if published else [])
            if point.method == base
        ]
        if points:
            handles[f'{base}, {points[0].label}'] = _draw_points(
                ax, points, colors[base], alpha=0.6
            )
            x, y = zip(*((point.x, point.score) for point in points))
            ax.plot(x, y, color=colors[base], ls='--', lw=1, alpha=0.6)
        own = sorted(
            (float(figures.split(row.method)[2]), row.score, row.std or 0)
            for row in rows
            if row.task == task and figures.split(row.method)[0] == base
        )
        if own:
            x, y, spread = zip(*own)
            handles[f'{base}, own'] = ax.errorbar(
                x, y, spread, color=colors[base], marker='.', lw=1.8, zorder=5
            )
        ax.set_title(task_title(task), fontsize=10)
        if task.startswith('dmc_'):
            ax.set_ylim(-20, 1040)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        _plain(ax)
    _label_axes(figure, names[0][1], 'final score')
    _legend(figure, handles)
    return figure


def draw_bars(paper, tasks, rows, published, colors):
    """Final scores in one panel: for each of `tasks` and their mean a bar of each
    method, own ones solid, published ones pale and hatched.
    """
    series = list(_series_of_bars(paper, tasks, rows, published))
    figure = Figure((0.72 * (len(tasks) + 1) + 2, 5), layout='constrained')
    ax = figure.subplots()
    handles, width = {}, 0.86 / max(len(series), 1)
    for i, (label, method, scores, own) in enumerate(series):
        style = {} if own else dict(alpha=0.4, hatch='////', ec='white')
        places = [k + (i - (len(series) - 1) / 2) * width for k in range(len(scores))]
        for x, (score, _) in zip(places, scores):
            if score is None and not own:
                ax.annotate('n/a', (x, 5), ha='center', rotation=90, fontsize=6)
        handles[label] = ax.bar(
            places,
            [score or 0 for score, _ in scores],
            width,
            color=colors[method],
            yerr=[std or 0 for _, std in scores] if own else None,
            error_kw=dict(lw=1, ecolor='#222222'),
            **style,
        )
    titles = [task_title(task) for task in tasks] + ['Mean']
    ax.set_xticks(range(len(titles)), titles, rotation=35, ha='right')
    ax.set_xlim(-0.6, len(titles) - 0.4)
    _plain(ax)
    ax.set_ylabel('final score', fontsize=10)
    _legend(figure, handles)
    return figure


def _series_of_bars(paper, tasks, rows, published):
    """Yield label, method, [(score, spread)] of each task and of the mean, and whether
    the scores are own ones; a score is None where there is none.
    """
    means = published.means() if published else {}
    for method in paper.methods:
        own = {row.task: (row.score, row.std) for row in rows if row.method == method}
        if own:
            scores = [own.get(task, (None, None)) for task in tasks]
            # The mean of some tasks must not lie beside that of all.
            whole = own.keys() >= set(paper.tasks)
            mean = sum(score for score, _ in own.values()) / len(own) if whole else None
            yield f'{method}, own', method, [*scores, (mean, None)], True
    for column in paper.lines if published else []:
        scores = [(published.finals.get(t, {}).get(column), None) for t in tasks]
        method = column.split('_')[0]
        yield (
            baseline_label(column),
            method,
            [*scores, (means.get(column), None)],
            False,
        )


def _label_axes(figure, x, y, warn=False):
    """Label the axes that all panels share, with the warning about released curves."""
    if warn:
        columns = int(figure.get_figwidth() * 13)
        x = f'{x}\n{textwrap.fill(comparison.WARNING, columns)}'
    figure.supxlabel(x, fontsize=8 if warn else 10)
    figure.supylabel(y, fontsize=10)


def _plain(ax):
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.25, lw=0.5)
    ax.tick_params(labelsize=8)


def _legend(figure, handles):
    if handles:
        handles = dict(sorted(handles.items(), key=lambda x: not x[0].endswith('own')))
        columns = max(1, int(figure.get_figwidth() // 2))
        # Below the panels it would lie on the label of the axis.
        figure.legend(
            handles.values(),
            handles.keys(),
            loc='outside upper center',
            ncols=columns,
            fontsize=8,
            frameon=False,
        )


def draw_finals(tasks, rows, published, colors):
    """Final scores: a panel for each of `tasks`, a bar for each method. Published ones
    are pale and hatched, and measured at the steps that their labels say.
    """
    bars = {task: _bars(task, rows, published) for task in tasks}
    order = (
        [f'{method}, own' for method in sorted({row.method for row in rows})]
        + [SAME_STEPS]
        + [baseline_label(column) for column in BASELINES]
    )
    labels = [x for x in order if any(x in shown for shown in bars.values())]
    figure, panels = make_grid(len(tasks), 0.5 + 0.19 * len(labels), sharey=True)
    for ax, task in zip(panels, tasks):
        for label, (method, mean, std, own) in bars[task].items():
            y = labels.index(label)
            style = {} if own else dict(alpha=0.4, hatch='////', ec='white')
            ax.barh(
                y,
                mean,
                color=colors[method],
                lw=0,
                xerr=std,
                error_kw=dict(lw=1, ecolor='#222222'),
                **style,
            )
            ax.annotate(
                format_score(mean),
                (max(mean + (std or 0), 0), y),
                (3, 0),
                textcoords='offset points',
                va='center',
                fontsize=7,
            )
        ax.set_title(task_title(task), fontsize=10)
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        _plain(ax)
        low, high = (0, 1000) if task.startswith('dmc_') else ax.get_xlim()
        ax.set_xlim(low, high + 0.28 * (high - low))  # Room for the numbers.
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.grid(False)
    _label_axes(figure, 'score', '', SAME_STEPS in labels)
    _legend(
        figure,
        {
            'own runs': Patch(fc='#666666'),
            'published': Patch(fc='#666666', alpha=0.4, hatch='////', ec='white'),
            'spread over seeds': Line2D([], [], color='#222222', lw=1),
        },
    )
    return figure


def _bars(task, rows, published):
    """{label: (method, mean, std, own)} of one panel."""
    bars = {}
    for row in (row for row in rows if row.task == task):
        bars[f'{row.method}, own'] = row.method, row.score, row.std, True
        if row.published is not None and row.method == 'dreamer':
            bars[SAME_STEPS] = ('dreamer', row.published, row.published_std, False)
    for column, value in (published.finals.get(task, {}) if published else {}).items():
        bars[baseline_label(column)] = column.split('_')[0], value, None, False
    return bars


def render(figure):
    """A figure as {suffix: bytes}, the same bytes for the same figure."""
    files = {}
    for kind, metadata in (('png', {}), ('pdf', {'CreationDate': None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)
        files[kind] = file.getvalue()
    return files
