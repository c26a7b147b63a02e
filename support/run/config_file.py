"""The file `config.json` of a run: its settings, the words that it was started with,
and the versions of the libraries.

The same words resume a run with its stored settings, also where a preset has changed
since. Other words are resolved anew, and what would differ is refused.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import sys

import configs
from support.system import atomic, faults
from support.system.command_line import UserError

NAME = 'config.json'
LIBRARIES = (
    'tensorflow',
    'keras',
    'tensorflow-probability',
    'numpy',
    'gymnasium',
    'dm_control',
    'mujoco',
)


def exists(logdir):
    """Return whether there is a run in a folder."""
    return (pathlib.Path(logdir) / NAME).exists()


def read(logdir):
    """Return the `Config` of a run.

    Settings that may change on resume may be missing; they have their defaults then.

    Raises:
      UserError: the file cannot be read, or is of another version of this program.
    """
    stored = _load(logdir)['config']
    names = set(configs.Config.__dataclass_fields__)
    missing = names - set(stored) - configs.CHANGEABLE
    unknown = set(stored) - names
    for keys, what in ((missing, 'has no'), (unknown, 'has settings unknown here:')):
        if keys:
            raise UserError(
                f'{pathlib.Path(logdir) / NAME} {what} {", ".join(sorted(keys))}; it '
                'is damaged or of another version of this program'
            )
    return configs.check(configs.Config(**stored))


def write(config, logdir, argv=None):
    """Store a configuration and the versions of the libraries. A choice that
    `write_choice` stored stays.

    Args:
      config: `configs.Config`.
      logdir: folder of the run, which exists.
      argv: words of the command line that the configuration is from.

    Raises:
      OSError: it could not be written; then the file is as it was.
    """
    stored = dict(
        config=dataclasses.asdict(config),
        typed=None if argv is None else _kept_words(*configs.split_words(argv)),
        versions=dict(
            python=sys.version.split()[0],
            **{name: _version(name) for name in LIBRARIES},
        ),
    )
    choice = read_choice(logdir)
    _store(stored | (dict(jit_choice=choice) if choice else {}), logdir)


def settle(argv, config, discrete):
    """Return the configuration of a run, once its environment exists.

    Only then is it known whether the actions are discrete, on which presets depend. If
    the run in the logdir was started by the same words, the result has the settings
    that define that run.

    Args:
      argv: words of the command line.
      config: of `configs.parse`, with its precision resolved. Precision and paths stay:
        a simulator may have changed the current folder since.
      discrete: whether the task's actions are discrete.
    """
    presets, flags = configs.split_words(argv)
    stays = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.metadata['path'] or field.name == 'precision'
    }
    resolved = configs.resolve(presets, flags, discrete)
    resolved = dataclasses.replace(resolved, **stays)
    stored = _load(config.logdir) if exists(config.logdir) else {}
    if stored.get('typed') != _kept_words(presets, flags):
        return resolved
    defining = {
        name: value
        for name, value in stored['config'].items()
        if name in configs.Config.__dataclass_fields__
        and name not in configs.CHANGEABLE
    }
    return dataclasses.replace(resolved, **defining)


def resume_precision(config):
    """Return `config` with the precision of the run in its logdir, if there is a run
    and the precision is automatic.
    """
    if config.precision != 'auto' or not exists(config.logdir):
        return config
    precision = _load(config.logdir)['config'].get('precision', 'auto')
    return dataclasses.replace(config, precision=precision)


def differences(config, logdir):
    """Return 'name: old -> new' for each setting that defines a run and differs from
    that of the run in `logdir`; an empty list if there is no run.
    """
    if not exists(logdir):
        return []
    old = _load(logdir)['config']
    return [
        f'{name}: {old.get(name)} -> {value}'
        for name, value in dataclasses.asdict(config).items()
        if name not in configs.CHANGEABLE and old.get(name) != value
    ]


def refuse_changes(config, logdir, flag='--logdir'):
    """Raise UserError if there are `differences` and the configuration does not allow
    them; `flag` is the one that names the folder.
    """
    changes = differences(config, logdir)
    if changes and not config.allow_config_change:
        raise UserError(
            f'{logdir} belongs to another configuration ({"; ".join(changes)}); '
            f'choose another {flag} or add --allow_config_change true'
        )


def read_versions(logdir):
    """Return the versions of the libraries with which a run was started."""
    return _load(logdir).get('versions', {})


def read_choice(logdir):
    """Return what `--jit auto` chose in a run; None if it has not chosen yet."""
    return _load(logdir).get('jit_choice') if exists(logdir) else None


def write_choice(choice, logdir):
    """Store what `--jit auto` chose, a dict that JSON can hold."""
    _store(_load(logdir) | dict(jit_choice=choice), logdir)


def as_table(config):
    """Return the settings as a table in Markdown, as TensorBoard shows them."""
    rows = [
        f'| {name} | {value} |' for name, value in dataclasses.asdict(config).items()
    ]
    return '\n'.join(['| flag | value |', '|---|---|', *rows])


def _kept_words(presets, flags):
    """Return presets and flags as the file keeps them: without flags that may change
    from one start of a run to the next.
    """
    flags = {
        name: flags[name] for name in sorted(flags) if name not in configs.CHANGEABLE
    }
    return dict(configs=presets, flags=flags)


def _version(library):
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _load(logdir):
    """Return all that the file holds; raise UserError if it cannot be read."""
    path = pathlib.Path(logdir) / NAME
    try:
        stored = json.loads(path.read_text())
        stored['config'].items()
        return stored
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path} is not a readable configuration ({error}); '
            'choose another --logdir or repair it'
        ) from None


def _store(stored, logdir):
    text = json.dumps(stored, indent=2)
    faults.reach('config')
    atomic.write(pathlib.Path(logdir) / NAME, f'{text}\n'.encode())
