"""The returns that README and docs/ claim are those of the files in results/."""

import pathlib

import numpy as np
import pytest

import plotting
from support.scores import comparison

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Each with what plotting.py is given for its table.
PAGES = [
    ('README.md', ['results/long']),
    (
        'docs/comparisons.md',
        ['results/methods', 'results/long/dmc_cartpole_swingup/dreamer']
        + ['--steps', '40000', '--xmax', '50000', '--bin', '10000'],
    ),
    ('docs/learning.md', ['results/trials']),
]


def claims(text, args, out):
    """Whether `text` has the table of own scores that plotting.py makes with `args`,
    a folder first; without that there is nothing to claim.
    """
    if not pathlib.Path(args[0]).is_dir():
        return 'results/' not in text
    assert plotting.main(['--logdir', *args, '--out', str(out)]) == 0
    (table,) = [
        part
        for part in (out / 'scores.md').read_text().split('\n\n')
        if part.startswith('| task | method |')
    ]
    return table in text


@pytest.mark.parametrize('page, args', PAGES)
def test_pages_claim_what_results_show(tmp_path, monkeypatch, page, args):
    monkeypatch.chdir(ROOT)
    assert claims(pathlib.Path(page).read_text(), args, tmp_path)


def test_all_results_are_claimed():
    folders = {f'results/{x.name}' for x in (ROOT / 'results').iterdir() if x.is_dir()}
    assert folders == {args[0] for _, args in PAGES}


def test_a_claim_that_no_file_shows_is_found(tmp_path):
    results = [str(tmp_path / 'results')]
    assert not claims('as in results/', results, tmp_path)
    run = tmp_path / 'results' / 'dmc_cartpole_balance' / 'dreamer' / '0'
    run.mkdir(parents=True)
    (run / 'metrics.jsonl').write_text('{"step": 1000, "test/return": 321.0}\n')
    assert not claims('321.0', results, tmp_path / 'out')
    table = (tmp_path / 'out' / 'scores.md').read_text()
    assert claims(table, results, tmp_path / 'out')
    assert not claims(table.replace('321.0', '322.0'), results, tmp_path / 'out')


def five_evaluations(task, last, step, published):
    """The `comparison.Row` of what runs of `small` got in the five evaluations up to
    `last` steps, beside the released curve at `step`.
    """
    scores = []
    for path in (ROOT / 'results' / 'long' / task / 'dreamer').glob('*/metrics.jsonl'):
        steps, returns, _ = comparison.read_points(path, 'test/return')
        if steps.max() >= last:
            inside = (last - 25_000 < steps) & (steps <= last)
            assert inside.sum() == 5
            scores.append(returns[inside].mean())
    released = published.at(task, 'dreamer', step)
    return comparison.Row(task, 'dreamer', step, np.array(scores), *released)


def mean_and_spread(mean, std):
    return f'{mean:.0f}' if std is None else f'{mean:.0f} ± {std:.0f}'


def test_readme_compares_small_with_the_released_curves_as_the_files_do():
    published = comparison.Published()
    lines = []
    for folder in sorted((ROOT / 'results' / 'long').glob('dmc_*')):
        early = five_evaluations(folder.name, 115_000, 105_000, published)
        late = five_evaluations(folder.name, 205_000, 205_000, published)
        cells = [f'`{folder.name.removeprefix("dmc_")}`', str(len(early.scores))]
        for row in (early, late):
            if len(row.scores):
                cells.append(mean_and_spread(row.score, row.std))
                cells.append(mean_and_spread(row.published, row.published_std))
            else:
                cells += ['-', '-']
        lines.append(f'| {" | ".join(cells)} |')
    assert len(lines) >= 6
    text = (ROOT / 'README.md').read_text()
    assert (
        '\n| --- | --- | --- | --- | --- | --- |\n' + '\n'.join(lines) + '\n\n' in text
    )
