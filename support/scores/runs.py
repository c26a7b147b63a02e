"""Which folders are runs, and their points.

Shapes: P points of a run.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np

from support.storage import metrics
from support.system.command_line import UserError

# What a run and plotting.py leave in it: many files, and no further runs.
FOLDERS_OF_A_RUN = {'checkpoints', 'dumps', 'episodes', 'plots', 'videos'}


@dataclasses.dataclass(frozen=True)
class Points:
    """One run's points: `steps` [P] environment steps, ascending, `values` [P] finite.

    `method` is the name of the folder. `algorithm` is what was run, as published
    results are named; it is empty if that is unknown.
    """

    task: str
    method: str
    seed: str
    folder: pathlib.Path
    steps: np.ndarray
    values: np.ndarray
    algorithm: str = ''


def name_run(folder, root):
    """Return (task, method, seed) of a run in `folder` below `root`, and its algorithm.

    Raises UserError if neither the path nor `config.json` names them.
    """
    config = {}
    if (folder / 'config.json').exists():
        try:
            config = dict(json.loads((folder / 'config.json').read_text())['config'])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError('its config.json is damaged') from None
    parts = folder.relative_to(root).parts
    algorithm = str(config.get('method', 'dreamer'))
    representation = config.get('representation', 'reconstruction')
    if representation != 'reconstruction':
        algorithm = f'{algorithm}_{representation}'
    if len(parts) == 3:
        name = str(config.get('task', parts[0])), parts[1], parts[2]
        return name, algorithm if 'method' in config else parts[1]
    if 'task' not in config or 'seed' not in config:
        raise UserError(
            'it is not at task/method/seed and has no config.json with task and seed'
        )
    return (str(config['task']), algorithm, str(config['seed'])), algorithm


def run_folders(root, notes, seen):
    """Yield `root` and the folders below it that have a `metrics.jsonl`. There may be
    runs below a run.

    Symbolic links are followed last. No folder is visited twice.

    Args:
      root: `pathlib.Path`.
      notes: list, which gets a line for every run without that file.
      seen: set of the folders that were visited, which grows.
    """
    tops = [root]
    for top in tops:
        for name, folders, files in os.walk(top):
            folder = pathlib.Path(name)
            if folder.resolve() in seen:
                folders.clear()
                continue
            seen.add(folder.resolve())
            folders.sort()
            if metrics.NAME in files:
                folders[:] = [x for x in folders if x not in FOLDERS_OF_A_RUN]
                yield folder
            elif 'config.json' in files or not (folders or files):
                notes.append(f'left out {folder}: it has no metrics.jsonl')
            tops += [path for x in folders if (path := folder / x).is_symlink()]


def find_runs(roots, key, tasks=None):
    """Return all runs below the folders `roots` that have a point of `key`, sorted by
    task, method and seed, and notes: a line for everything that was left out, skipped
    or unexpected. `tasks`, if given, leaves out all other tasks.
    """
    runs, notes, seen = {}, [], set()
    for root in roots:
        # One root may lie in another.
        for folder in run_folders(root, notes, seen):
            try:
                name, algorithm = name_run(folder, root)
                if tasks and name[0] not in tasks:
                    continue
                if name in runs:
                    raise UserError(
                        f'same task, method and seed as {runs[name].folder}'
                    )
                runs[name] = load_run(folder, name, key, notes, algorithm)
            except (UserError, OSError) as error:
                notes.append(f'left out {folder}: {error}')
                continue
            if len(folder.relative_to(root).parts) == 3 and (
                folder.parent.parent.name != name[0]
            ):
                notes.append(f'{folder} counts as {name[0]}, by its config.json')
    return [runs[name] for name in sorted(runs)], notes


def load_run(folder, name, key, notes, algorithm=''):
    """Return the `Points` of the run `name` (task, method, seed); note what is skipped.

    Raises UserError if it has no point of `key`.
    """
    steps, values, counts = metrics.read_points(folder, key)
    if counts['damaged']:
        notes.append(
            f'skipped {counts["damaged"]} damaged or unfinished line(s) in {folder}'
        )
    if counts['nonfinite']:
        notes.append(
            f'skipped {counts["nonfinite"]} value(s) of {key} that are not '
            f'finite numbers in {folder}'
        )
    if not len(steps):
        raise UserError(f'it has no {key}')
    order = np.argsort(steps, kind='stable')
    return Points(*name, folder, steps[order], values[order], algorithm)
