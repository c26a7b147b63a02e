"""The set-up: pinned versions, who imports whom, and the commands users are given."""

import ast
import importlib.metadata
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PINS = re.findall(r'^([\w-]+)==(.+)$', (ROOT / 'requirements.txt').read_text(), re.M)
SCRIPTS = {'evaluate', 'plotting', 'sweep'}


def imports(path):
    """Returns the top-level names of all modules that a file imports, lazily too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split('.')[0])
    return names


def reach(module, seen=()):
    """Returns all that a module imports, also through modules of this repository."""
    path = ROOT / f'{module}.py'
    if module in seen or not path.exists():
        return {module}
    return {module}.union(*(reach(name, (*seen, module)) for name in imports(path)))


@pytest.mark.parametrize('package, version', PINS)
def test_installed_version_is_the_pinned_one(package, version):
    assert importlib.metadata.version(package) == version


@pytest.mark.parametrize('module', ['wrappers', 'workers', 'replay'])
def test_simulator_side_never_imports_tensorflow(module):
    heavy = {'tensorflow', 'keras', 'tensorflow_probability', 'tf_keras'}
    assert not reach(module) & heavy


def test_only_scripts_import_dreamer():
    importers = {path.stem for path in ROOT.glob('*.py') if 'dreamer' in imports(path)}
    assert importers <= SCRIPTS


def test_make_has_the_targets_that_the_readme_names():
    readme = ROOT / 'README.md'
    if not readme.exists():
        pytest.skip('There is no README yet.')
    text = readme.read_text()
    blocks = '\n'.join(re.findall(r'^```.*?^```', text, re.M | re.S))
    named = {
        *re.findall(r'`make (\w+)', text), *re.findall(r'^make (\w+)', blocks, re.M)}
    targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M)
    assert named <= set(targets)


def test_make_test_runs_the_command_of_the_readme():
    makefile = (ROOT / 'Makefile').read_text()
    assert ('\ntest:\n\t@./setup.sh requirements-sweep.txt\n'
            '\t$(PYTHON) -m pytest tests\n') in makefile
