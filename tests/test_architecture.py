"""The plan of the house: imports run downwards, walls hold, scripts stand alone."""

import ast
import re

import pytest
from conftest import ROOT

# From the cellar up (see docs/architecture.md): a place imports from those before it.
PLACES = (
    'system tools storage envs scores learning wrappers configs models acting agent '
    'run scaling dreamer evaluate plotting sweep benchmarks'
).split()
SCRIPTS = {'dreamer', 'evaluate', 'plotting', 'sweep'}
WALLED = {'system', 'storage', 'envs', 'acting', 'wrappers', 'configs'}
# Besides these, what runs before TensorFlow is imported, or without it.
QUICK = {
    *('sweep.py', 'plotting.py', 'support/scaling/jobs.py'),
    *('support/run/advice.py', 'support/run/config_file.py'),
    'support/run/evaluation.py',
}
HEAVY = {'tensorflow', 'keras', 'tensorflow_probability', 'tf_keras'}
FILES = sorted(
    path
    for path in [*ROOT.glob('*.py'), *ROOT.glob('[a-z]*/**/*.py')]
    if path.relative_to(ROOT).parts[0] != 'tests'
    and path != ROOT / 'support' / '__init__.py'
)


def place(path):
    """The room that a file belongs to: a file in front, or a folder."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return parts[parts[0] == 'support']


def imports(path):
    """Dotted names of all that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path} imports relatively'
            names.update(f'{node.module}.{alias.name}' for alias in node.names)
    return names


def file_of(name):
    """The project's file that a dotted name leads to; None if it is another's."""
    parts = name.split('.')
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        for file in (path.with_suffix('.py'), path / '__init__.py'):
            if file.exists():
                return file
    return None


def reach(path, seen):
    """Dotted names of all that a file imports, also through the project's files."""
    names = imports(path)
    for file in set(map(file_of, names)) - {None} - seen:
        seen.add(file)
        names |= reach(file, seen)
    return names


def test_every_file_has_its_place():
    assert {place(path) for path in FILES} == set(PLACES)
    front = [path for path in FILES if path.parent == ROOT]
    assert len(front) == 9


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    here = place(path)
    for name in imports(path):
        file = file_of(name)
        if file and place(file) != here:
            assert PLACES.index(place(file)) < PLACES.index(here), name


def test_files_of_a_folder_import_one_another_in_one_direction():
    for path in FILES:
        inside = {file_of(name) for name in reach(path, set())}
        assert path not in inside, f'{path} imports itself in a circle'


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_tensorflow_behind_the_wall(path):
    if place(path) in WALLED or str(path.relative_to(ROOT)) in QUICK:
        assert not {name.split('.')[0] for name in reach(path, set())} & HEAVY


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_script_is_imported(path):
    assert not {name.split('.')[0] for name in imports(path)} & SCRIPTS


@pytest.mark.parametrize('path', FILES, ids=str)
def test_docstrings_are_imperatives_or_noun_phrases(path):
    """Not "Returns the ...": a verb of the third person, before its object."""
    nodes = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    third = re.compile(r'[A-Z][a-z]+s (an?|the|its|what|each|every|all|whether|why) ')
    assert not [
        text for text in map(ast.get_docstring, nodes) if third.match(text or '')
    ]


def test_tools_import_no_other_file():
    assert not [name for name in imports(ROOT / 'tools.py') if file_of(name)]


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_functions_fit_on_a_page(path):
    text = path.read_text()
    assert text.count('\n') <= 650
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_algorithm_1_is_one_page():
    tree = ast.parse((ROOT / 'dreamer.py').read_text())
    (run,) = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == 'Run'
    ]
    methods = [node for node in run.body if isinstance(node, ast.FunctionDef)]
    names = [node.name for node in methods]
    first = names.index('loop')
    assert names[first : first + 4] == ['loop', 'prefill', 'collect', 'train']
    assert methods[first + 3].end_lineno - methods[first].lineno < 110
