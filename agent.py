"""The agent: world model, behavior, training step, policy; PlaNet and the paper's other
baselines are the same agent with parts left out.

Shapes: B batch, L length, H horizon, A action, V state vector, S stochastic, F feature,
N = B*L, E environments.
`action[t]` led to `image[t]`, `reward[t]` and `discount[t]`.
"""

import contextlib
import math
import zlib

import keras
import numpy as np
import tensorflow as tf

import models
import tools
from support.learning import layers, planet, replicas, xla
from support.learning.optimizer import Optimizer


class WorldModel(tf.Module):
    """Learns latent dynamics from observations, actions and rewards (paper, section 2).

    Args:
      config: `configs.Config`.
      action_size: A.
      state_size: V; 0 where no vector is observed.
    """

    def __init__(self, config, action_size, state_size=0):
        super().__init__('model')
        self._config = config
        self.encoder = models.Encoder(config, state_size)
        self.rssm = models.RSSM(
            action_size,
            self.encoder.size,
            config.stoch_size,
            config.deter_size,
            config.rssm_units,
            config.dense_act,
        )
        size = self.rssm.feature_size
        self.reward = models.ScalarHead(
            size,
            config.reward_layers,
            config.num_units,
            config.dense_act,
            name='reward',
        )
        self.parts = [self.encoder, self.rssm, self.reward]
        reconstructs = config.representation == 'reconstruction'
        self.decoders = {}
        if reconstructs or config.log_images:
            self.decoders = models.make_decoders(config, size, state_size)
        if reconstructs:
            self.parts += self.decoders.values()
        if config.representation == 'contrastive':
            self.state_model = models.GaussianHead(
                self.encoder.size, 3, config.num_units, size, config.dense_act
            )
            self.parts.append(self.state_model)
        if config.pcont:
            self.pcont = models.ScalarHead(
                size, 3, config.num_units, config.dense_act, 'binary', name='pcont'
            )
            self.parts.append(self.pcont)

    @property
    def weights(self):
        """All Keras variables that `loss` trains. Decoders are among them only if the
        representation is learned by reconstruction.
        """
        return [weight for part in self.parts for weight in part.trainable_weights]

    def loss(self, batch, noise):
        """The negative evidence lower bound (paper, equation 10; section 4 for the
        other representations).

        Args:
          batch: of replay, [B, L, ...]; images may be normalized already.
          noise: [B, L, S] of the posterior.

        Returns:
          scalar loss, posterior [B, L, ...], metrics.
        """
        config = self._config
        embed = self.encoder(batch)
        post, prior = self.rssm.observe(
            embed, batch['action'], batch['is_first'], noise
        )
        feature = self.rssm.feature(post)
        reward = batch['reward']
        if config.clip_rewards == 'tanh':
            reward = tf.tanh(reward)
        losses = dict(
            reward_loss=-tf.reduce_mean(self.reward.dist(feature).log_prob(reward))
        )
        if config.representation == 'reconstruction':
            losses.update(self.decoder_losses(feature, batch))
        elif config.representation == 'contrastive':
            pairs = replicas.gather_batch([feature, *self.state_model(embed)])
            losses['contrastive_loss'] = -tf.reduce_mean(
                tools.contrastive(*pairs, config.contrastive_window)
            )
        if config.pcont:
            losses['pcont_loss'] = -tf.reduce_mean(
                self.pcont.dist(feature).log_prob(config.discount * batch['discount'])
            )
        scales = dict(reward_loss=config.reward_scale, pcont_loss=config.pcont_scale)
        total = sum(scales.get(name, 1.0) * loss for name, loss in losses.items())
        kl = tools.gaussian_kl(post, prior)
        total += config.kl_scale * tools.free_nats(
            kl, config.free_nats, config.free_nats_per_step, replicas.batch_mean
        )
        return (
            total,
            post,
            dict(
                losses,
                model_loss=total,
                div=tf.reduce_mean(kl),
                prior_ent=tf.reduce_mean(tools.gaussian_entropy(prior['std'])),
                post_ent=tf.reduce_mean(tools.gaussian_entropy(post['std'])),
            ),
        )

    def decoder_losses(self, feature, batch):
        """Mean negative log-likelihood of what is observed, by `image_loss` and
        `state_loss`, given features [B, L, F].
        """
        return {
            f'{name}_loss': decoder.loss(feature, batch[name])
            for name, decoder in self.decoders.items()
        }

    def rewards(self, state, action, noise):
        """Predicted rewards [N, L] of an open loop; arguments as `RSSM.imagine`."""
        prior = self.rssm.imagine(state, action, noise)
        return self.reward.dist(self.rssm.feature(prior)).mean()

    def discounts(self, feature):
        """p_t for imagined features [..., F]: gamma, or predicted: [...]."""
        if self._config.pcont:
            return self.pcont.dist(feature).mean()
        return tf.fill(tf.shape(feature)[:-1], self._config.discount)

    def openloop(self, batch, noise, context):
        """Predict what `batch` [B, L, ...] observes from the first `context` steps of
        it and all actions.

        Args:
          batch: of replay; images may be normalized already.
          noise: [B, L, S].
          context: steps.

        Returns:
          by name what the decoders predict, [B, L, ...]: reconstructions of the
          first steps, then predictions.
        """
        seen = {key: values[:, :context] for key, values in batch.items()}
        post, _ = self.rssm.observe(
            self.encoder(seen), seen['action'], seen['is_first'], noise[:, :context]
        )
        last = {key: value[:, -1] for key, value in post.items()}
        prior = self.rssm.imagine(
            last, batch['action'][:, context:], noise[:, context:]
        )
        feature = tf.concat([self.rssm.feature(post), self.rssm.feature(prior)], 1)
        return {
            name: decoder.predict(feature) for name, decoder in self.decoders.items()
        }


