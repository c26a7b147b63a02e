"""The agent: world model, behavior, training step and policy. PlaNet and the paper's
other baselines are the same agent with parts left out.

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
    """The latent dynamics, learned from experience (paper, section 2).

    Args:
      config: `configs.Config`.
      action_size: A.
      state_size: V; 0 without observed state vectors.
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
        """Keras variables that `loss` trains, the decoders' only in reconstruction."""
        return [weight for part in self.parts for weight in part.trainable_weights]

    def loss(self, batch, noise):
        """The negative evidence lower bound (paper, equation 10; section 4 for the
        other representations).

        Args:
          batch: from replay, [B, L, ...]; images may already be normalized.
          noise: [B, L, S] for the posterior.

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
        """Return the mean negative log-likelihoods of the observations in `batch` given
        features [B, L, F], by the names `image_loss` and `state_loss`.
        """
        return {
            f'{name}_loss': decoder.loss(feature, batch[name])
            for name, decoder in self.decoders.items()
        }

    def rewards(self, state, action, noise):
        """Predict the rewards [N, L] of actions; takes `RSSM.imagine`'s arguments."""
        prior = self.rssm.imagine(state, action, noise)
        return self.reward.dist(self.rssm.feature(prior)).mean()

    def discounts(self, feature):
        """Discounts p_t [...] for imagined features [..., F]: predicted, or gamma."""
        if self._config.pcont:
            return self.pcont.dist(feature).mean()
        return tf.fill(tf.shape(feature)[:-1], self._config.discount)

    def openloop(self, batch, noise, context):
        """Predict the observations of a batch from its first steps and all its actions.

        Args:
          batch: from replay, [B, L, ...]; images may already be normalized.
          noise: [B, L, S].
          context: number of first steps that the world model observes.

        Returns:
          the decoders' outputs by name, [B, L, ...]: reconstructions of the first
          `context` steps, then predictions.
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
    """The behavior, learned in the world model (paper, section 3 and algorithm 1).

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
          features [H, N, F] of the states after the start, and the distributions
          [H, N, A] of the actions that lead to them.
        """

        def step(previous, noise):
            state, _ = previous
            # The actor gets gradients through its actions alone. Earlier actions must
            # not learn to change its later inputs.
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
        """Actor and value losses on imagined trajectories (paper, equations 6 to 8).

        Without a value network, the actor maximizes the sum of imagined rewards from
        every state on (equations 4 and 7). As in the TF1 release, it is discounted.

        Args:
          world: `WorldModel`.
          start: posterior states [N, ...].
          start_weight: [N], 0 where the episode is over.
          latent_noise, action_noise: [H, N, S] and [H, N, A].
          updates: of the actor so far; its bonus falls with them.

        Returns:
          losses by name of network, metrics.
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
        # Only the value network learns from this loss, so it shares the forward pass.
        target = tf.stop_gradient(returns)
        value_loss = -tf.reduce_mean(
            weight * tools.UnitNormal(value.mean()[:-1]).log_prob(target)
        )
        return dict(actor=actor_loss, value=value_loss), metrics

    def bonus(self, returns, entropy, updates=0):
        """Reward the actor for being uncertain.

            eta std(R) H[pi(.|s)]

        An actor that is certain of a discrete action gets no straight-through gradient
        and hardly changes again. The bonus (Hafner et al. 2021, *Mastering Atari with
        Discrete World Models*, equation 6) keeps it uncertain while the world model is
        untrained. It scales with the spread of the returns (Hafner et al. 2023,
        *Mastering Diverse Domains through World Models*), so that one eta fits rewards
        of any size.

        Args:
          returns: [..., N] R; only their spread over the whole batch counts.
          entropy: [..., N] nats.
          updates: of the actor so far. Over `--actor_entropy_decay` of them, eta falls
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
        """Mean of entropies [H, N]; for discrete actions also as a share of ln A."""
        mean = tf.reduce_mean(entropy)
        if self._config.action_dist != 'onehot':
            return dict(action_ent=mean)
        return dict(
            action_ent=mean, action_ent_share=mean / math.log(self.actor.actions)
        )


class Dreamer(tf.Module):
    """The learning agent: networks, optimisers, training step and counters.

    Args:
      config: `configs.Config` with its precision resolved.
      action_size: A.
      strategy: from `replicas.make_strategy`; None for one device.
      state_size: V; 0 without observed state vectors.

    Attributes:
      gradient_step: updates made.
      env_step: environment steps taken; the run counts them.
      train_start: `env_step` at the start of training; -1 before.
      compiled: whether `train` makes updates that XLA compiles.
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
        # Evaluation has a second generator, so that it never changes the training.
        self.rng, self.eval_rng = (
            tf.random.Generator.from_seed(tools.spawn_seed(config.seed, name))
            for name in ('noise', 'eval_noise')
        )
        # Plain integers, because reading a variable waits for the GPU.
        self.gradient_step, self.env_step, self.train_start = 0, 0, -1
        self._strategy = strategy
        # Each replica has a copy of the networks; the noise generator is shared.
        with strategy.scope() if strategy else contextlib.nullcontext():
            self._build(config, action_size, state_size)
        # AutoGraph would make tracing a third slower; no Python branch needs it.
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
        # These decoders are only for videos. A separate optimiser keeps their gradient
        # out of the norm that clips the world model's.
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
        """Draw all noise of one update of B = `rows` sequences of L = `length` steps:
        standard normal for states and actions, uniform for images.
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
        """Draw noise [*shape, 64, 64, 3] for `models.normalize`; None if it is off."""
        if self.config.image_noise and 'image' in self.config.observes:
            return rng.uniform((*shape, 64, 64, 3))
        return None

    def on_device(self, batch):
        """Move a replay batch of arrays to where `train` needs it: `replicas.place`."""
        return replicas.place(self._strategy, batch)

    def train(self, batch):
        """Update all networks once and return scalar metrics.

        Args:
          batch: from `on_device`, [B, L, ...]; on several machines, this one's part.
        """
        metrics = self.form(batch)
        self.gradient_step += 1
        return metrics

    @property
    def form(self):
        """The `tf.function` that makes an update from a replay batch."""
        return self._by_xla if self.compiled else self._graph

    def update(self, batch, noise=None):
        """Make the update of `train` but don't count it; draw `noise` if it is None."""
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
        """Train the separate decoders, without a gradient for the world model."""
        feature = tf.stop_gradient(self.world.rssm.feature(post))
        with tf.GradientTape() as tape:
            losses = self.world.decoder_losses(feature, batch)
            loss = sum(losses.values())
        norm = self.optimizers['decoder'].apply(tape, loss)
        return dict(losses, decoder_grad_norm=norm)

    def _update_behavior(self, batch, post, noise):
        """Train actor and value network by imagination from the posterior states."""
        start = {
            key: tf.reshape(state, (-1, state.shape[-1])) for key, state in post.items()
        }
        # One tape a network: a persistent tape makes loops slower to differentiate.
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
        """Call `WorldModel.openloop` with noise from the evaluation's generator."""
        rng, shape = self.eval_rng, batch['reward'].shape
        noise = self.image_noise(rng, shape)
        return self.world.openloop(
            models.normalize(batch, noise),
            rng.normal((*shape, self.config.stoch_size)),
            context,
        )

    def check_finite(self, limit=50):
        """Raise FloatingPointError if a module's last `limit` gradients were all
        non-finite. While float16's loss scale settles, there are fewer in a row.
        """
        for name, optimizer in self.optimizers.items():
            if optimizer.skipped_in_a_row >= limit:
                self.check_weights()
                raise FloatingPointError(
                    f'the gradient of the {name} was not finite {limit} times in a '
                    'row; try --precision 32 or a lower learning rate'
                )

    def fingerprint(self):
        """Return a checksum of all trained weights and of Adam's averages."""
        result = 0
        for optimizer in self.optimizers.values():
            for weight in optimizer.weights:
                result = zlib.crc32(tf.convert_to_tensor(weight).numpy(), result)
        return result

    def check_weights(self):
        """Raise FloatingPointError if weights of a network are not finite."""
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
    """The acting agent: it remembers its belief and its last action between calls.

    Args:
      agent: `Dreamer`.
      envs: E, environments that step together.
      training: explore as in training; False takes the most likely actions.

    Attributes:
      belief: variables `deter` and `stoch` [E, ...] after the last call.
      action: variable [E, A], the last actions, exploration included.
    """

    MODE_SAMPLES = 100

    def __init__(self, agent, envs, training):
        self._agent, self._training = agent, training
        self._rng = agent.rng if training else agent.eval_rng
        initial = agent.world.rssm.initial(envs)
        self.belief = {key: tf.Variable(initial[key]) for key in ('deter', 'stoch')}
        self.action = tf.Variable(tf.zeros((envs, agent.action_size)))
        # XLA saves the dispatch of the actor's many tiny operations. Encoder and
        # planner have large operations, which are faster without XLA.
        self._traced = xla.Fallback(self._trace, bool(agent.behavior), 'the policy')

    def __call__(self, observation, is_first):
        """Choose actions.

        Args:
          observation: dict of image uint8 [E, 64, 64, 3], state float32 [E, V], or
            both, as the agent observes; other keys are ignored.
          is_first: [E] bool, true where an episode starts and the belief is reset.

        Returns:
          [E, A] float32, in [-1, 1] or one-hot.
        """
        names = self._agent.config.observes
        seen = {name: tf.constant(observation[name]) for name in names}
        step = tf.constant(self._agent.gradient_step, tf.int64)
        return self._traced(seen, tf.constant(is_first), step).numpy()

    def _trace(self, compiled):
        """Trace the function from observations to actions."""
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
        """Choose actions [E, A]; store them and the new belief.

        Args:
          embed: [E, embedding size], the encoded observations.
          is_first: [E] bool.
          step: updates so far; exploration falls with them.
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
        """Draw the actor's actions [E, A] in `state` [E, ...], or take the mode."""
        agent, shape = self._agent, self.action.shape
        policy = agent.behavior.actor.dist(agent.world.rssm.feature(state))
        if self._training and agent.config.expl_action == 'sample':
            return policy.sample(self._rng.normal(shape))
        return policy.mode(self._rng.normal((self.MODE_SAMPLES, *shape)))
