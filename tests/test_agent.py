"""The agent: who receives gradient from whom, noise, checkpoints, time indices."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import batch_of_noise

import configs
import tools
import wrappers
from agent import Dreamer, Policy
from support.acting import workers
from support.acting.collector import Collector, episode_seed
from support.learning import layers
from support.run import checkpoints, openloop

BATCH, LENGTH, ACTION = 3, 6, 2
TINY = f'--configs debug --batch_size {BATCH} --batch_length {LENGTH}'.split()


def make_agent(*flags, precision='32'):
    config = configs.parse([*TINY, '--precision', precision, *map(str, flags)])
    return Dreamer(config, ACTION)


@pytest.fixture(scope='module')
def agent():
    return make_agent()


def black(count):
    """What `count` environments show."""
    return {'image': np.zeros((count, 64, 64, 3), np.uint8)}


@pytest.fixture
def data():
    return batch_of_noise(BATCH, LENGTH, ACTION)


def behavior_losses(agent, data, **changes):
    """Actor and value loss and the tape that saw them, under the same noise."""
    noise = dict(fixed_noise(agent), **changes)
    _, post, _ = agent.world.loss(data, noise['post'])
    start = {key: tf.reshape(x, (-1, x.shape[-1])) for key, x in post.items()}
    with tf.GradientTape(persistent=True) as tape:
        losses, _ = agent.behavior.losses(
            agent.world,
            start,
            tf.ones(BATCH * LENGTH),
            noise['latent'],
            noise['action'],
        )
    return losses['actor'], losses['value'], tape


def update(agent, data):
    """One update without the half minute that compiling it takes."""
    return agent.update(data, agent.noise(BATCH, LENGTH))


def fixed_noise(agent):
    agent.rng.reset_from_seed(0)
    return agent.noise(BATCH, LENGTH)


def largest(gradients):
    return max(
        0 if gradient is None else float(tf.reduce_max(tf.abs(gradient)))
        for gradient in gradients
    )


def test_actor_loss_reaches_the_actor_through_dynamics_reward_and_value(agent, data):
    actor_loss, _, tape = behavior_losses(agent, data)
    behavior, world = agent.behavior, agent.world
    for part in (behavior.actor, world.rssm, world.reward, behavior.value):
        assert largest(tape.gradient(actor_loss, part.trainable_weights)) > 0, part.name
    assert largest(tape.gradient(actor_loss, world.encoder.trainable_weights)) == 0


def test_value_loss_reaches_the_value_network_and_not_its_targets(agent, data):
    """The targets' own path would run through actor and reward head."""
    _, value_loss, tape = behavior_losses(agent, data)
    assert (
        largest(tape.gradient(value_loss, agent.behavior.value.trainable_weights)) > 0
    )
    assert largest(tape.gradient(value_loss, agent.world.reward.trainable_weights)) == 0


def test_value_gradient_is_that_of_regression_on_fixed_targets(agent, data):
    """-log N(target | v, 1) has the slope (v - target) w / size at the output, which
    is the slope of the last bias when summed.
    """
    noise = fixed_noise(agent)
    _, post, _ = agent.world.loss(data, noise['post'])
    start = {key: tf.reshape(x, (-1, x.shape[-1])) for key, x in post.items()}
    feature, _ = agent.behavior.imagine(
        agent.world.rssm, start, noise['latent'], noise['action']
    )
    value = agent.behavior.value.dist(feature).mean().numpy()
    reward = agent.world.reward.dist(feature).mean().numpy()
    target = np.zeros_like(value)
    target[-1] = value[-1]
    for t in reversed(range(len(value) - 1)):
        target[t] = reward[t] + 0.99 * (0.05 * value[t + 1] + 0.95 * target[t + 1])
    weight = 0.99 ** np.arange(len(value) - 1)[:, None]
    expected = (weight * (value - target)[:-1]).mean()
    actor_loss, value_loss, tape = behavior_losses(agent, data)
    bias = agent.behavior.value.trainable_weights[-1]
    np.testing.assert_allclose(
        tape.gradient(value_loss, [bias])[0], [expected], rtol=1e-3
    )
    np.testing.assert_allclose(actor_loss, -(weight * target[:-1]).mean(), rtol=1e-4)


