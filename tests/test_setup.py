"""The set-up: pinned versions, and the commands users are given."""

import ast
import errno
import importlib.metadata
import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PINS = re.findall(r'^([\w-]+)==(.+)$', (ROOT / 'requirements.txt').read_text(), re.M)
PAGES = [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]


@pytest.mark.parametrize('package, version', PINS)
def test_installed_version_is_the_pinned_one(package, version):
    assert importlib.metadata.version(package) == version


def test_make_has_the_targets_that_the_readme_names():
    text = (ROOT / 'README.md').read_text()
    blocks = '\n'.join(re.findall(r'^```.*?^```', text, re.M | re.S))
    named = {
        *re.findall(r'`make (\w+)', text),
        *re.findall(r'^make (\w+)', blocks, re.M),
    }
    targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.M)
    assert named <= set(targets)


def test_the_container_has_what_the_set_up_installs():
    text = (ROOT / 'Dockerfile').read_text()
    packages = re.search(r'packages=\((.+)\)', (ROOT / 'setup.sh').read_text())[1]
    assert f'--no-install-recommends {packages} ' in text
    copied = re.search(r'^COPY (.+) \./$', text, re.M)[1].split()
    assert all((ROOT / name).exists() for name in copied)
    assert '-r requirements-gpu.txt' in text and 'requirements-gpu.txt' in copied


# Whose messages users see. Other errors become part of one of these.
ERRORS = {
    'UserError',
    'WorkerError',
    'MachineLost',
    'WeightsDiffer',
    'FloatingPointError',
    'RuntimeError',
    'ArgumentTypeError',
}
REFUSING = {'wrappers', 'workers', 'replicas'}


def called(call):
    """The name of what is called, without its module."""
    return (
        call.func.attr
        if isinstance(call.func, ast.Attribute)
        else getattr(call.func, 'id', '')
    )


def template(node):
    """A message with ... in the place of what is known only when it is printed."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(template, node.values))
    return '...'


def printed_messages():
    """All warnings and errors for users, as templates, with the files they are in."""
    for path in [*ROOT.glob('*.py'), *ROOT.glob('support/*/*.py')]:
        refusing = path.parent.name == 'envs' or path.stem in REFUSING
        errors = ERRORS | ({'ValueError', 'UnsupportedEnv'} if refusing else set())
        for node in ast.walk(ast.parse(path.read_text())):
            words = []
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                words = node.exc.args if called(node.exc) in errors else []
            elif isinstance(node, ast.Call) and (
                called(node) == 'fail'
                or any(keyword.arg == 'file' for keyword in node.keywords)
            ):
                words = node.args[:1] if called(node) in ('fail', 'print') else []
            for word in words:
                text = template(word)
                if re.search(r'\w{3}.*\w{3}', text.replace('...', '')):
                    yield path.stem, text
            if isinstance(node, ast.Call) and (
                ast.unparse(node.func) == 'command_line.warn'
            ):
                yield path.stem, f'warning: {template(node.args[0])}'


def test_errors_end_without_a_full_stop():
    files = [*ROOT.glob('*.py'), *ROOT.glob('support/*/*.py')]
    raised = [
        (path.name, template(word))
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for word in node.exc.args
    ]
    texts = raised + list(printed_messages())
    assert len(texts) > 100
    assert not [each for each in texts if re.search(r'\w.*(?<!\.)\.$', each[1], re.S)]


def troubleshooting():
    """Patterns of the messages in the table, where ... stands for anything."""
    text = (ROOT / 'docs' / 'troubleshooting.md').read_text()
    rows = re.findall(r'^\| (`.+?) \| [^|]+\|$', text, re.M)
    cells = [
        cell
        for cell in re.findall(r'`([^`]+)`', ' '.join(rows))
        if not (ROOT / cell).exists()
    ]
    return {
        cell: re.compile(
            '.*'.join(map(re.escape, cell.removeprefix('advice: ').split('...')))
        )
        for cell in cells
    }


def test_troubleshooting_has_every_message():
    progress = re.compile('(stopping|stopped|error):')
    patterns = troubleshooting().values()
    unknown = [
        (stem, text)
        for stem, text in printed_messages()
        if not progress.search(text)
        and not any(pattern.search(text) for pattern in patterns)
    ]
    assert not unknown


def test_troubleshooting_has_no_other_message():
    texts = [text for _, text in printed_messages()]
    texts += [os.strerror(number) for number in (errno.ENOSPC, errno.EACCES)]
    texts += [
        (ROOT / name).read_text()
        for name in (
            'setup.sh',
            'evaluate.py',
            'support/run/advice.py',
            'support/run/progress.py',
            'support/run/startup.py',
            'support/acting/simulator.py',
            'support/acting/workers.py',
            'support/scaling/jobs.py',
            'plotting.py',
            'support/envs/lab.py',
            'support/envs/registered.py',
        )
    ]
    gone = [
        cell
        for cell, pattern in troubleshooting().items()
        if not any(pattern.search(text) for text in texts)
    ]
    assert not gone
