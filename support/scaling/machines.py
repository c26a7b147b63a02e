"""One run on several machines: machine 0 runs it, the others learn with it.

Every machine is started with the same command and a `TF_CONFIG`. Machine 0 collects,
evaluates, logs and writes, as on a single machine. The others draw their part of each
batch from the shared replay folder, and write nothing. Machine 0 says how many updates
a phase of training has; before each of them all agree to go on, and after the phase
that their weights are equal to the last bit.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
import threading
import time
import zlib

import numpy as np
import tensorflow as tf

import configs
import tools
from agent import Dreamer
from support.learning import replicas
from support.run import checkpoints, saving, startup
from support.storage import replay
from support.system import faults, signals

EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
SHARE = '--logdir must be one folder that all machines share'


class MachineLost(RuntimeError):
    """Another machine has gone; the message is one line for the user."""


class WeightsDiffer(saving.NotToBeSaved):
    """The machines do not learn the same; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines' addresses HOST:PORT by rank, and the rank of this one."""

    hosts: tuple
    rank: int


def read_cluster(text):
    """The cluster that `TF_CONFIG` describes; None without one, or with one machine.

    A chief, where there is one, is machine 0.

    Raises:
      ConfigError: it is malformed.
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
        raise configs.ConfigError(
            f'TF_CONFIG {problem}; unset it for one machine alone, or set it like '
            f'{EXAMPLE}'
        )
    rank = index + (len(hosts) - len(jobs['worker']) if kind == 'worker' else 0)
    return Cluster(tuple(hosts), rank) if len(hosts) > 1 else None


def _problem(jobs, hosts, kind, index):
    """What is wrong with a cluster, in words; None if nothing is."""
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


class Team:
    """The machines of a run, and what they tell one another.

    Args:
      config: `configs.Config`, the same for all.
      strategy: of `replicas.make_strategy`.
      cluster: of `read_cluster`.

    Attributes:
      rank: of this machine.
      strategy: as given.
      batch_size: this machine's part of a batch.
      stopped: whether any machine was asked to stop.

    All methods raise MachineLost where another machine has gone, and those that compare
    weights raise WeightsDiffer if they differ.
    """

    def __init__(self, config, strategy, cluster):
        self.rank = cluster.rank
        self.strategy = strategy
        self.stopped = False
        self._hosts = cluster.hosts
        self.batch_size = config.batch_size // len(self._hosts)
        self._settings = {
            name: value
            for name, value in vars(config).items()
            if name not in configs.CHANGEABLE - {'precision'}
        }
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._gather_rows = tf.function(self._gather_row, autograph=False)

    def gather(self, *numbers):
        """Tell the others some whole numbers, and wait for theirs.

        Returns:
          [machines, numbers] int64, by rank.
        """
        with self.connected():
            # In a thread, because signals are not heard inside of TensorFlow.
            rows = self._pool.submit(
                self._gather_rows, tf.constant([numbers], tf.int64)
            ).result()
        return rows.numpy()[:: len(rows) // len(self._hosts)]

    def _gather_row(self, row):
        def gather(row):
            # A copy has a device, which an argument has not.
            return tf.distribute.get_replica_context().all_gather(tf.identity(row), 0)

        return self.strategy.experimental_local_results(
            self.strategy.run(gather, (row,))
        )[0]

    @contextlib.contextmanager
    def connected(self):
        """TensorFlow's errors from what is done together as `MachineLost`."""
        try:
            yield
        except tf.errors.OpError as error:
            if 'ollective' not in str(error):
                raise
            others = [
                f'{rank} ({host})'
                for rank, host in enumerate(self._hosts)
                if rank != self.rank
            ]
            raise MachineLost(
                f'machine {" or ".join(others)} has ended or cannot be reached'
            ) from None

    def meet(self, action_size=0, discrete=False):
        """Check that all were started alike, before any agent is made.

        Returns:
          machine 0's action size, and whether its actions are discrete.
        """
        mine = zlib.crc32(json.dumps(self._settings, sort_keys=True).encode())
        rows = self.gather(mine, action_size, discrete)
        for rank, (theirs, *_) in enumerate(rows):
            if theirs != rows[0][0]:
                raise configs.ConfigError(
                    f'machine {rank} has other settings than machine 0; give all the '
                    'same flags and the same precision'
                )
        return int(rows[0][1]), bool(rows[0][2])

    def start_alike(self, agent, saved):
        """Load what machine 0 has restored.

        Args:
          agent: `agent.Dreamer`.
          saved: `checkpoints.Checkpoints`; machine 0 has called its `restore`.
        """
        number = int(self.gather(saved.restored)[0][0])
        if self.rank and number:
            if number not in saved.numbers():
                raise WeightsDiffer(
                    f"machine 0's checkpoint {number} is not here; {SHARE}"
                )
            saved.load(number)
        self.check_weights(agent)

    def check_weights(self, agent):
        """Raise WeightsDiffer unless all have the same weights, to the last bit."""
        sums = self.gather(agent.fingerprint())[:, 0]
        for rank, fingerprint in enumerate(sums):
            if fingerprint != sums[0]:
                raise WeightsDiffer(
                    f"machine {rank}'s weights are not those of machine 0 any "
                    'more; the same commands go on from the last checkpoint'
                )

    def lead(self, agent, stored, updates, stop):
        """Machine 0: begin a phase of so many updates; see `batches`."""
        if updates:
            self.gather(updates, checksum(stored.newest), *agent.rng.state.numpy())
        return self.batches(agent, stored, updates, stop)

    def batches(self, agent, stored, updates, stop):
        """Yield this machine's part of each batch of a phase, which ends early when
        `stop()` is true anywhere.
        """
        stream = stored.stream(self.batch_size, updates, agent.on_device)
        with contextlib.closing(stream):
            for _ in range(updates):
                asked = self.gather(stop())[:, 0]
                if asked.any():
                    self.stopped = True
                    if not asked[self.rank]:
                        print(
                            f'stopping: machine {asked.argmax()} was asked to',
                            file=sys.stderr,
                        )
                    break
                yield next(stream)
        if updates:
            self.check_weights(agent)

    def end(self):
        """Machine 0: the run has ended."""
        self.gather(0, 0, 0, 0, 0)
        self.leave()

    def leave(self):
        """Wait until all have heard of the end; some may be gone already."""
        with contextlib.suppress(MachineLost):
            self.gather(0)