def test_actor_sees_stopped_features(agent, data):
    """A start changes later features through the dynamics alone: its gradient must
    be that of the same trajectory with frozen actions.
    """
    noise = fixed_noise(agent)
    start = agent.world.rssm.initial(BATCH)
    with tf.GradientTape() as tape:
        stoch = tf.Variable(start['stoch'])
        features, _ = agent.behavior.imagine(
            agent.world.rssm,
            dict(start, stoch=stoch),
            noise['latent'][:, :BATCH],
            noise['action'][:, :BATCH],
        )
        loss = tf.reduce_sum(features[-1])
    through_imagine = tape.gradient(loss, stoch)
    actions, state = [], {key: tf.identity(value) for key, value in start.items()}
    for t in range(len(noise['action'])):
        policy = agent.behavior.actor.dist(agent.world.rssm.feature(state))
        actions.append(policy.sample(noise['action'][t][:BATCH]))
        state = agent.world.rssm.imagine_step(
            state, actions[-1], noise['latent'][t][:BATCH]
        )
    with tf.GradientTape() as tape:
        stoch = tf.Variable(start['stoch'])
        state = dict(start, stoch=stoch)
        for t, action in enumerate(actions):
            state = agent.world.rssm.imagine_step(
                state, tf.constant(action), noise['latent'][t][:BATCH]
            )
        loss = tf.reduce_sum(agent.world.rssm.feature(state))
    np.testing.assert_allclose(through_imagine, tape.gradient(loss, stoch), atol=1e-6)


def test_actor_step_raises_imagined_returns(data):
    """The sign: a small step along the actor's gradient makes its loss smaller."""
    agent = make_agent()
    before, _, tape = behavior_losses(agent, data)
    weights = agent.behavior.actor.trainable_weights
    gradients = tape.gradient(before, weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.assign(weight - 1.0 * gradient)
    after, _, _ = behavior_losses(agent, data)
    assert after < before


# Half precision rounds sums that are made in another order.
@pytest.mark.parametrize(
    'precision, apart',
    [('32', 1e-6), pytest.param('bfloat16', 1e-2, marks=pytest.mark.slow)],
)
def test_unrolled_steps_are_those_of_the_loop(monkeypatch, data, precision, apart):
    """In the forms that a GPU gets, of which only the steps differ."""
    gpu = tf.config.PhysicalDevice('/physical_device:GPU:0', 'GPU')
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind=None: [gpu])
    flags = '--free_nats', 0, '--pcont', 'true'
    results = []
    for scope in layers.keep_loops, contextlib.nullcontext:
        agent = make_agent(*flags, precision=precision)
        for optimizer in agent.optimizers.values():
            optimizer.loss_scale.assign(64.0)
        noise = fixed_noise(agent)
        with scope():
            trace = tf.function(agent.update, autograph=False).get_concrete_function
            traced = trace(data, noise)
        kinds = {node.op for node in traced.graph.as_graph_def().node}
        metrics = {key: float(x) for key, x in traced(data, noise).items()}
        gradients = {
            name: np.concatenate([np.ravel(x) for x in optimizer._adam._momentums])
            for name, optimizer in agent.optimizers.items()
        }
        looped = any(kind.endswith('While') for kind in kinds)
        results.append((looped, metrics, gradients))
    (looped, *ours), (unrolled, *theirs) = results
    assert looped and not unrolled
    assert theirs[0] == pytest.approx(ours[0], rel=apart, abs=apart)
    for name, gradient in ours[1].items():
        distance = np.linalg.norm(theirs[1][name] - gradient)
        assert 0 < np.linalg.norm(gradient)
        assert distance <= 10 * apart * np.linalg.norm(gradient), name


def test_each_optimiser_changes_its_own_module_only(data):
    for frozen in ('model', 'actor', 'value'):
        # Without free nats: below them the prior has no gradient at all.
        agent = make_agent('--free_nats', '0')
        parts = dict(
            model=agent.world.weights,
            actor=agent.behavior.actor.trainable_weights,
            value=agent.behavior.value.trainable_weights,
        )
        agent.optimizers[frozen]._adam.learning_rate = 0.0
        before = {name: [w.numpy() for w in ws] for name, ws in parts.items()}
        update(agent, data)
        for name, weights in parts.items():
            same = [
                np.array_equal(a, b.numpy())
                for a, b in zip(before[name], weights, strict=True)
            ]
            assert all(same) if name == frozen else not any(same), name