class ActorCritic(tf.Module):
    """Learns behavior inside the world model (paper, section 3 and algorithm 1).

    Args:
      config: `configs.Config`.
      feature_size: F.
      action_size: A.
    """

    def __init__(self, config, feature_size, action_size):
        super().__init__('behavior')
        self._config = config
        self.actor = models.Actor(
            feature_size,
            action_size,
            config.num_units,
            config.actor_layers,
            config.dense_act,
            config.action_dist,
            config.action_init_std,
        )
        self.parts = dict(actor=self.actor)
        if config.method == 'dreamer':
            self.value = models.ScalarHead(
                feature_size, 3, config.num_units, config.dense_act, name='value'
            )
            self.parts['value'] = self.value

    def imagine(self, rssm, start, latent_noise, action_noise):
        """Follow the actor through the latent dynamics.

        Args:
          rssm: `models.RSSM`.
          start: states [N, ...].
          latent_noise, action_noise: [H, N, S] and [H, N, A].

        Returns:
          features [H, N, F], without the start's, and the distributions [H, N, A] that
          the actions were drawn from, by `action_noise`.
        """

        def step(previous, noise):
            state, _ = previous
            # The actor learns through its action alone: not by changing, one step
            # earlier, what it will see.
            outputs = self.actor(tf.stop_gradient(rssm.feature(state)))
            action = self.actor.dist_of(outputs).sample(noise[1])
            return rssm.imagine_step(state, action, noise[0]), outputs

        rows = tf.shape(start['stoch'])[0]
        initial = (start, tf.zeros((rows, self.actor.outputs)))
        states, outputs = layers.scan(
            step, (latent_noise, action_noise), initial, [rssm, self.actor]
        )
        return rssm.feature(states), self.actor.dist_of(outputs)

    def losses(self, world, start, start_weight, latent_noise, action_noise, updates=0):
        """Actor and value loss on imagined trajectories (equations 6 to 8), or, without
        a value network, the actor's alone, by the rewards to go of every imagined state
        (equations 4 and 7; discounted, as in the TF1 release).

        Args:
          world: `WorldModel`.
          start: posterior states [N, ...].
          start_weight: [N], 0 where the episode is over.
          latent_noise, action_noise: [H, N, S] and [H, N, A].
          updates: of the actor so far, by which its bonus falls.

        Returns:
          losses by the name of the network, metrics.
        """
        start = tf.nest.map_structure(tf.stop_gradient, start)
        feature, policy = self.imagine(world.rssm, start, latent_noise, action_noise)
        entropy = policy.entropy(policy.sample(action_noise))
        reward = world.reward.dist(feature).mean()
        discount = world.discounts(feature)
        metrics = self.entropy_metrics(entropy)
        if self._config.method == 'no_value':
            returns = tools.lambda_return(reward, tf.zeros_like(reward), discount, 1.0)
            bonus = self.bonus(returns, entropy, updates)
            return dict(
                actor=-tf.reduce_mean(start_weight * (returns + bonus))
            ), metrics
        value = self.value.dist(feature)
        returns = tools.lambda_return(
            reward[:-1], value.mean()[1:], discount[:-1], self._config.disclam
        )
        weight = start_weight * tools.discount_weights(discount[:-1])
        bonus = self.bonus(returns, entropy[:-1], updates)
        actor_loss = -tf.reduce_mean(weight * (returns + bonus))
        # Only the value network's gradient of this is used: one forward pass serves.
        target = tf.stop_gradient(returns)
        value_loss = -tf.reduce_mean(
            weight * tools.UnitNormal(value.mean()[:-1]).log_prob(target)
        )
        return dict(actor=actor_loss, value=value_loss), metrics

    def bonus(self, returns, entropy, updates=0):
        """What the actor gets for being uncertain, beside the returns.

            eta std(R) H[pi(.|s)]

        A certain categorical has a straight-through gradient of zero and hardly comes
        back. The bonus (Hafner et al. 2021, *Mastering Atari with Discrete World
        Models*, equation 6) keeps the actor from running there after the errors of an
        untrained world model. Measured in the spread of the returns, an idea of Hafner
        et al. 2023, *Mastering Diverse Domains through World Models*, one eta serves
        rewards of any size.

        Args:
          returns: [..., N] R, of which only the spread is used, over the whole batch.
          entropy: [..., N] nats.
          updates: of the actor so far; over `--actor_entropy_decay` of them eta falls
            to a tenth.

        Returns:
          [..., N]; 0 without `--actor_entropy`, as in the paper.
        """
        config = self._config
        if not config.actor_entropy:
            return 0.0
        weight = tools.linear_schedule(
            config.actor_entropy,
            config.actor_entropy / 10,
            config.actor_entropy_decay,
            updates,
        )
        returns = tf.stop_gradient(returns)
        square = tf.square(returns - replicas.batch_mean(returns))
        scale = tf.sqrt(replicas.batch_mean(square))
        return weight * scale * entropy

    def entropy_metrics(self, entropy):
        """The mean of entropies [H, N]; of discrete actions as a share of ln A, too."""
        mean = tf.reduce_mean(entropy)
        if self._config.action_dist != 'onehot':
            return dict(action_ent=mean)
        return dict(
            action_ent=mean, action_ent_share=mean / math.log(self.actor.actions)
        )