def checksum(text):
    """A number for a text."""
    return zlib.crc32(text.encode())


class Leading:
    """What a run does besides where it leads a team: a `dreamer.Run` that derives from
    this class first.

    Args:
      team: `Team`.
      further arguments: of the run.
    """

    def __init__(self, team, *args):
        self.team = team
        with team.connected():
            super().__init__(*args)

    def make_agent(self, strategy):
        """The agent, once all are known to have been started alike."""
        self.team.meet(self.action_size, self.config.action_dist == 'onehot')
        return super().make_agent(strategy)

    def restore(self):
        """Go on from the newest checkpoint, all from the same."""
        super().restore()
        self.team.start_alike(self.agent, self.checkpoints)

    def loop(self):
        """Algorithm 1, and tell the others of its end."""
        with self.team.connected():
            super().loop()
            self.team.end()

    def batches(self, updates):
        """Part of this machine of each batch; fewer where any machine shall stop."""
        yield from self.team.lead(self.agent, self.replay, updates, lambda: self.stop)
        self.stop = self.stop or self.team.stopped


def connect(config):
    """What the networks are spread over, and the team of `TF_CONFIG`, once all are
    there; the first is None for one device, the second for one machine.

    Raises:
      ValueError, RuntimeError: with one line; see `replicas.make_strategy`.
    """
    cluster = read_cluster(os.environ.get('TF_CONFIG'))
    strategy = replicas.make_strategy(config, cluster=cluster)
    return strategy, Team(config, strategy, cluster) if cluster else None


def serve(argv, config, team):
    """`follow`, for the command line; returns the exit code."""
    try:
        follow(argv, config, team)
    except configs.ConfigError as error:
        configs.fail(error)
    except (
        MachineLost,
        WeightsDiffer,
        MemoryError,
        OSError,
        tf.errors.OpError,
    ) as error:
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
      MachineLost, WeightsDiffer, ConfigError, OSError: with one line.
    """
    action_size, discrete = team.meet()
    config = configs.settle(argv, config, discrete)
    config = dataclasses.replace(
        config, action_dist='onehot' if discrete else 'tanh_normal'
    )
    logdir = pathlib.Path(config.logdir)
    with team.connected():
        agent = Dreamer(config, action_size, team.strategy)
        team.start_alike(agent, checkpoints.Checkpoints(logdir / 'checkpoints', agent))
    stored = replay.Replay(
        logdir / 'episodes',
        length=config.batch_length,
        balance=config.dataset_balance,
        memory=int(config.replay_memory) or None,
    )
    stopping = threading.Event()
    signals.heed(stopping.set, 'machine 0 saves')
    while True:
        updates, newest, *noise = team.gather(0, 0, 0, 0, 0)[0]
        if not updates:
            break
        agent.rng.state.assign(noise)
        wait_for(stored, newest, logdir)
        # By the update: a run that was resumed draws what it would have drawn.
        stored.set_state(
            np.random.default_rng(
                tools.spawn_seed(config.seed, 'replay', team.rank, agent.gradient_step)
            ).bit_generator.state
        )
        with team.connected():
            for batch in team.batches(agent, stored, int(updates), stopping.is_set):
                agent.train(batch)
                faults.reach('update')
    team.leave()


def wait_for(stored, newest, logdir, seconds=60):
    """Take up new episodes until the newest is machine 0's, by its checksum: shared
    folders may show them late.
    """
    for _ in range(seconds):
        stored.refresh()
        if checksum(stored.newest) == newest:
            return
        time.sleep(1)
    raise WeightsDiffer(f"machine 0's newest episode is not in {logdir}; {SHARE}")