def test_weights_of_starts_after_the_end_are_zero(agent, data):
    noise = fixed_noise(agent)
    start = agent.world.rssm.initial(BATCH * LENGTH)
    weight = np.ones(BATCH * LENGTH, np.float32)
    args = noise['latent'], noise['action']
    whole, _ = agent.behavior.losses(agent.world, start, weight, *args)
    none, _ = agent.behavior.losses(agent.world, start, 0 * weight, *args)
    assert float(none['actor']) == 0 and float(whole['actor']) != 0


def test_predicted_discounts_replace_gamma(data):
    agent = make_agent('--pcont', 'true')
    feature = tf.zeros((4, 3, agent.world.rssm.feature_size))
    for weight in agent.world.pcont.trainable_weights:
        weight.assign(tf.zeros_like(weight))
    np.testing.assert_allclose(agent.world.discounts(feature), np.full((4, 3), 0.5))
    agent.world.pcont.trainable_weights[-1].assign([2.0])
    for discount, label in (1.0, 0.99), (0.0, 0.0):
        metrics = update(
            agent, dict(data, discount=tf.fill(data['discount'].shape, discount))
        )
        agent.world.pcont.trainable_weights[-1].assign([2.0])
        # Soft labels: cross-entropy of sigmoid(2) against 0.99 and 0.
        expected = np.log1p(np.exp(-2)) + 2 * (1 - label)
        np.testing.assert_allclose(metrics['pcont_loss'], expected, rtol=1e-2)


def test_update_gives_starts_after_the_end_no_weight(data):
    over = dict(data, discount=tf.zeros_like(data['discount']))
    assert float(update(make_agent(), over)['actor_loss']) == 0


def test_tanh_bounds_rewards(agent, data):
    bounded = make_agent('--clip_rewards', 'tanh')
    for target, source in zip(bounded.world.weights, agent.world.weights, strict=True):
        target.assign(source)
    noise = tf.zeros((BATCH, LENGTH, 4))
    squashed = dict(data, reward=tf.tanh(data['reward']))
    np.testing.assert_allclose(
        bounded.world.loss(data, noise)[2]['reward_loss'],
        agent.world.loss(squashed, noise)[2]['reward_loss'],
    )


def test_bonus_is_the_entropy_in_standard_deviations_of_the_returns(agent):
    returns, entropy = tf.constant([[0.0, 4.0]]), tf.constant([[0.5, 0.25]])
    assert agent.behavior.bonus(returns, entropy) == 0
    behavior = make_agent('--actor_entropy', 0.3).behavior
    for scale in (1, 100):  # Of rewards of any size it is the same part.
        np.testing.assert_allclose(
            behavior.bonus(scale * returns, entropy, 10**6) / scale,
            [[0.3, 0.15]],
            rtol=1e-6,
        )


@pytest.mark.parametrize(
    'updates, expected', [(0, 0.3), (500, 0.165), (1000, 0.03), (5000, 0.03)]
)
def test_bonus_falls_to_a_tenth(updates, expected):
    behavior = make_agent(
        '--actor_entropy', 0.3, '--actor_entropy_decay', 1000
    ).behavior
    returns, entropy = tf.constant([[0.0, 2.0]]), tf.constant([[1.0, 1.0]])
    bonus = behavior.bonus(returns, entropy, tf.constant(updates, tf.int64))
    np.testing.assert_allclose(bonus, [[expected, expected]], rtol=1e-6)


def test_bonus_falls_by_the_updates_made(data):
    agents = [
        make_agent('--actor_entropy', 1, '--actor_entropy_decay', decay)
        for decay in (0, 2)
    ]
    noise = agents[0].noise(BATCH, LENGTH)
    losses = [
        [float(agent.update(data, noise)['actor_loss']) for agent in agents]
        for _ in range(3)
    ]
    assert [constant == falling for constant, falling in losses] == [True, False, False]
    assert [int(agent.optimizers['actor'].updates) for agent in agents] == [3, 3]


