"""Figures of local runs beside published results, by matplotlib.

Colours are those of methods, the same in every figure; local results are solid,
published ones dashed, pale or hatched.
"""

import dataclasses
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
    'small': '#0072B2',
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
SAME_STEPS = 'Dreamer, released'
MARKS = "Marks at the right edge: the paper's final scores, after 5e6 steps."

# Drawing.


def method_colors(methods):
    """Return a colour for each of `methods`, the same in every figure. A name whose
    last word is a method, such as `small planet`, has the colour of that method.
    """
    spare, result = itertools.cycle(SPARE_COLORS), dict(COLORS)
    for name in sorted(set(methods) - result.keys()):
        last = name.split(' ')[-1]
        result[name] = COLORS[last] if last in COLORS else next(spare)
    return result


def task_title(task):
    """Return the title of a task: `Walker Walk` for `dmc_walker_walk`."""
    if task.startswith('gym_'):
        return task.removeprefix('gym_')
    return (
        task.removeprefix('dmc_')
        .removeprefix('atari_')
        .removeprefix('dmlab_')
        .replace('_', ' ')
        .title()
    )


def make_grid(count, height, width=2.6, columns=5, **kwargs):
    """Return a figure with `count` panels, and their axes. Rows have `columns` panels,
    or fewer if the last row would be short otherwise.
    """
    lines = math.ceil(count / columns)
    columns = math.ceil(count / lines)
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
    """Draw learning curves in a panel for each of `tasks`.

    Local curves are solid. A band is the spread over seeds; pale points are the
    evaluations of a single run. Released curves are dashed, and the paper's final
    scores are marks at the right edge. With `paper`, a `figures.Figure`, there are only
    its lines, and points for what was read off it.
    """
    figure, panels = make_grid(len(tasks), 2.0, columns=4 if paper else 5)
    handles, marked = {}, False
    for ax, task in zip(panels, tasks):
        # Tasks of a suite share their axis: their lengths are to be compared.
        ends = [
            curve.steps[-1]
            for (name, _), curve in curves.items()
            if name.split('_')[0] == task.split('_')[0]
        ]
        end = xmax or max(ends, default=5e6) or 1
        ax.set_xlim(0, end * 1.02)
        if published:
            _draw_published(ax, task, published, colors, handles, paper, end)
        for method in sorted(m for t, m in curves if t == task):
            handles[ours(method)] = _draw_curve(
                ax, curves[task, method], colors[method]
            )
        ax.set_title(task_title(task), fontsize=10)
        # The paper's panels each have a range of their own.
        if task.startswith('dmc_') and key.endswith('return') and not paper:
            ax.set_ylim(-20, 1040)
        if published and not paper:
            marked |= _draw_marks(ax, task, published, curves, colors)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(EngFormatter(sep=''))
        plain(ax)
    label = 'environment steps' + f'\n{MARKS}' * marked
    _label_axes(figure, label, key_label(key), RELEASED in handles)
    _legend(figure, handles)
    return figure


def ours(method):
    """Return the name of a local method in a legend. One of a file names the file."""
    return method if method.endswith(')') else f'{method}, ours'


def key_label(key):
    """Return the name of a metric in words."""
    return {'test/return': 'episode return', 'train/return': 'training return'}.get(
        key, key
    )


def _draw_curve(ax, curve, color):
    """Draw a method's mean and spread, or a run's evaluations; return the line."""
    marker = '.' if len(curve.steps) <= 25 and curve.raw is None else None
    (line,) = ax.plot(
        curve.steps, curve.mean, color=color, marker=marker, lw=1.8, zorder=3
    )
    if curve.raw is not None:
        ax.plot(curve.steps, curve.raw, '.', color=color, alpha=0.35, ms=5, mew=0)
    low, high = curve.mean - curve.std, curve.mean + curve.std
    ax.fill_between(curve.steps, low, high, color=color, alpha=0.25, lw=0)
    return line


