"""An agent without its run: a folder with its weights, its settings and its origin.

`evaluate.py` takes such a folder as it takes a run's. It has a `config.json`, too, and
a checkpoint without what only training needs.
"""

import dataclasses
import json
import pathlib
import secrets
import shutil

import configs
from support.run import checkpoints, config_file
from support.system import atomic
from support.system.command_line import UserError

ORIGIN = 'origin.json'


def write(folder, agent, logdir, name, score):
    """Write an agent as a folder, which is whole or absent.

    Args:
      folder: `pathlib.Path` where nothing is yet.
      agent: `agent.Dreamer`.
      logdir: folder of its run.
      name: of its checkpoint there.
      score: what it has scored, a dict for JSON.

    Raises:
      OSError: it could not be written.
    """
    config = config_file.read(logdir)
    default = configs.Config()
    # Paths of this machine mean nothing elsewhere.
    paths = {
        field.name: getattr(default, field.name)
        for field in dataclasses.fields(config)
        if field.metadata['path']
    }
    origin = dict(
        task=config.task,
        seed=config.seed,
        step=agent.env_step,
        gradient_step=agent.gradient_step,
        score=score,
        versions=config_file.read_versions(logdir),
    )
    unfinished = folder.with_name(f'.{folder.name}.{secrets.token_hex(4)}.tmp')
    try:
        (unfinished / 'checkpoints').mkdir(parents=True)
        config_file.write(dataclasses.replace(config, **paths), unfinished)
        atomic.write(unfinished / ORIGIN, f'{json.dumps(origin, indent=2)}\n'.encode())
        checkpoints.write_weights(agent, unfinished / 'checkpoints' / name)
        atomic.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def refuse_to_train(logdir):
    """Raise UserError if a folder holds an exported agent, because training cannot
    resume from weights alone.
    """
    if (pathlib.Path(logdir) / ORIGIN).exists():
        raise UserError(
            f'{logdir} holds the weights of an agent, from which training cannot '
            f'resume; python evaluate.py --logdir {logdir} plays it; choose another '
            '--logdir'
        )