@pytest.mark.parametrize('dist', ['tanh_normal', 'onehot'])
@pytest.mark.parametrize('method', ['dreamer', 'no_value'])
def test_bonus_makes_the_actor_less_certain(data, dist, method):
    """Without returns to tell actions apart, a step along the gradient adds entropy."""
    agent = make_agent(
        '--actor_entropy', 10, '--action_dist', dist, '--method', method, '--horizon', 5
    )
    if dist == 'onehot':
        data['action'] = tf.one_hot(tf.argmax(data['action'], -1), ACTION)
    noise = agent.noise(BATCH, LENGTH)
    start = agent.world.loss(data, noise['post'])[1]
    start = {key: tf.reshape(x, (-1, x.shape[-1])) for key, x in start.items()}
    weights = [x.value for x in agent.behavior.actor.trainable_weights]

    def losses():
        return agent.behavior.losses(
            agent.world,
            start,
            tf.ones(BATCH * LENGTH),
            noise['latent'],
            noise['action'],
        )

    with tf.GradientTape() as tape:
        loss, before = losses()
    gradients = tape.gradient(loss['actor'], weights)
    step = 1e-2 / tf.linalg.global_norm(gradients)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.assign_sub(step * gradient)
    _, after = losses()
    assert after['action_ent'] > before['action_ent']
    share = before.get('action_ent_share')
    assert share is None if dist == 'tanh_normal' else 0 < share <= 1


def test_free_nats_form_follows_the_flag(agent, data):
    noise = tf.zeros((BATCH, LENGTH, 4))
    kl = tools.gaussian_kl(
        *agent.world.rssm.observe(
            agent.world.encoder(data), data['action'], data['is_first'], noise
        )
    ).numpy()
    amount = float(np.median(kl))  # On either side of it, so that the forms differ.
    expected = max(amount, kl.mean()), np.maximum(amount, kl).mean()
    assert abs(expected[0] - expected[1]) > 1e-3
    for flag, nats in zip(('false', 'true'), expected, strict=True):
        # A large scale, to be seen beside an image loss of 11,800 in float32.
        other = make_agent(
            '--free_nats_per_step', flag, '--free_nats', amount, '--kl_scale', 1e4
        )
        _, _, metrics = other.world.loss(data, noise)
        term = metrics['model_loss'] - metrics['image_loss'] - metrics['reward_loss']
        np.testing.assert_allclose(term / 1e4, nats, atol=1e-5)


def test_losses_are_weighted_by_their_flags(data):
    weights = dict(reward=1e4, pcont=2e4)  # Large, beside an image loss of 11,800.
    flags = [x for name in weights for x in (f'--{name}_scale', weights[name])]
    agent = make_agent('--kl_scale', 0, '--pcont', 'true', *flags)
    _, _, metrics = agent.world.loss(data, tf.zeros((BATCH, LENGTH, 4)))
    expected = sum(scale * metrics[f'{name}_loss'] for name, scale in weights.items())
    np.testing.assert_allclose(
        metrics['model_loss'], expected + metrics['image_loss'], rtol=1e-6
    )


@pytest.mark.parametrize(
    'precision', [pytest.param('16', marks=pytest.mark.slow), 'bfloat16']
)
def test_low_precision_learns(data, precision):
    agent = make_agent(precision=precision)
    data = dict(data, image=tf.fill(data['image'].shape, tf.constant(255, tf.uint8)))
    losses = [float(agent.train(data)['model_loss']) for _ in range(25)]
    assert agent.gradient_step == 25
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 10
    for name, optimizer in agent.optimizers.items():
        # A few steps are shed while the loss scale comes down to what float16 holds.
        assert optimizer.skipped <= (15 if precision == '16' else 0), name
        assert optimizer.skipped_in_a_row == 0, name
    assert {w.dtype for w in agent.world.weights} == {'float32'}


def test_non_finite_loss_is_skipped_and_persistent_ones_stop_by_name(data):
    agent = make_agent()
    before = [weight.numpy() for weight in agent.world.weights]
    bad = dict(data, reward=data['reward'] * np.nan)
    for _ in range(3):
        update(agent, bad)
    for old, weight in zip(before, agent.world.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())
    agent.check_finite(limit=4)
    with pytest.raises(FloatingPointError, match='model'):
        agent.check_finite(limit=3)


@pytest.mark.slow
def test_a_nan_planted_in_a_network_stops_by_that_networks_name(data):
    agent = make_agent('--pcont')
    parts = [*agent.world.parts, agent.behavior.actor, agent.behavior.value]
    names = [part.name for part in parts]
    assert sorted(names) == [
        'actor',
        'decoder',
        'encoder',
        'pcont',
        'reward',
        'rssm',
        'value',
    ]
    agent.check_weights()
    for part in parts:
        weight = part.trainable_weights[-1]
        good = weight.numpy()
        weight.assign(np.where(np.arange(good.size).reshape(good.shape), good, np.nan))
        update(agent, data)
        # Whatever optimiser met it first, and others did too.
        with pytest.raises(FloatingPointError, match=f'weights of the {part.name} are'):
            agent.check_finite(limit=1)
        weight.assign(good)