def _draw_published(ax, task, published, colors, handles, paper, end):
    """Draw what was published for a task; add it to the `handles` of the legend."""
    if task in published.curves and (not paper or 'dreamer' in paper.methods):
        curve = published.curves[task]
        # What lies far behind the end of this axis would stretch the other one.
        inside = (curve[0] <= end).sum()
        steps, mean, std, _ = curve[:, : inside + 1]
        color = colors['dreamer']
        (handles[RELEASED],) = ax.plot(steps, mean, color=color, ls='--', lw=1.2)
        ax.fill_between(steps, mean - std, mean + std, color=color, alpha=0.15, lw=0)
    for column, value in published.finals.get(task, {}).items():
        if paper and column in paper.lines:
            handles[baseline_label(column)] = ax.axhline(
                value,
                color=colors[column.split('_')[0]],
                lw=1,
                ls=LINE_STYLES[list(BASELINES).index(column) % 4],
            )
    for point in published.of_figure(paper.number, task) if paper else []:
        if point.x <= end:
            handles[f'{point.method}, {point.label}'] = _draw_points(
                ax, [point], colors[point.method]
            )


def _draw_marks(ax, task, published, curves, colors):
    """Mark the paper's final scores of Dreamer and of the local methods at the right
    edge; return whether there are any. The range of the axis stays as it is.
    """
    methods = {'dreamer'} | {m.split(' ')[-1] for t, m in curves if t == task}
    finals = {
        column.split('_')[0]: value
        for column, value in published.finals.get(task, {}).items()
        if column.endswith('_5e6') and column.split('_')[0] in methods
    }
    low, high = ax.get_ylim()
    for method, value in finals.items():
        ax.plot(
            [1],
            [min(max(value, low), high)],
            marker='<',
            ms=6,
            color=colors[method],
            mec='white',
            mew=0.5,
            transform=ax.get_yaxis_transform(),
            clip_on=False,
            zorder=5,
        )
    ax.set_ylim(low, high)
    return bool(finals)


def _draw_points(ax, points, color, **style):
    """Draw values of a figure of the paper with their errors; return the handle."""
    return ax.errorbar(
        [point.x for point in points],
        [point.score for point in points],
        [point.error or 0 for point in points],
        **dict(color=color, marker='D', mfc='white', ms=4, lw=1, ls='', zorder=4),
        **style,
    )


