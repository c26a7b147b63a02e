"""What the machines of a run tell one another: whole numbers, gathered by rank.

Machine 0 says how many updates a phase of training has. Before each update
all machines agree to continue. After the phase they check that their weights are equal
to the last bit.
"""

import concurrent.futures
import contextlib
import json
import sys
import zlib

import tensorflow as tf

import configs
from support.run import saving
from support.system.command_line import UserError

SHARE = '--logdir must be one folder that all machines share'


class MachineLost(RuntimeError):
    """Another machine has gone; the message is one line for the user."""


class WeightsDiffer(saving.NotToBeSaved):
    """The machines do not learn the same; the message is one line for the user."""


class Team:
    """The machines of a run, and what they tell one another.

    All methods raise MachineLost if another machine has gone. Those that compare
    weights raise WeightsDiffer if they differ.

    Args:
      config: `configs.Config`, the same on all machines.
      strategy: of `replicas.make_strategy`.
      addresses: `machines.Addresses`.

    Attributes:
      rank: of this machine.
      strategy: as given.
      batch_size: this machine's part of a batch.
      stopped: whether any machine was asked to stop.
    """

    def __init__(self, config, strategy, addresses):
        self.rank = addresses.rank
        self.strategy = strategy
        self.stopped = False
        self._hosts = addresses.hosts
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
            # In a thread, because Python handles no signal while TensorFlow computes.
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
        """Raise MachineLost where TensorFlow finds that another machine has gone."""
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

    # Before the first phase.

    def check_settings(self, action_size=0, discrete=False, state_size=0):
        """Check that all machines have the same settings, before any agent is made.

        Args:
          action_size, discrete, state_size: of the environments, which machine 0
            alone has.

        Returns:
          machine 0's action size, whether its actions are discrete, and its state
          size.

        Raises:
          UserError: the settings differ.
        """
        mine = zlib.crc32(json.dumps(self._settings, sort_keys=True).encode())
        rows = self.gather(mine, action_size, discrete, state_size)
        for rank, (theirs, *_) in enumerate(rows):
            if theirs != rows[0][0]:
                raise UserError(
                    f'machine {rank} has other settings than machine 0; give all the '
                    'same flags and the same precision'
                )
        _, action_size, discrete, state_size = rows[0].tolist()
        return action_size, bool(discrete), state_size

    def load_same_checkpoint(self, agent, saved):
        """Load the checkpoint that machine 0 has restored.

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
                    'more; the same commands continue from the last checkpoint'
                )

    # Phases of training.

    def announce(self, updates, newest, noise):
        """Machine 0: begin a phase.

        Args:
          updates: how many it has, at least 1.
          newest: name of the newest episode.
          noise: state of the agent's generator, three whole numbers.
        """
        self.gather(updates, checksum(newest), *noise)

    def await_phase(self):
        """Other machines: wait for the next phase.

        Returns:
          what machine 0 announces: how many updates, or 0 at the end of the run; the
          `checksum` of its newest episode's name; the state of its agent's generator.
        """
        updates, newest, *noise = self.gather(0, 0, 0, 0, 0)[0]
        return int(updates), newest, noise

    def batches(self, agent, stored, updates, stop):
        """Yield this machine's part of each batch of a phase, which ends early when
        `stop()` is true anywhere.

        Args:
          agent: `agent.Dreamer`.
          stored: `replay.Replay`.
          updates: how many the phase has.
          stop: whether this machine was asked to stop.
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
        """Wait until all know of the end. Some may have gone already."""
        with contextlib.suppress(MachineLost):
            self.gather(0)


def checksum(text):
    """Return a whole number for a text."""
    return zlib.crc32(text.encode())