def test_noise_differs_between_draws_and_repeats_under_a_seed(data):
    runs = []
    for seed in ('1', '1', '2'):
        agent = make_agent('--seed', seed)
        losses = [float(update(agent, data)['actor_loss']) for _ in range(3)]
        policy = Policy(agent, 2, training=True)
        actions = [policy(black(2), np.ones(2, bool)) for _ in range(2)]
        assert not np.allclose(actions[0], actions[1])
        assert not np.allclose(actions[0][0], actions[0][1])
        runs.append(np.concatenate([losses, *[action.ravel() for action in actions]]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])


def test_policy_modes_and_bounds(agent):
    for training in (True, False):
        policy = Policy(agent, 4, training)
        action = policy(black(4), np.ones(4, bool))
        assert action.shape == (4, ACTION)
        assert np.abs(action).max() <= 1
        np.testing.assert_array_equal(action, policy.action)


def test_one_hot_agent_acts_and_learns_through_its_actions(data):
    agent = make_agent(
        '--action_dist', 'onehot', '--expl', 'epsilon_greedy', '--pcont', 'true'
    )
    data = dict(data, action=tf.one_hot(tf.zeros((BATCH, LENGTH), tf.int32), ACTION))
    actor_loss, _, tape = behavior_losses(agent, data)
    weights = agent.behavior.actor.trainable_weights
    assert largest(tape.gradient(actor_loss, weights)) > 0
    assert all(np.isfinite(value) for value in update(agent, data).values())
    for training in (True, False):
        action = Policy(agent, 50, training)(black(50), np.ones(50, bool))
        np.testing.assert_allclose(np.sort(action, -1), [[0, 1]] * 50, atol=1e-6)


def test_epsilon_falls_with_gradient_steps_and_evaluation_has_its_own():
    agent = make_agent(
        '--action_dist',
        'onehot',
        '--expl',
        'epsilon_greedy',
        '--expl_action',
        'mode',
        '--expl_amount',
        '0.8',
        '--expl_min',
        '0.2',
        '--expl_decay',
        '1000',
        '--eval_noise',
        '0.1',
    )
    *_, kernel, bias = agent.behavior.actor.trainable_weights
    kernel.assign(tf.zeros_like(kernel))
    bias.assign([0.0, 1.0])
    # Traced before the first of these steps.
    policies = [Policy(agent, 2000, training) for training in (False, True)]
    for step, training, epsilon in (
        (0, True, 0.8),
        (500, True, 0.5),
        (5000, True, 0.2),
        (5000, False, 0.1),
    ):
        agent.gradient_step = step
        chosen = policies[training](black(2000), np.ones(2000, bool))
        # Of two actions a random one is half of the time the best one.
        np.testing.assert_allclose(chosen.mean(0)[0], epsilon / 2, atol=0.05)


def test_policy_carries_its_belief_and_forgets_it_where_an_episode_starts(agent):
    """`deter` follows without noise from the belief and the action of the step before,
    which are zero where an episode starts.
    """
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 3), np.uint8)
    policy, rssm = Policy(agent, 2, training=True), agent.world.rssm
    for image, first in zip(images, ([True, True], [False, True], [False, False])):
        first = np.array(first)
        keep = np.where(first, 0, 1)[:, None].astype(np.float32)
        before = {key: keep * value.numpy() for key, value in policy.belief.items()}
        action = keep * policy.action.numpy()
        policy({'image': image}, first)
        expected = rssm.imagine_step(before, action, tf.zeros((2, rssm.stoch_size)))
        np.testing.assert_allclose(policy.belief['deter'], expected['deter'], atol=1e-5)


