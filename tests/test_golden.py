"""One update equals the authors' 2020 release, weight by weight (`golden/README.md`).

Shapes: B batch, L length, H horizon, A action, N = B*L.
"""

import math
import pathlib
import zlib

import numpy as np
import pytest
import tensorflow as tf

import configs
from agent import Dreamer

GOLDEN = pathlib.Path(__file__).parent / 'golden'
BATCH, LENGTH, ACTION, HORIZON, STOCH = 4, 6, 6, 15, 30
# So small that a step of Adam does not move a float32 weight.
STILL = [f'--{network}_lr=1e-30' for network in ('model', 'actor', 'value')]


def draw(name, shape, scale=1):
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return random.normal(0, scale, shape).astype('float32')


def named_weights(agent, names):
    """Our weight of each of the golden `names`, in their order.

    Within a part the release's order is that of our layers, from input to output.
    """
    parts = [*agent.world.parts, *agent.behavior.parts.values()]
    ours = {part.name: list(part.trainable_weights) for part in parts}
    weights = {name: ours[name.split('/')[0]].pop(0) for name in names}
    assert not any(ours.values()), 'weights that the release does not have'
    return weights


def network_of(name):
    """Whose loss a golden weight is trained by."""
    part = name.split('/')[0]
    return part if part in ('actor', 'value') else 'model'


def make_agent(names, *flags):
    config = configs.parse(['--precision', '32', *STILL, *flags])
    agent = Dreamer(config, ACTION)
    for name, weight in named_weights(agent, names).items():
        is_vector = len(weight.shape) == 1 or name == 'rssm/gru/2'
        scale = 0.1 if is_vector else 1 / math.sqrt(math.prod(weight.shape[:-1]))
        weight.assign(draw(name, weight.shape, scale))
    return agent


def make_batch(ends):
    """A batch whose rows `ends` end an episode with their last step."""
    action = np.tanh(draw('action', (BATCH, LENGTH, ACTION)))
    action[:, 0] = 0
    discount = np.ones((BATCH, LENGTH), np.float32)
    discount[ends, -1] = 0
    is_first = np.zeros((BATCH, LENGTH), bool)
    is_first[:, 0] = True
    pixels = np.random.RandomState(1).randint(0, 256, (BATCH, LENGTH, 64, 64, 3))
    return {
        key: tf.constant(value)
        for key, value in dict(
            image=pixels.astype(np.uint8),
            action=action,
            reward=draw('reward', (BATCH, LENGTH)),
            discount=discount,
            is_first=is_first,
        ).items()
    }


def make_noise(starts):
    """Noise of an update that imagines from the first `starts` steps of each row; none
    is added to what starts from the others.
    """
    noise = dict(post=draw('noise/post', (BATCH, LENGTH, STOCH)))
    for name, size in (('latent', STOCH), ('action', ACTION)):
        drawn = draw(f'noise/{name}', (HORIZON, BATCH * starts, size))
        drawn = drawn.reshape(HORIZON, BATCH, starts, size)
        rest = [(0, 0), (0, 0), (0, LENGTH - starts), (0, 0)]
        noise[name] = np.pad(drawn, rest).reshape(HORIZON, BATCH * LENGTH, size)
    return {key: tf.constant(value) for key, value in noise.items()}


def losses_and_gradients(agent, weights, batch, starts):
    """Losses by network and the gradients of `weights`, each of its network's loss.

    Where the release imagines from the first `starts` steps of each row and takes the
    mean over those, ours imagines from all steps and weighs those that do not count by
    0: the mean over all is smaller by the share of the starts that count.
    """
    noise = make_noise(starts)
    counts = tf.reshape(
        tf.cast(tf.range(BATCH * LENGTH) % LENGTH < starts, 'float32'), -1
    )
    with tf.GradientTape(persistent=True) as tape:
        model_loss, post, _ = agent.world.loss(batch, noise['post'])
        start = {key: tf.reshape(x, (-1, x.shape[-1])) for key, x in post.items()}
        losses, _ = agent.behavior.losses(
            agent.world, start, counts, noise['latent'], noise['action']
        )
        losses = {key: loss * LENGTH / starts for key, loss in losses.items()}
        losses['model'] = model_loss
    gradients = {}
    for network, loss in losses.items():
        own = {
            name: weight.value
            for name, weight in weights.items()
            if network_of(name) == network
        }
        gradients.update(tape.gradient(loss, own))
    return losses, gradients


@pytest.mark.parametrize(
    'kind, flags, ends, starts',
    [
        ('continuous', [], [], LENGTH),
        # With a discount head the release imagines from all steps but each row's last,
        # which may be an episode's end; ours from all, weighted by `discount`.
        ('discount', ['--pcont', 'true'], [0, 2], LENGTH - 1),
    ],
)
def test_an_update_equals_the_release(kind, flags, ends, starts):
    golden = np.load(GOLDEN / f'update_{kind}.npz')
    names = golden['names'].tolist()
    agent = make_agent(names, *flags)
    weights = named_weights(agent, names)
    losses, gradients = losses_and_gradients(agent, weights, make_batch(ends), starts)
    np.testing.assert_allclose(
        [losses[key] for key in ('model', 'actor', 'value')],
        golden['losses'],
        rtol=1e-5,
    )
    for name, norm, probe in zip(names, golden['grad_norms'], golden['grad_probes']):
        gradient = gradients[name].numpy().astype(np.float64)
        np.testing.assert_allclose(
            np.linalg.norm(gradient), norm, rtol=1e-5, err_msg=name
        )
        # A projection is as large as the norm, but for what cancels.
        ours = np.sum(gradient * draw(f'probe/{name}', gradient.shape))
        np.testing.assert_allclose(ours, probe, rtol=0, atol=1e-5 * norm, err_msg=name)


def test_the_training_step_computes_what_the_losses_are_pinned_to():
    golden = np.load(GOLDEN / 'update_continuous.npz')
    names = golden['names'].tolist()
    agent = make_agent(names)
    metrics = agent.update(make_batch([]), make_noise(LENGTH))
    for network, loss in zip(('model', 'actor', 'value'), golden['losses']):
        np.testing.assert_allclose(metrics[f'{network}_loss'], loss, rtol=1e-5)
        norms = golden['grad_norms'][[network_of(name) == network for name in names]]
        np.testing.assert_allclose(
            metrics[f'{network}_grad_norm'], np.linalg.norm(norms), rtol=1e-5
        )
