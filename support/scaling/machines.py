"""One run on several machines: machine 0 runs it, the others learn with it.

Every machine is started with the same command and a `TF_CONFIG`. Machine 0 collects,
evaluates, logs and writes, as on a single machine. The others draw their part of each
batch from the shared replay folder, and write nothing.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
import threading
import time

import numpy as np
import tensorflow as tf

import tools
import wrappers
from agent import Dreamer
from support.acting import workers
from support.learning import replicas
from support.run import checkpoints, config_file, saving, startup
from support.scaling.team import SHARE, MachineLost, Team, WeightsDiffer, checksum
from support.system import command_line, faults, signals
from support.system.command_line import UserError

# What ends a run with one line for the user. Other errors are mistakes in the program.
ONE_LINE_ERRORS = (
    workers.WorkerError,
    MachineLost,
    WeightsDiffer,
    FloatingPointError,
    MemoryError,
    OSError,
    tf.errors.OpError,
)
EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Addresses:
    """The machines' addresses HOST:PORT by rank, and the rank of this one."""

    hosts: tuple
    rank: int


def read_addresses(text):
    """Return the `Addresses` in a `TF_CONFIG`; None if it is empty or has one machine.

    If there is a chief, it is machine 0.

    Raises:
      UserError: `TF_CONFIG` is malformed.
    """
    if not text:
        return None
    try:
        stored = json.loads(text)
        jobs, task = stored['cluster'], stored['task']
        hosts = [*jobs.get('chief', []), *jobs['worker']]
        kind, index = task['type'], task['index']
        problem = _problem(jobs, hosts, kind, index)
    except json.JSONDecodeError as error:
        problem = f'is not JSON ({error})'
    except KeyError as error:
        problem = f'has no {error}'
    except (TypeError, AttributeError):
        problem = 'is not made of the right parts'
    if problem:
        raise UserError(
            f'TF_CONFIG {problem}; unset it for one machine alone, or set it like '
            f'{EXAMPLE}'
        )
    rank = index + (len(hosts) - len(jobs['worker']) if kind == 'worker' else 0)
    return Addresses(tuple(hosts), rank) if len(hosts) > 1 else None


def _problem(jobs, hosts, kind, index):
    """Return what is wrong with a `TF_CONFIG`, in words; None if nothing is."""
    if not set(jobs) <= {'chief', 'worker'}:
        return f'has the jobs {", ".join(jobs)}; possible: worker, chief'
    if len(jobs.get('chief', [])) > 1:
        return 'has more than one chief'
    if kind not in jobs:
        return f'has a task of type {kind!r}; its jobs: {", ".join(jobs)}'
    if not jobs[kind]:
        return f'has no address of a {kind}'
    if type(index) is not int or not 0 <= index < len(jobs[kind]):
        return (
            f'has the index {index!r} and its {kind}s count from 0 to '
            f'{len(jobs[kind]) - 1}'
        )
    for host in hosts:
        match = isinstance(host, str) and re.fullmatch(r'\S+:(\d{1,5})', host)
        if not match or not 0 < int(match[1]) < 2**16:
            return f'has the address {host!r}, which is not HOST:PORT'
        if hosts.count(host) > 1:
            return f'names {host} twice'
    return None


def connect(config):
    """Wait for the other machines of `TF_CONFIG`.

    Returns:
      strategy: what the networks are spread over; None for one device.
      team: `Team`; None for one machine.

    Raises:
      ValueError, RuntimeError: with one line; see `replicas.make_strategy`.
    """
    addresses = read_addresses(os.environ.get('TF_CONFIG'))
    strategy = replicas.make_strategy(config, addresses=addresses)
    return strategy, Team(config, strategy, addresses) if addresses else None


class Leading:
    """What machine 0 does besides: the first base class of a `dreamer.Run`.

    Args:
      team: `Team`.
      config, envs, args: of `dreamer.Run`.
    """

    def __init__(self, team, config, envs, *args):
        self.team = team
        actions = envs[0].action_space
        discrete = isinstance(actions, wrappers.OneHotSpace)
        with team.connected():
            team.check_settings(*actions.shape, discrete, workers.state_size(envs[0]))
            super().__init__(config, envs, *args)

    def restore(self):
        """Go on from the newest checkpoint, all machines from the same."""
        super().restore()
        self.team.load_same_checkpoint(self.agent, self.checkpoints)

    def loop(self):
        """Run Algorithm 1, and tell the others of its end."""
        with self.team.connected():
            super().loop()
            self.team.end()

    def batches(self, updates):
        """Yield this machine's part of each batch; fewer if any machine shall stop."""
        if updates:
            noise = self.agent.rng.state.numpy()
            self.team.announce(updates, self.replay.newest, noise)
        yield from self.team.batches(
            self.agent, self.replay, updates, lambda: self.stop
        )
        self.stop = self.stop or self.team.stopped


def serve(argv, config, team):
    """`follow`, for the command line; return the exit code."""
    try:
        follow(argv, config, team)
    except UserError as error:
        command_line.fail(error)
    except ONE_LINE_ERRORS as error:
        print(f'dreamer: stopped: {startup.explain(error)}', file=sys.stderr)
        return 1
    print(f'machine {team.rank}: machine 0 has ended the run')
    return 0


def follow(argv, config, team):
    """Learn with machine 0 until it ends the run.

    Args:
      argv: words of the command line.
      config: `configs.Config` of these, with its precision resolved.
      team: `Team`.

    Raises:
      MachineLost, WeightsDiffer, UserError, OSError: with one line.
    """
    config, agent, stored = join(argv, config, team)
    stopping = threading.Event()
    signals.heed(stopping.set, 'machine 0 saves')
    while True:
        updates, newest, noise = team.await_phase()
        if not updates:
            break
        agent.rng.state.assign(noise)
        wait_for(stored, newest, config.logdir)
        # Seeded by the update, so that a resumed run draws what it would have drawn.
        seed = tools.spawn_seed(config.seed, 'replay', team.rank, agent.gradient_step)
        stored.set_state(np.random.default_rng(seed).bit_generator.state)
        with team.connected():
            for batch in team.batches(agent, stored, updates, stopping.is_set):
                agent.train(batch)
                faults.reach('update')
    team.leave()


def join(argv, config, team):
    """Prepare to learn with machine 0; see `follow`.

    Returns:
      the settings, the agent with machine 0's weights, and the replay that machine 0
      fills.
    """
    action_size, discrete, state_size = team.check_settings()
    config = config_file.settle(argv, config, discrete)
    config = dataclasses.replace(
        config, action_dist='onehot' if discrete else 'tanh_normal'
    )
    with team.connected():
        agent = Dreamer(config, action_size, team.strategy, state_size)
        folder = pathlib.Path(config.logdir, 'checkpoints')
        saved = checkpoints.Checkpoints(folder, agent)
        team.load_same_checkpoint(agent, saved)
    return config, agent, saving.open_replay(config, action_size, state_size)


def wait_for(stored, newest, logdir, seconds=60):
    """Wait until the newest episode is machine 0's: shared folders may show it late.

    Args:
      stored: `replay.Replay`.
      newest: `checksum` of the name of machine 0's newest episode.
      logdir: for the message.
      seconds: how long to wait.

    Raises:
      WeightsDiffer: the episode has not come.
    """
    for _ in range(seconds):
        stored.refresh()
        if checksum(stored.newest) == newest:
            return
        time.sleep(1)
    raise WeightsDiffer(f"machine 0's newest episode is not in {logdir}; {SHARE}")