@pytest.mark.parametrize('precision', ['16', 'bfloat16'])
def test_policy_object_computes_in_float32_on_a_cpu(precision):
    """Where casts of all weights would take longer than the products of an image; the
    agent itself keeps its precision.
    """
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 64, 3), np.uint8)
    actions = {}
    for name in ('32', precision):
        agent = make_agent(precision=name)
        before = [
            layer.compute_dtype for layer in agent.world.encoder.parts['image']._convs
        ]
        policy = Policy(agent, 1, training=False)
        actions[name] = [
            policy({'image': image}, np.zeros(1, bool)) for image in images
        ]
        after = [
            layer.compute_dtype for layer in agent.world.encoder.parts['image']._convs
        ]
        assert after == before
    assert before[0] != 'float32'
    np.testing.assert_allclose(actions[precision], actions['32'], atol=1e-5)


def test_checkpoint_keeps_networks_optimisers_counters_and_noise(tmp_path, data):
    first = make_agent('--seed', '1', precision='16')
    for _ in range(2):
        update(first, data)
    first.gradient_step, first.env_step, first.train_start = 2, 123, 100
    checkpoints.Checkpoints(tmp_path, first).save({})
    second = make_agent('--seed', '2', precision='16')
    checkpoints.Checkpoints(tmp_path, second).restore()
    for agent in first, second:
        counters = agent.gradient_step, agent.env_step, agent.train_start
        assert counters == (2, 123, 100)
        # To read a variable would wait for a GPU.
        assert {type(counter) for counter in counters} == {int}
    ours, theirs = (
        [float(x) for _ in range(2) for x in update(agent, data).values()]
        for agent in (first, second)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_openloop_video(agent, data):
    video = openloop.frames(data['image'], agent.openloop(data, 5)['image'])
    assert video.shape == (LENGTH, 3 * 64, BATCH * 64, 3)
    assert video.dtype == np.uint8
    for row in range(BATCH):
        np.testing.assert_array_equal(
            video[:, :64, row * 64 : (row + 1) * 64], data['image'][row]
        )


def test_openloop_ignores_later_images(agent, data):
    image = data['image'].numpy().copy()
    image[:, 5:] = 0
    videos = []
    for batch in (data, dict(data, image=tf.constant(image))):
        agent.eval_rng.reset_from_seed(0)
        videos.append(agent.openloop(batch, 5)['image'])
    np.testing.assert_array_equal(*videos)


def record(seed, count):
    """Episodes of a random policy with memory of its own calls."""
    rng = np.random.default_rng(seed)
    envs = workers.make_workers(
        'dummy_continuous', 2, dict(action_repeat=2, time_limit=7), 'none'
    )
    collector = Collector(envs, seed)

    def policy(observation, is_first):
        firsts.append(is_first)
        return rng.uniform(-1, 1, (2, 2))

    firsts, steps, episodes = [], 0, []
    while len(episodes) < count:
        taken, ended = collector.step(policy)
        steps += taken
        episodes += ended
    return episodes, steps, firsts


def test_recorded_time_index():
    """action[t] led to image[t] and reward[t]: simulating it again shows the same."""
    episodes, steps, firsts = record(seed=3, count=4)
    # 7 simulator steps at repeat 2 are 4 actions, and the last lasts one step.
    assert [len(episode['reward']) for episode in episodes] == [5] * 4
    assert steps == 4 * 7
    assert [first.all() for first in firsts] == [True, False, False, False] * 2
    for index, episode in enumerate(episodes):
        seed = episode_seed(3, env=index % 2, index=index // 2)
        env = wrappers.make('dummy_continuous', action_repeat=2, time_limit=7)
        observation, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(observation['image'], episode['image'][0])
        assert not episode['action'][0].any() and episode['reward'][0] == 0
        for t in range(1, 5):
            observation, reward, terminated, truncated, _ = env.step(
                episode['action'][t]
            )
            np.testing.assert_array_equal(observation['image'], episode['image'][t])
            assert reward == episode['reward'][t]
            assert truncated == (t == 4) and not terminated
        # Cut by the time limit: the future still counts.
        assert episode['discount'].all()


def test_collected_episodes_differ():
    episodes, _, _ = record(seed=3, count=4)
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(episodes[i]['image'], episodes[j]['image'])


def test_no_draws_are_those_of_another_seed_or_purpose():
    config = configs.parse(['--configs', 'debug', '--precision', '32'])
    states = []
    for seed in range(3):
        agent = Dreamer(dataclasses.replace(config, seed=seed), 2)
        states += [agent.rng.state, agent.eval_rng.state]
    assert len({state.numpy().tobytes() for state in states}) == 6
