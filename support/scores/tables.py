"""Tables of scores as Markdown and CSV."""

import csv
import io

from support.scores import comparison, figures, protocol
from support.scores.comparison import BASELINES, baseline_label


def format_score(value, digits=None):
    """Return a score with decimals by its size, or with `digits`."""
    if value is None:
        return '-'
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f'{value:.{digits}f}'


def _markdown(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines) + '\n'


def mean_and_spread(mean, std):
    """Return `mean ± std`, or the mean alone if there is no spread."""
    text = format_score(mean)
    return text if std is None else f'{text} ± {format_score(std)}'


def scores_markdown(rows, tasks, published, aggregates, key):
    """Return tables in Markdown: scores of runs, published scores, aggregates."""
    parts = ['# Scores\n', *_runs_markdown(rows, published, key)]
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


def _runs_markdown(rows, published, key):
    parts = [
        f'Score: `{key}`, the mean of the last {protocol.EVALUATIONS} evaluations of a '
        'run, up to the environment steps given, then over seeds, ± population '
        'standard deviation. Published: the released Dreamer curves (PlaNet: the '
        "paper's final score) at the last step where they were published and all seeds "
        f'have been. Ours there: {protocol.EVALUATIONS} evaluations around that step. '
        'Difference: (ours - published) / published spread. Verdict, with '
        f'{protocol.VERDICT_SEEDS} seeds or more: inside {protocol.INSIDE} spreads, '
        'above or below.\n',
        _markdown(
            [
                *('task', 'method', 'seeds', 'steps', 'score'),
                *('published at', 'ours there', 'published', 'difference', 'verdict'),
            ],
            [
                [
                    row.task,
                    row.method,
                    len(row.scores),
                    range_of(row.ends),
                    mean_and_spread(row.score, row.std),
                    '-' if row.at is None else f'{row.at:,}',
                    mean_and_spread(*row.ours),
                    mean_and_spread(row.published, row.published_std),
                    '-' if row.difference is None else f'{row.difference:+.1f}',
                    row.verdict or '-',
                ]
                for row in rows
            ],
        ),
    ]
    count = protocol.count_verdicts(rows)
    if count:
        parts += [f'{count}.\n']
    if published:
        parts += [f'{comparison.WARNING}\n']
    return parts


def range_of(steps):
    """Return the environment steps of several runs: one number if all are equal."""
    low, high = int(min(steps)), int(max(steps))
    return f'{low:,}' if low == high else f'{low:,} to {high:,}'


def figure_markdown(paper, tasks, rows, groups, published, key):
    """Return the tables of a figure of the paper, a `figures.Figure`: scores of runs,
    and what was read off it beside the scores of `groups` {(task, method): runs} there.
    """
    parts = [f'# Figure {paper.number}: {paper.title}\n']
    parts += [f'{paper.unknown}\n'] * bool(paper.unknown)
    parts += _runs_markdown(rows, published, key)
    points = [
        x for task in (*tasks, 'mean') for x in published.of_figure(paper.number, task)
    ]
    if points:
        parts += _points_markdown(paper, points, rows, groups)
    return '\n'.join(parts)


def _points_markdown(paper, points, rows, groups):
    """Return the table of `points` that were read off a figure, as parts of a page."""
    varied = figures.split(paper.methods[0])[1]
    lines = [
        [
            point.task,
            point.method,
            f'{point.x:,}',
            format_score(_ours_at(paper, point, rows, groups)),
            mean_and_spread(point.score, point.error),
            point.source,
        ]
        for point in points
    ]
    x = varied if paper.kind == 'settings' else 'steps'
    return [
        '## The figure of the paper\n',
        'Paper: ± error of reading, none where the value is printed or the error '
        'unknown; `hidden` is behind another line. Ours: '
        f'{protocol.EVALUATIONS} evaluations around the same steps.\n',
        _markdown(['task', 'method', x, 'ours', 'paper', 'source'], lines),
    ]


def _ours_at(paper, point, rows, groups):
    """Return our score where a value was read off; None if a run did not get there."""
    if paper.kind == 'settings':
        name = (point.method, f'{point.x}')
        scores = [
            row.score
            for row in rows
            if row.task == point.task and figures.split(row.method)[::2] == name
        ]
        return scores[0] if scores else None
    runs = groups.get((point.task, point.method))
    there = protocol.scores_at(runs, point.x) if runs else None
    return None if there is None else float(there.mean())


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
        'After the steps in brackets; comparable with scores after as many.\n',
        _markdown(['task', *map(baseline_label, columns)], lines),
    ]


def _interval(value, low, high):
    ends = '' if low is None else f' ({low:.3f} to {high:.3f})'
    return f'{value:.3f}{ends}'


def scores_csv(rows):
    """Return the table of scores as CSV. An empty cell means that there is no number.
    `steps` is the shortest length of a seed's run.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(
        [
            *('task', 'method', 'seeds', 'steps', 'score', 'score_std'),
            *('published_at', 'ours', 'ours_std', 'published', 'published_std'),
            *('difference', 'verdict'),
        ]
    )
    for row in rows:
        score = (row.score, row.std)
        published = (*row.ours, row.published, row.published_std, row.difference)
        writer.writerow(
            [
                row.task,
                row.method,
                len(row.scores),
                int(row.ends.min()),
                *('' if x is None else f'{x:.4f}' for x in score),
                '' if row.at is None else row.at,
                *('' if x is None else f'{x:.4f}' for x in published),
                row.verdict or '',
            ]
        )
    return file.getvalue()