def draw_settings(paper, tasks, rows, published, colors):
    """Draw final scores over the value of the flag that `paper`, a `figures.Figure`,
    varies, in a panel for each of `tasks`. Local scores are solid, with the spread over
    seeds; scores that were read off the paper are dashed.
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
        found = sorted(
            (float(figures.split(row.method)[2]), row.score, row.std or 0)
            for row in rows
            if row.task == task and figures.split(row.method)[0] == base
        )
        if found:
            x, y, spread = zip(*found)
            handles[ours(base)] = ax.errorbar(
                x, y, spread, color=colors[base], marker='.', lw=1.8, zorder=5
            )
        ax.set_title(task_title(task), fontsize=10)
        if task.startswith('dmc_'):
            ax.set_ylim(-20, 1040)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        plain(ax)
    _label_axes(figure, names[0][1], 'final score')
    _legend(figure, handles)
    return figure


def draw_bars(paper, tasks, rows, published, colors):
    """Draw final scores in one panel: a bar of each method for each of `tasks` and for
    their mean. Local scores are solid, published ones pale and hatched.
    """
    series = list(_series_of_bars(paper, tasks, rows, published))
    figure = Figure((0.72 * (len(tasks) + 1) + 2, 5), layout='constrained')
    ax = figure.subplots()
    handles, width = {}, 0.86 / max(len(series), 1)
    for i, (label, method, scores, local) in enumerate(series):
        style = {} if local else dict(alpha=0.4, hatch='////', ec='white')
        places = [k + (i - (len(series) - 1) / 2) * width for k in range(len(scores))]
        for x, (score, _) in zip(places, scores):
            if score is None and not local:
                ax.annotate('n/a', (x, 5), ha='center', rotation=90, fontsize=6)
        handles[label] = ax.bar(
            places,
            [score or 0 for score, _ in scores],
            width,
            color=colors[method],
            yerr=[std or 0 for _, std in scores] if local else None,
            error_kw=dict(lw=1, ecolor='#222222'),
            **style,
        )
    titles = [task_title(task) for task in tasks] + ['Mean']
    ax.set_xticks(range(len(titles)), titles, rotation=35, ha='right')
    ax.set_xlim(-0.6, len(titles) - 0.4)
    plain(ax)
    ax.set_ylabel('final score', fontsize=10)
    _legend(figure, handles)
    return figure


def _series_of_bars(paper, tasks, rows, published):
    """Yield label, method, [(score, spread)] of each task and of the mean, and whether
    the scores are local; a score is None where there is none.
    """
    means = published.means() if published else {}
    for method in paper.methods:
        found = {x.task: (x.score, x.std) for x in rows if x.method == method}
        if found:
            scores = [found.get(task, (None, None)) for task in tasks]
            # The mean of some tasks must not lie beside that of all.
            whole = found.keys() >= set(paper.tasks)
            mean = sum(x for x, _ in found.values()) / len(found) if whole else None
            yield ours(method), method, [*scores, (mean, None)], True
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


def plain(ax):
    """Give a panel the style that all figures have."""
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.25, lw=0.5)
    ax.tick_params(labelsize=8)


def _legend(figure, handles):
    if handles:
        handles = dict(sorted(handles.items(), key=lambda x: not x[0].endswith('ours')))
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
    """Draw scores in a panel for each of `tasks`, with a bar for each method. Published
    scores are pale and hatched; their labels say after how many steps they are.
    """
    bars = {task: _bars(task, rows, published) for task in tasks}
    bars = {task: found for task, found in bars.items() if found}
    most = max(map(len, bars.values()), default=1)
    figure, panels = make_grid(
        max(len(bars), 1), 0.5 + 0.2 * most, width=3.4, columns=4
    )
    for ax, (task, found) in zip(panels, bars.items()):
        _draw_bars(ax, task, found, colors)
        ax.set_ylim(most - 0.4, -0.6)
    every = [bar for found in bars.values() for bar in found]
    released = any(bar.label.startswith(SAME_STEPS) for bar in every)
    _label_axes(figure, 'episode return', '', released)
    published = Patch(fc='#666666', alpha=0.4, hatch='////', ec='white')
    handles = {
        'ours': (any(x.local for x in every), Patch(fc='#666666')),
        'published': (not all(x.local for x in every), published),
        'spread over seeds': (
            any(x.std is not None for x in every),
            Line2D([], [], color='#222222', lw=1),
        ),
    }
    _legend(figure, {name: x for name, (there, x) in handles.items() if there})
    return figure


def _draw_bars(ax, task, bars, colors):
    for y, bar in enumerate(bars):
        style = {} if bar.local else dict(alpha=0.4, hatch='////', ec='white')
        ax.barh(
            y,
            bar.mean,
            color=colors[bar.method],
            lw=0,
            xerr=bar.std,
            error_kw=dict(lw=1, ecolor='#222222'),
            **style,
        )
        ax.annotate(
            format_score(bar.mean),
            (max(bar.mean + (bar.std or 0), 0), y),
            (3, 0),
            textcoords='offset points',
            va='center',
            fontsize=7,
        )
    ax.set_title(task_title(task), fontsize=10)
    ax.set_yticks(range(len(bars)), [bar.label for bar in bars])
    plain(ax)
    low, high = (0, 1000) if task.startswith('dmc_') else ax.get_xlim()
    ax.set_xlim(low, high + 0.28 * (high - low))  # Room for the numbers.
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.grid(False)


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a panel: `local` ones are of runs here, the others published."""

    label: str
    method: str
    mean: float
    std: float | None
    local: bool


def _bars(task, rows, published):
    """Return the bars of one panel, from the top."""
    bars, released = [], {}
    for row in (row for row in rows if row.task == task):
        label = f'{ours(row.method)} ({_steps(row.ends.max())})'
        bars.append(Bar(label, row.method, row.score, row.std, True))
        if row.published is not None and row.published_std is not None:
            label = f'{SAME_STEPS} ({_steps(row.at)})'
            released[row.at] = Bar(
                label, 'dreamer', row.published, row.published_std, False
            )
    bars += [released[at] for at in sorted(released)]
    finals = published.finals.get(task, {}) if published else {}
    return bars + [
        Bar(baseline_label(column), column.split('_')[0], finals[column], None, False)
        for column in BASELINES
        if column in finals
    ]


def _steps(count):
    return EngFormatter(sep='')(count)


def render(figure):
    """Return a figure as {suffix: bytes}, the same bytes for the same figure."""
    files = {}
    for kind, metadata in (('png', {}), ('pdf', {'CreationDate': None})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)
        files[kind] = file.getvalue()
    return files
