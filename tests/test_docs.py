"""README and the pages of docs/: every link leads on, every table and line is true."""

import ast
import json
import re

import pytest
from conftest import ROOT

from support.run import config_file

DOCS = sorted((ROOT / 'docs').glob('*.md'))
PAGES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    *DOCS,
    *sorted(ROOT.glob('[a-z]*/**/README.md')),
]


def prose(path):
    """The text of a page without its blocks of code."""
    return re.sub(r'^```.*?^```', '', path.read_text(), flags=re.M | re.S)


def links(text):
    """Targets of all links and pictures in `text`."""
    return re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`]*`', '', text))


def anchors(text):
    """What GitHub makes of the headings of `text`, to link to."""
    headings = re.findall(r'^#+ (.+)$', text, re.M)
    return {
        re.sub(r'[^\w\- ]', '', line.lower()).replace(' ', '-') for line in headings
    }


def broken(path):
    """Links of a page that lead nowhere in this repository."""
    for link in links(prose(path)):
        if re.match(r'https?://', link):
            continue
        name, _, anchor = link.partition('#')
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or anchor and anchor not in anchors(prose(target)):
            yield link


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    assert not list(broken(path))


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(
        '# First, and `last`\n\n[a](gone.md) [b](#gone) [c](#first-and-last)\n'
        '[d](page.md#gone)\n![e](gone.png) `[f](code)` [g](https://example.org)\n'
    )
    assert list(broken(page)) == ['gone.md', '#gone', 'page.md#gone', 'gone.png']


def test_readme_leads_to_every_page():
    text = (ROOT / 'README.md').read_text()
    assert {f'docs/{path.name}' for path in DOCS} <= {
        link.partition('#')[0] for link in links(text)
    }


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(path):
    for name in re.findall(r'`([\w/]+\.py)`', path.read_text()):
        assert (
            (ROOT / name).exists()
            or (path.parent / name).exists()
            or [*ROOT.glob(f'[a-z]*/**/{name}')]
        ), name


def names(path):
    """Functions and classes of a file, methods as `Class.method`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
            for inner in getattr(node, 'body', ()):
                if isinstance(node, ast.ClassDef) and hasattr(inner, 'name'):
                    yield f'{node.name}.{inner.name}'


def section(path, heading):
    """The text of a page below a heading, up to the next."""
    return re.split(
        r'^## ', path.read_text().split(f'\n## {heading}\n')[1], flags=re.M
    )[0]


def test_readme_leads_from_the_paper_to_code_that_exists():
    text = section(ROOT / 'README.md', 'From the paper to the code')
    places = re.findall(r'`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)', text)
    assert len(places) >= 10 and len(places) == text.count('.py`: ')
    for file, found in places:
        assert set(re.findall(r'`(.+?)`', found)) <= {*names(ROOT / file)}, file


def test_architecture_has_every_file_and_no_other():
    text = section(ROOT / 'docs' / 'architecture.md', 'The rooms')
    rows = re.findall(r'^\|[^|]*\| (`.+) \| (.+) \|$', text, re.M)
    told, folder = set(), ''
    for place, contents in rows:
        for name in re.findall(r'`([\w/.]+)`', place):
            assert (ROOT / name).exists(), name
            told.add(name)
            folder = name
        if folder.endswith('/'):
            told |= {folder + name for name in re.findall(r'`(\w+\.py)`', contents)}
    there = {
        str(path.relative_to(ROOT))
        for path in [*ROOT.glob('*.py'), *ROOT.glob('[a-z]*/**/*.py')]
        if path.name != '__init__.py'
        and path.relative_to(ROOT).parts[0] not in ('tests', 'benchmarks')
    }
    assert {name for name in told if name.endswith('.py')} == there


def test_running_explains_every_metric(finished):
    text = section(ROOT / 'docs' / 'running.md', 'What a run leaves')
    rows = re.findall(r'^\| (`.+?`) \|', text.split('| metric |')[1], re.M)
    told = set(re.findall(r'`(.+?)`', ' '.join(rows)))
    files = [finished[0] / 'metrics.jsonl', *(ROOT / 'results').rglob('metrics.jsonl')]
    written = {
        key for file in files for line in file.open() for key in json.loads(line)
    }
    assert written - {'step'} <= told


def test_lines_that_act_from_python(finished, tmp_path, monkeypatch):
    text = section(ROOT / 'docs' / 'running.md', 'Acting from Python')
    first, episodes, elsewhere = re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
    assert len(first.strip().splitlines()) == 1 + 1 + 5  # What is imported, and five.
    (tmp_path / 'logs').mkdir()
    (tmp_path / 'logs' / 'debug').symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(first, space)
    config = config_file.read(finished[0])
    assert space['config'].task == config.task
    assert space['agent'].gradient_step == 2 + 2 * 2
    assert space['action'].shape == space['env'].action_space.shape
    assert space['observation']['image'].shape == (64, 64, 3)
    assert isinstance(space['reward'], float)
    exec(episodes, space)
    assert space['episode']['image'].shape == (config.time_limit + 1, 64, 64, 3)
    exec(elsewhere, space)
    assert len(space['episode']['reward']) == 20 + 1
