"""The returns that README and docs/ claim are those of the files in results/."""

import pathlib

import numpy as np
import pytest

import plotting
from scores import comparison

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [
    ('README.md', 'long'),
    ('docs/comparisons.md', 'methods'),
    ('docs/learning.md', 'trials'),
]


def claims(text, results, out):
    """Whether `text` has the table of own scores that plotting.py makes of
    the runs in the folder `results`; without runs there is nothing to claim.
    """
    if not results.is_dir():
        return 'results/' not in text
    assert plotting.main(['--logdir', str(results), '--out', str(out)]) == 0
    (table,) = [
        part
        for part in (out / 'scores.md').read_text().split('\n\n')
        if part.startswith('| task | method |')
    ]
    return table in text


@pytest.mark.parametrize('page, name', PAGES)
def test_pages_claim_what_results_show(tmp_path, page, name):
    assert claims((ROOT / page).read_text(), ROOT / 'results' / name, tmp_path)


def test_all_results_are_claimed():
    folders = {path.name for path in (ROOT / 'results').iterdir() if path.is_dir()}
    assert folders == {name for _, name in PAGES}


def test_a_claim_that_no_file_shows_is_found(tmp_path):
    results = tmp_path / 'results'
    assert not claims('as in results/', results, tmp_path)
    run = results / 'dmc_cartpole_balance' / 'dreamer' / '0'
    run.mkdir(parents=True)
    (run / 'metrics.jsonl').write_text('{"step": 1000, "test/return": 321.0}\n')
    assert not claims('321.0', results, tmp_path / 'out')
    table = (tmp_path / 'out' / 'scores.md').read_text()
    assert claims(table, results, tmp_path / 'out')
    assert not claims(table.replace('321.0', '322.0'), results, tmp_path / 'out')


def own(task, last):
    """What each run of `small` got in the five evaluations up to `last` steps, [S]."""
    scores = []
    for path in (ROOT / 'results' / 'long' / task / 'dreamer').glob('*/metrics.jsonl'):
        steps, returns, _ = comparison.read_points(path, 'test/return')
        if steps.max() >= last:
            inside = (last - 25_000 < steps) & (steps <= last)
            assert inside.sum() == 5
            scores.append(returns[inside].mean())
    return np.array(scores)


def mean_and_spread(mean, std):
    return f'{mean:.0f}' if std is None else f'{mean:.0f} ± {std:.0f}'


def test_readme_compares_small_with_the_released_curves_as_the_files_do():
    published = comparison.Published()
    rows = []
    for folder in sorted((ROOT / 'results' / 'long').glob('dmc_*')):
        cells = [
            f'`{folder.name.removeprefix("dmc_")}`',
            str(len(own(folder.name, 115_000))),
        ]
        for last, step in ((115_000, 105_000), (205_000, 205_000)):
            scores = own(folder.name, last)
            if not len(scores):
                cells += ['-', '-']
                continue
            std = scores.std() if len(scores) > 1 else None
            cells.append(mean_and_spread(scores.mean(), std))
            cells.append(mean_and_spread(*published.at(folder.name, 'dreamer', step)))
        rows.append(f'| {" | ".join(cells)} |')
    assert len(rows) >= 6
    text = (ROOT / 'README.md').read_text()
    assert (
        '\n| --- | --- | --- | --- | --- | --- |\n' + '\n'.join(rows) + '\n\n' in text
    )
