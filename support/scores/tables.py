"""Tables of scores as Markdown and CSV."""

import csv
import io

import numpy as np

from support.scores import comparison, figures
from support.scores.comparison import BASELINES, baseline_label


def format_score(value, digits=None):
    """A score with the decimals that its size asks for, or with `digits`."""
    if value is None:
        return '-'
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f'{value:.{digits}f}'


def _markdown(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines) + '\n'


def _spread(mean, std):
    text = format_score(mean)
    return text if std is None else f'{text} ± {format_score(std)}'


def scores_markdown(rows, tasks, published, aggregates, key, widths):
    """The tables as Markdown: own scores, published final ones, aggregates."""
    parts = ['# Scores\n', *_own_markdown(rows, published, key, widths)]
    if published:
        parts += _finals_markdown(tasks, published)
    if aggregates:
        parts += [
            '## Aggregates\n',
            'Control Suite, score / 1000; in brackets the 95 % interval of a bootstrap '
            'over runs, stratified by task.\n',
            _markdown(
                ['method', 'tasks', 'seeds', 'interquartile mean', 'mean'],
                [
                    [
                        x['method'],
                        x['tasks'],
                        x['seeds'],
                        _interval(*x['iqm']),
                        _interval(*x['mean']),
                    ]
                    for x in aggregates
                ],
            ),
        ]
    return '\n'.join(parts)


def _own_markdown(rows, published, key, widths):
    bins = ', '.join(sorted({f'{width:,.0f}' for width in widths.values()}))
    parts = [
        f'Own: `{key}`, averaged in the bin around the given environment steps (bins '
        f'of {bins or "-"}) and then over seeds, ± population standard deviation. '
        'Published: the released Dreamer curves at the same steps (PlaNet: the '
        "paper's final score). Difference: (own - published) / published spread; "
        f'verdict: inside {comparison.INSIDE} spreads, above or below.\n',
        _markdown(
            'task method seeds steps own published difference verdict'.split(),
            [
                [
                    row.task,
                    row.method,
                    len(row.scores),
                    f'{row.steps:,}',
                    _spread(row.score, row.std),
                    _spread(row.published, row.published_std),
                    '-' if row.difference is None else f'{row.difference:+.1f}',
                    row.verdict or '-',
                ]
                for row in rows
            ],
        ),
    ]
    count = comparison.count_verdicts(rows)
    if count:
        parts += [f'{count}.\n']
    if published:
        parts += [f'{comparison.WARNING}\n']
    return parts


def figure_markdown(paper, tasks, rows, curves, published, key, widths):
    """The tables of a figure of the paper, a `figures.Figure`: own scores, and what was
    read off it beside own scores there.
    """
    parts = [f'# Figure {paper.number}: {paper.title}\n']
    parts += [f'{paper.unknown}\n'] * bool(paper.unknown)
    parts += _own_markdown(rows, published, key, widths)
    points = [
        x for task in (*tasks, 'mean') for x in published.of_figure(paper.number, task)
    ]
    if points:
        parts += [
            '## The figure of the paper\n',
            'Paper: ± error of reading, none where the value is printed or the error '
            'unknown; `hidden` is behind another line. Own: at the same place.\n',
            _markdown(
                [
                    'task',
                    'method',
                    'steps'
                    if paper.kind != 'settings'
                    else figures.split(paper.methods[0])[1],
                    'own',
                    'paper',
                    'source',
                ],
                [
                    [
                        point.task,
                        point.method,
                        f'{point.x:,}',
                        format_score(_own_at(paper, point, rows, curves)),
                        _spread(point.score, point.error),
                        point.source,
                    ]
                    for point in points
                ],
            ),
        ]
    return '\n'.join(parts)


def _own_at(paper, point, rows, curves):
    """The own score where a value was read off; None if no run has got there."""
    if paper.kind == 'settings':
        name = (point.method, f'{point.x}')
        scores = [
            row.score
            for row in rows
            if row.task == point.task and figures.split(row.method)[::2] == name
        ]
        return scores[0] if scores else None
    curve = curves.get((point.task, point.method))
    if curve is None or not curve.steps[0] <= point.x <= curve.steps[-1]:
        return None
    return float(np.interp(point.x, curve.steps, curve.mean))


def _finals_markdown(tasks, published):
    tables = {
        task: published.finals[task] for task in tasks if task in published.finals
    }
    columns = [x for x in BASELINES if any(x in table for table in tables.values())]
    if not columns:
        return []
    lines = [
        [task, *(format_score(table.get(x)) for x in columns)]
        for task, table in tables.items()
    ]
    if any(task.startswith('dmc_') for task in tables):
        means = published.means()
        lines.append(
            ['mean of all dmc tasks', *(format_score(means.get(x), 2) for x in columns)]
        )
    return [
        '## Published final scores\n',
        'After the steps in brackets; comparable with own scores after as many.\n',
        _markdown(['task', *map(baseline_label, columns)], lines),
    ]


def _interval(value, low, high):
    ends = '' if low is None else f' ({low:.3f} to {high:.3f})'
    return f'{value:.3f}{ends}'


def scores_csv(rows):
    """The table of own scores as CSV; an empty cell is a number that there is not."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(
        [
            'task',
            'method',
            'seeds',
            'steps',
            'score',
            'score_std',
            'published',
            'published_std',
            'difference',
            'verdict',
        ]
    )
    for row in rows:
        numbers = (row.score, row.std, row.published, row.published_std, row.difference)
        writer.writerow(
            [
                row.task,
                row.method,
                len(row.scores),
                row.steps,
                *('' if x is None else f'{x:.4f}' for x in numbers),
                row.verdict or '',
            ]
        )
    return file.getvalue()