class Dreamer(tf.Module):
    """The agent as it learns: networks, optimisers, training step, counters.

    Args:
      config: `configs.Config` with its precision resolved.
      action_size: A.
      strategy: of `replicas.make_strategy`; None is one device.
      state_size: V; 0 where no vector is observed.

    Attributes:
      gradient_step: updates made.
      env_step: environment steps taken, which the run counts.
      train_start: `env_step` where training began; -1 while the prefill goes on.
      compiled: whether updates are to be made by what XLA compiles.
    """

    def __init__(self, config, action_size, strategy=None, state_size=0):
        super().__init__('dreamer')
        self.config = config
        self.action_size = action_size
        keras.config.set_dtype_policy(
            {'16': 'mixed_float16', 'bfloat16': 'mixed_bfloat16', '32': 'float32'}[
                config.precision
            ]
        )
        keras.utils.set_random_seed(tools.spawn_seed(config.seed, 'networks') >> 31)
        # Two: evaluating more or less often must not change the training.
        self.rng, self.eval_rng = (
            tf.random.Generator.from_seed(tools.spawn_seed(config.seed, name))
            for name in ('noise', 'eval_noise')
        )
        # Not variables: to read one waits until a GPU has done all that it was told.
        self.gradient_step, self.env_step, self.train_start = 0, 0, -1
        self._strategy = strategy
        # Replicas have copies of what trains; of the noise there is one.
        with strategy.scope() if strategy else contextlib.nullcontext():
            self._build(config, action_size, state_size)
        # No Python control flow depends on tensors: plain tracing is a third faster.
        self._graph = tf.function(self.update, autograph=False)
        self._by_xla = tf.function(
            layers.keep_loops()(self.update), autograph=False, jit_compile=True
        )
        self.compiled = config.jit == 'true'

    def _build(self, config, action_size, state_size):
        self.world = WorldModel(config, action_size, state_size)
        trained = dict(model=self.world.weights)
        self.behavior = None
        if config.method != 'planet':
            self.behavior = ActorCritic(
                config, self.world.rssm.feature_size, action_size
            )
            for name, part in self.behavior.parts.items():
                trained[name] = part.trainable_weights
        # To look at only: with another optimiser, so that their gradient has no part in
        # the norm by which the world model's is clipped.
        self.trains_separate_decoder = bool(
            self.world.decoders and config.representation != 'reconstruction'
        )
        if self.trains_separate_decoder:
            decoders = self.world.decoders.values()
            trained['decoder'] = sum((x.trainable_weights for x in decoders), [])
        rates = dict(
            model=config.model_lr,
            actor=config.actor_lr,
            value=config.value_lr,
            decoder=config.model_lr,
        )
        self.optimizers = {
            name: Optimizer(
                name,
                variables,
                rates[name],
                config.grad_clip,
                config.adam_epsilon,
                config.precision == '16',
            )
            for name, variables in trained.items()
        }

    def noise(self, rows, length):
        """All noise of one update of `rows` sequences [B]: standard normal, and that of
        images uniform.
        """
        config = self.config
        imagined = config.horizon, rows * length
        shapes = dict(
            post=(rows, length, config.stoch_size),
            latent=(*imagined, config.stoch_size),
            action=(*imagined, self.action_size),
        )
        sizes = [math.prod(shape) for shape in shapes.values()]
        parts = tf.split(self.rng.normal((sum(sizes),)), sizes)
        noise = {
            name: tf.reshape(part, shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        of_images = self.image_noise(self.rng, (rows, length))
        return noise if of_images is None else dict(noise, image=of_images)

    def image_noise(self, rng, shape):
        """Uniform noise of `models.normalize`, [*shape, 64, 64, 3], if that is set."""
        if self.config.image_noise and 'image' in self.config.observes:
            return rng.uniform((*shape, 64, 64, 3))
        return None

    def on_device(self, batch):
        """A replay batch of arrays as `train` takes it; see `replicas.place`."""
        return replicas.place(self._strategy, batch)

    def train(self, batch):
        """One update of world model, actor and value network from a replay batch of
        `on_device`, [B, L, ...], or this machine's part of it; returns scalar metrics.
        """
        metrics = self.form(batch)
        self.gradient_step += 1
        return metrics

    @property
    def form(self):
        """The `tf.function` of an update from a replay batch."""
        return self._by_xla if self.compiled else self._graph

    def update(self, batch, noise=None):
        """`train`, not counted; `noise` is that of `noise`, drawn here by default."""
        if noise is None:
            noise = self.noise(*replicas.batch_shape(self._strategy, batch))
        return replicas.run(self._strategy, self._update_replica, batch, noise)

    def _update_replica(self, batch, noise):
        batch = models.normalize(batch, noise.get('image'))
        with tf.GradientTape() as tape:
            loss, post, metrics = self.world.loss(batch, noise['post'])
        metrics['model_grad_norm'] = self.optimizers['model'].apply(tape, loss)
        if self.trains_separate_decoder:
            metrics.update(self._update_decoders(batch, post))
        if self.behavior:
            metrics.update(self._update_behavior(batch, post, noise))
        return metrics

    def _update_decoders(self, batch, post):
        """Learn to draw what the world model represents, without touching it."""
        feature = tf.stop_gradient(self.world.rssm.feature(post))
        with tf.GradientTape() as tape:
            losses = self.world.decoder_losses(feature, batch)
            loss = sum(losses.values())
        norm = self.optimizers['decoder'].apply(tape, loss)
        return dict(losses, decoder_grad_norm=norm)

    def _update_behavior(self, batch, post, noise):
        """Actor and value network, in the world model as it is now."""
        start = {
            key: tf.reshape(state, (-1, state.shape[-1])) for key, state in post.items()
        }
        # A tape each: a loop that a persistent one recorded is slower to differentiate.
        with contextlib.ExitStack() as stack:
            tapes = {}
            for name, part in self.behavior.parts.items():
                tapes[name] = stack.enter_context(
                    tf.GradientTape(watch_accessed_variables=False)
                )
                tapes[name].watch([weight.value for weight in part.trainable_weights])
            losses, metrics = self.behavior.losses(
                self.world,
                start,
                tf.reshape(batch['discount'], (-1,)),
                noise['latent'],
                noise['action'],
                self.optimizers['actor'].updates,
            )
        for name, loss in losses.items():
            metrics[f'{name}_loss'] = loss
            metrics[f'{name}_grad_norm'] = self.optimizers[name].apply(
                tapes[name], loss
            )
        return metrics

    @tf.function(autograph=False)
    def openloop(self, batch, context):
        """Predict what `batch` observes, with noise of the evaluation; see
        `WorldModel.openloop`.
        """
        rng, shape = self.eval_rng, batch['reward'].shape
        noise = self.image_noise(rng, shape)
        return self.world.openloop(
            models.normalize(batch, noise),
            rng.normal((*shape, self.config.stoch_size)),
            context,
        )

    def check_finite(self, limit=50):
        """Raise FloatingPointError if a module's last `limit` gradients were all
        non-finite: more than float16's loss scale sheds while it settles.
        """
        for name, optimizer in self.optimizers.items():
            if optimizer.skipped_in_a_row >= limit:
                self.check_weights()
                raise FloatingPointError(
                    f'the gradient of the {name} was not finite {limit} times in a '
                    'row; try --precision 32 or a lower learning rate'
                )

    def fingerprint(self):
        """A checksum of the weights and of what Adam knows of them."""
        result = 0
        for optimizer in self.optimizers.values():
            for weight in optimizer.weights:
                result = zlib.crc32(tf.convert_to_tensor(weight).numpy(), result)
        return result

    def check_weights(self):
        """Raise FloatingPointError if a network has weights that are not finite."""
        behavior = self.behavior.parts.values() if self.behavior else ()
        broken = [
            part.name
            for part in (*self.world.parts, *behavior)
            if not np.isfinite(
                [float(tf.reduce_sum(weight)) for weight in part.trainable_weights]
            ).all()
        ]
        if broken:
            raise FloatingPointError(
                f'the weights of the {" and ".join(broken)} are not finite'
            )


class Policy:
    """The agent as it acts: keeps between calls what it believes and did.

    Args:
      agent: `Dreamer`.
      envs: E, environments that step together.
      training: explore, or act by the mode.

    Attributes:
      belief: `deter` and `stoch` [E, ...] after the last call, variables.
      action: [E, A], the last that was really taken, a variable.
    """

    MODE_SAMPLES = 100

    def __init__(self, agent, envs, training):
        self._agent, self._training = agent, training
        self._rng = agent.rng if training else agent.eval_rng
        initial = agent.world.rssm.initial(envs)
        self.belief = {key: tf.Variable(initial[key]) for key in ('deter', 'stoch')}
        self.action = tf.Variable(tf.zeros((envs, agent.action_size)))
        # An actor is many tiny operations, whose dispatch costs more than they do:
        # compiled. The large ones of encoder and planner are faster as they are.
        self._traced = xla.Fallback(self._trace, bool(agent.behavior), 'the policy')

    def __call__(self, observation, is_first):
        """Choose actions.

        Args:
          observation: dict of image uint8 [E, 64, 64, 3], state float32 [E, D], or
            both, as the agent observes; others are left alone.
          is_first: [E] bool, true where an episode starts: there the belief is
            forgotten.

        Returns:
          [E, A] float32, in [-1, 1] or one-hot.
        """
        names = self._agent.config.observes
        seen = {name: tf.constant(observation[name]) for name in names}
        step = tf.constant(self._agent.gradient_step, tf.int64)
        return self._traced(seen, tf.constant(is_first), step).numpy()

    def _trace(self, compiled):
        """The function from observations to actions, traced once."""
        agent, envs = self._agent, self.action.shape[0]
        choose = tf.function(self.choose, autograph=False, jit_compile=compiled)

        def act(observation, is_first, step):
            noise = agent.image_noise(self._rng, (envs,))
            embed = agent.world.encoder(models.normalize(observation, noise))
            return choose(embed, is_first, step)

        on_cpu = agent.behavior and not tf.config.list_physical_devices('GPU')
        parts = [*agent.world.parts, agent.behavior.actor] if on_cpu else []
        specs = agent.world.encoder.specs
        with layers.in_float32(parts):
            return tf.function(act, autograph=False).get_concrete_function(
                {
                    name: tf.TensorSpec((envs, *x.shape), x.dtype)
                    for name, x in specs.items()
                },
                tf.TensorSpec((envs,), tf.bool),
                tf.TensorSpec((), tf.int64),
            )

    def choose(self, embed, is_first, step):
        """Actions [E, A] given embedded observations [E, its size]; belief and action
        become those of this step.

        Args:
          embed, is_first: of the environments.
          step: updates so far, by which exploration falls.
        """
        config, rng = self._agent.config, self._rng
        latent = self._agent.world.rssm.observe_step(
            self.belief,
            self.action,
            embed,
            is_first,
            rng.normal(self.belief['stoch'].shape),
        )
        if config.method == 'planet':
            action = planet.choose(self._agent.world, latent, rng, config)
        else:
            action = self._from_actor(latent)
        amount = config.eval_noise
        if self._training:
            amount = tools.linear_schedule(
                config.expl_amount, config.expl_min, config.expl_decay, step
            )
        greedy = config.expl == 'epsilon_greedy'
        explore = tools.epsilon_greedy if greedy else tools.add_gaussian
        action = explore(action, amount, rng)
        for key, variable in self.belief.items():
            variable.assign(latent[key])
        return self.action.assign(action)

    def _from_actor(self, state):
        """Actions [E, A] of the actor in `state` [E, ...], drawn or the most likely."""
        agent, shape = self._agent, self.action.shape
        policy = agent.behavior.actor.dist(agent.world.rssm.feature(state))
        if self._training and agent.config.expl_action == 'sample':
            return policy.sample(self._rng.normal(shape))
        return policy.mode(self._rng.normal((self.MODE_SAMPLES, *shape)))
