"""Step environments together and cut what happens into episodes.

Shapes: E environments of a group, A action, T rows of an episode.
"""

import sys

import numpy as np

from support.acting.workers import WorkerError


def episode_seed(seed, env, index):
    """Return the seed of an environment's episode of this index.

    It is below 2^31, because some environments take signed integers of 32 bits.
    """
    return int(np.random.SeedSequence((seed, env, index)).generate_state(1)[0] >> 1)


class Collector:
    """Step environments together and cut what happens into episodes.

    With two groups, one computes its next step while the policy chooses actions for the
    other. The same group also computes while the agent learns: its actions are from
    before. An environment that fails is restarted. Its unfinished episode is dropped.

    Args:
      envs: workers, see workers.py.
      seed: of the run's episodes; see `episode_seed`.
      groups: number of groups, which take turns.

    Attributes:
      groups: the environments' indices, a list for each group.
      started: index of each environment's next episode. A run that is resumed sets it.
      dropped: how many episodes were dropped.
    """

    FAILURES = 5  # As many in a row, without a finished episode, end the run.

    def __init__(self, envs, seed, groups=1):
        self._envs = envs
        self._seed = seed
        self._episodes = [None] * len(envs)
        self._sent = [None] * len(envs)  # Actions without a result so far.
        self._steps = [0] * len(envs)
        self._failures = [0] * len(envs)
        self._failure = None
        self._turn = 0
        self.groups = [
            part.tolist() for part in np.array_split(np.arange(len(envs)), groups)
        ]
        self.started = [0] * len(envs)
        self.dropped = 0

    @property
    def unfinished(self):
        """Simulator steps so far of the episodes that have at least one step and no
        end, by (environment, episode index).
        """
        return {
            (i, self.started[i] - 1): self._steps[i]
            for i, rows in enumerate(self._episodes)
            if len(rows or ()) > 1
        }

    @property
    def to_start(self):
        """What `started` would be without the episodes that have no step yet.

        It can be longer than `envs`, in a run that had more of them before.
        """
        indices = list(self.started)
        for i, rows in enumerate(self._episodes):
            indices[i] -= rows is not None and len(rows) < 2
        return indices

    def step(self, policy):
        """Take an agent step in every environment of a group.

        Args:
          policy: takes a dict of observations [E, ...] and is_first [E], and returns
            actions [E, A]. With several groups it can be a list with a policy for each.

        Returns:
          steps: simulator steps that were taken, of all environments of the group.
          ended: the episodes that ended, a dict each: arrays of T = agent steps + 1
            rows, and `origin` [3]: environment, episode index, simulator steps.

        Raises:
          WorkerError: an environment has failed `FAILURES` times in a row. The episodes
            that the others had finished by then were returned before.
        """
        if self._failure:
            raise self._failure
        self._start(
            self.groups[self._turn], policy if callable(policy) else policy[self._turn]
        )
        self._turn = (self._turn + 1) % len(self.groups)
        return self._finish(self.groups[self._turn])

    def _start(self, group, policy):
        """Start the next step of a group."""
        while idle := [i for i in group if self._episodes[i] is None]:
            self._reset(idle)
        rows = [self._episodes[i] for i in group]
        observation = {
            key: np.stack([episode[-1][key] for episode in rows])
            for key in self._envs[group[0]].observation_space
        }
        is_first = np.array([len(episode) == 1 for episode in rows])
        actions = np.asarray(policy(observation, is_first), np.float32)
        for i, action in zip(group, actions, strict=True):
            self._guard(i, self._send, i, action)

    def _send(self, i, action):
        self._envs[i].start_step(action)
        self._sent[i] = action

    def _finish(self, group):
        """Wait for the results of the step that a group has started."""
        before, finished, ended = sum(self._steps), [], []
        for i in group:
            try:
                if self._sent[i] is not None and self._guard(i, self._observe, i):
                    finished.append(i)
            except WorkerError as error:
                self._failure = error  # Raised after the others' episodes are returned.
        steps = sum(self._steps) - before
        for i in finished:
            rows, self._episodes[i] = self._episodes[i], None
            origin = np.array([i, self.started[i] - 1, self._steps[i]])
            ended.append(
                dict(
                    {key: np.stack([row[key] for row in rows]) for key in rows[0]},
                    origin=origin,
                )
            )
            self._failures[i] = 0
        return steps, ended

    def _observe(self, i):
        """Append the step's result; return whether the episode has ended."""
        action, self._sent[i] = self._sent[i], None
        observation, reward, terminated, truncated, info = self._envs[i].result()
        self._steps[i] += info['simulator_steps']
        _check(observation)
        try:
            with np.errstate(over='ignore'):  # Too large numbers become infinite.
                number = np.float32(np.asarray(reward).item())
        except (TypeError, ValueError, OverflowError):
            number = np.float32(np.nan)
        if not np.isfinite(number):
            raise WorkerError(
                f'The environment gave the reward {reward}, no finite float32 number'
            )
        self._episodes[i].append(
            dict(
                observation,
                action=action,
                reward=number,
                discount=np.float32(not terminated),
            )
        )
        return terminated or truncated

    def _reset(self, indices):
        for i in indices:
            seed = episode_seed(self._seed, i, self.started[i])
            self.started[i] += 1
            self._steps[i] = 0
            self._episodes[i] = []
            self._guard(i, self._envs[i].start_reset, seed)
        for i in indices:
            if self._episodes[i] is not None:
                self._guard(i, self._begin, i)

    def _begin(self, i):
        observation, _ = self._envs[i].result()
        _check(observation)
        self._episodes[i].append(
            dict(
                observation,
                action=np.zeros(self._envs[i].action_space.shape, np.float32),
                reward=np.float32(0),
                discount=np.float32(1),
            )
        )

    def _guard(self, i, call, *args):
        """Call and return the result. If the environment fails, drop its episode and
        restart it.
        """
        try:
            return call(*args)
        except WorkerError as error:
            self.dropped += bool(self._episodes[i])
            self._episodes[i] = None
            self._failures[i] += 1
            count = self._failures[i]
            if count >= self.FAILURES:
                raise WorkerError(
                    f'Environment {i} failed {count} times in a row; the last time:\n'
                    f'{error}'
                ) from None
            print(
                f'dreamer: warning: environment {i} failed and is restarted ({count} '
                f'in a row): {error}',
                file=sys.stderr,
                flush=True,
            )
            # A restart that fails is the next failure.
            self._guard(i, self._restart, i)

    def _restart(self, i):
        try:
            self._envs[i].restart()
        except Exception as error:
            raise WorkerError(f'It could not be restarted: {error}') from error


def _check(observation):
    """Raise WorkerError if a state vector has numbers that are not finite."""
    state = observation.get('state', np.zeros(0))
    if not np.isfinite(state).all():
        raise WorkerError(
            f'The environment gave a state with {state[~np.isfinite(state)][0]}, no '
            'finite float32 number'
        )
