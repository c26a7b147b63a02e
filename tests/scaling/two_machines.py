"""One of two machines that make the same updates as one; run by test_machines.py.

    TF_CONFIG=... python tests/scaling/two_machines.py FOLDER

Prints a JSON object with what is to be asserted on.
"""

import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'learning')]

from support.run import startup  # noqa: E402, F401

# isort: split
import numpy as np  # noqa: E402
import two_replicas  # noqa: E402

import configs  # noqa: E402
from agent import Dreamer  # noqa: E402
from support.learning import replicas  # noqa: E402
from support.scaling import machines  # noqa: E402
from support.scaling.team import Team, WeightsDiffer, checksum  # noqa: E402
from support.storage import replay  # noqa: E402
from support.storage.episodes import KEYS  # noqa: E402


def numbers(agent):
    """Values of weights, Adam's state, loss scales and counters, by name."""
    return {key: np.array(x) for key, x in two_replicas.variables(agent).items()}


def compare(config, strategy, rank):
    """Two updates by both machines with half of the rows each, and by this one alone
    with all of them, from the same noise.
    """
    data = two_replicas.make_data()
    rows = two_replicas.BATCH // 2
    part = {key: x[rank * rows : (rank + 1) * rows] for key, x in data.items()}
    agents = [
        Dreamer(config, two_replicas.ACTION),
        Dreamer(config, two_replicas.ACTION, strategy),
    ]
    before, metrics = numbers(agents[0]), []
    start = two_replicas.apart(*map(numbers, agents))
    for agent, batch in zip(agents, (data, part), strict=True):
        for _ in range(2):
            values = agent.update(
                agent.on_device({key: np.array(x) for key, x in batch.items()}),
                agent.noise(two_replicas.BATCH, two_replicas.LENGTH),
            )
        metrics.append({key: float(value) for key, value in values.items()})
    one, two = map(numbers, agents)
    return agents[1], dict(
        start=start,
        metrics=metrics,
        moved=two_replicas.apart(one, before, 'weight'),
        **{
            kind: two_replicas.apart(one, two, kind)
            for kind in ('weight', 'adam', 'own')
        },
    )


def train(team, agent, folder):
    """A phase of five updates, which machine 1 is asked to end after two. Returns how
    many batches there were, of how many rows, and how many rows both drew.
    """
    if not team.rank:
        data = two_replicas.make_data()
        writer = replay.Replay(folder, length=two_replicas.LENGTH)
        for i in range(2):
            path = writer.add({key: data[key][i] for key in ('image', *KEYS)})
        writer.flush()
    episodes = replay.Replay(folder, length=two_replicas.LENGTH, seed=team.rank)
    newest = team.gather(checksum('' if team.rank else path.name))[0][0]
    machines.wait_for(episodes, newest, folder)
    batches = []
    for batch in team.batches(
        agent, episodes, 5, lambda: team.rank == 1 and len(batches) == 2
    ):
        batches.append(batch)
    (reward,) = team.strategy.experimental_local_results(batches[0]['reward'])
    return dict(batches=len(batches), rows=len(reward), stopped=team.stopped)


def main():
    addresses = machines.read_addresses(os.environ['TF_CONFIG'])
    config = configs.parse(two_replicas.FLAGS + ['--free_nats', '0'])
    strategy = replicas.make_strategy(config, addresses=addresses)
    agent, result = compare(config, strategy, addresses.rank)
    team = Team(config, strategy, addresses)
    result['gathered'] = team.gather(addresses.rank, 7).tolist()
    result['phase'] = train(team, agent, pathlib.Path(sys.argv[1]))
    if addresses.rank:
        weight = agent.world.weights[-1]
        weight.assign(np.nextafter(np.array(weight), np.float32(np.inf)))
    try:
        team.check_weights(agent)
    except WeightsDiffer as error:
        result['apart'] = str(error)
    print(json.dumps(result))
    team.leave()


if __name__ == '__main__':
    main()
