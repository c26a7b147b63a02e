"""README and the pages of docs/: every link leads on, every table and line is true."""

import json
import re

import pytest
from conftest import ROOT

DOCS = sorted((ROOT / 'docs').glob('*.md'))
PAGES = [ROOT / 'README.md', *DOCS, *sorted(ROOT.glob('[a-z]*/README.md'))]
MOST_LINES = 200
# What GitHub shows at once, and what people wait for.
LARGEST_PICTURE = 2_000_000


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


def test_readme_is_short_and_leads_to_every_page():
    text = (ROOT / 'README.md').read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert {f'docs/{path.name}' for path in DOCS} <= {
        link.partition('#')[0] for link in links(text)
    }


@pytest.mark.parametrize('path', DOCS, ids=lambda path: path.stem)
def test_a_page_first_says_who_needs_it(path):
    title, first = path.read_text().split('\n\n')[:2]
    assert title.startswith('# ')
    assert first.startswith('This page is for ')


def test_pictures_are_small_and_shown():
    shown = {
        (page.parent / link).resolve() for page in PAGES for link in links(prose(page))
    }
    for path in {*(ROOT / 'docs').iterdir()} - {*DOCS}:
        assert path in shown
        assert path.stat().st_size <= LARGEST_PICTURE


def section(path, heading):
    """The text of a page below a heading, up to the next."""
    return re.split(
        r'^## ', path.read_text().split(f'\n## {heading}\n')[1], flags=re.M
    )[0]


def test_running_explains_every_metric(finished):
    text = section(ROOT / 'docs' / 'running.md', 'What a run leaves')
    rows = re.findall(r'^\| (`.+?`) \|', text.split('| metric |')[1], re.M)
    told = set(re.findall(r'`(.+?)`', ' '.join(rows)))
    files = [finished[0] / 'metrics.jsonl', *(ROOT / 'results').rglob('metrics.jsonl')]
    written = {
        key for file in files for line in file.open() for key in json.loads(line)
    }
    assert written - {'step'} <= told
