"""Dreamer: learning behaviors by latent imagination (Hafner et al., ICLR 2020).

    python dreamer.py --logdir ./logs --task dmc_walker_walk

Shapes: B batch, L length, H horizon, A action, S stochastic, F feature, N = B*L,
E environments.
`action[t]` led to `image[t]`, `reward[t]` and `discount[t]`.
"""

import dataclasses
import os
import pathlib
import signal
import sys
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Off by default on processors without AVX-512, where it doubles the speed too.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')

import keras
import numpy as np
import tensorflow as tf

import configs
import logger
import models
import replay
import tools
import workers
import wrappers


class WorldModel(tf.Module):
    """Learns latent dynamics from images, actions and rewards (paper, section 2).

    Args:
      config: `configs.Config`.
      action_size: A.
    """

    def __init__(self, config, action_size):
        super().__init__('model')
        self._config = config
        self.encoder = models.Encoder(config.cnn_depth, config.cnn_act)
        self.rssm = models.RSSM(
            action_size, self.encoder.size, config.stoch_size, config.deter_size,
            config.rssm_units, config.dense_act)
        size = self.rssm.feature_size
        self.decoder = models.Decoder(size, config.cnn_depth, config.cnn_act)
        self.reward = models.ScalarHead(
            size, config.reward_layers, config.num_units, config.dense_act,
            name='reward')
        self.parts = [self.encoder, self.rssm, self.decoder, self.reward]
        if config.pcont:
            self.pcont = models.ScalarHead(
                size, 3, config.num_units, config.dense_act, 'binary', name='pcont')
            self.parts.append(self.pcont)

    @property
    def weights(self):
        """All trainable Keras variables."""
        return [weight for part in self.parts for weight in part.trainable_weights]

    def loss(self, data, noise):
        """The negative evidence lower bound (paper, equation 10).

        Args:
          data: batch of replay, [B, L, ...].
          noise: [B, L, S] of the posterior.

        Returns:
          scalar loss, posterior [B, L, ...], metrics.
        """
        config = self._config
        embed = self.encoder(data['image'])
        post, prior = self.rssm.observe(
            embed, data['action'], data['is_first'], noise)
        feature = self.rssm.feature(post)
        reward = data['reward']
        if config.clip_rewards == 'tanh':
            reward = tf.tanh(reward)
        losses = dict(
            image_loss=-tf.reduce_mean(self.decoder.dist(feature).log_prob(
                models.normalize_image(data['image']))),
            reward_loss=-tf.reduce_mean(self.reward.dist(feature).log_prob(reward)))
        total = losses['image_loss'] + losses['reward_loss']
        if config.pcont:
            losses['pcont_loss'] = -tf.reduce_mean(self.pcont.dist(feature).log_prob(
                config.discount * data['discount']))
            total += config.pcont_scale * losses['pcont_loss']
        kl = tools.gaussian_kl(post, prior)
        total += config.kl_scale * tools.free_nats(
            kl, config.free_nats, config.free_nats_per_step)
        return total, post, dict(
            losses, model_loss=total, div=tf.reduce_mean(kl),
            prior_ent=tf.reduce_mean(tools.gaussian_entropy(prior['std'])),
            post_ent=tf.reduce_mean(tools.gaussian_entropy(post['std'])))

    def discounts(self, feature):
        """p_t for imagined features [..., F]: gamma, or predicted: [...]."""
        if self._config.pcont:
            return self.pcont.dist(feature).mean()
        return tf.fill(tf.shape(feature)[:-1], self._config.discount)

    def openloop(self, data, noise, context=5):
        """Predict the images of `data` [B, L, ...] from `context` frames and actions.

        Returns:
          [B, L, 64, 64, 3] float32 in [0, 1]: reconstructions, then predictions.
        """
        post, _ = self.rssm.observe(
            self.encoder(data['image'][:, :context]), data['action'][:, :context],
            data['is_first'][:, :context], noise[:, :context])
        last = {key: value[:, -1] for key, value in post.items()}
        prior = self.rssm.imagine(
            last, data['action'][:, context:], noise[:, context:])
        feature = tf.concat([self.rssm.feature(post), self.rssm.feature(prior)], 1)
        return tf.clip_by_value(self.decoder(feature) + 0.5, 0, 1)


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
            feature_size, action_size, config.num_units, config.actor_layers,
            config.dense_act, config.action_dist, config.action_init_std)
        self.value = models.ScalarHead(
            feature_size, 3, config.num_units, config.dense_act, name='value')

    def imagine(self, rssm, start, latent_noise, action_noise):
        """Follow the actor through the latent dynamics.

        Args:
          rssm: `models.RSSM`.
          start: states [N, ...].
          latent_noise, action_noise: [H, N, S] and [H, N, A].

        Returns:
          features [H, N, F], without the start's, and log-probabilities [H, N] of the
          actions.
        """
        def step(previous, noise):
            state, _ = previous
            # The actor learns through its action alone: not by changing, one step
            # earlier, what it will see.
            policy = self.actor.dist(tf.stop_gradient(rssm.feature(state)))
            action = policy.sample(noise[1])
            return (rssm.imagine_step(state, action, noise[0]),
                    tf.stop_gradient(policy.log_prob(action)))

        initial = (start, tf.zeros(tf.shape(start['stoch'])[:1]))
        states, log_prob = tf.scan(step, (latent_noise, action_noise), initial)
        return rssm.feature(states), log_prob

    def losses(self, world, start, start_weight, latent_noise, action_noise):
        """Actor and value loss on imagined trajectories (equations 6 to 8).

        Args:
          world: `WorldModel`.
          start: posterior states [N, ...].
          start_weight: [N], 0 where the episode is over.
          latent_noise, action_noise: [H, N, S] and [H, N, A].

        Returns:
          actor loss, value loss, metrics.
        """
        start = tf.nest.map_structure(tf.stop_gradient, start)
        feature, log_prob = self.imagine(world.rssm, start, latent_noise, action_noise)
        reward = world.reward.dist(feature).mean()
        value = self.value.dist(feature)
        discount = world.discounts(feature)
        returns = tools.lambda_return(
            reward[:-1], value.mean()[1:], discount[:-1], self._config.disclam)
        weight = start_weight * tools.discount_weights(discount[:-1])
        actor_loss = -tf.reduce_mean(weight * returns)
        # Only the value network's gradient of this is used: one forward pass serves.
        target = tf.stop_gradient(returns)
        value_loss = -tf.reduce_mean(
            weight * tools.UnitNormal(value.mean()[:-1]).log_prob(target))
        return actor_loss, value_loss, dict(
            actor_loss=actor_loss, value_loss=value_loss,
            action_ent=-tf.reduce_mean(log_prob))


class Dreamer(tf.Module):
    """The agent: policy, training step, checkpoints.

    Args:
      config: `configs.Config` with its precision resolved.
      action_size: A.
    """

    MODE_SAMPLES = 100

    def __init__(self, config, action_size):
        super().__init__('dreamer')
        self._config = config
        self._action_size = action_size
        keras.config.set_dtype_policy(
            {'16': 'mixed_float16', 'bfloat16': 'mixed_bfloat16', '32': 'float32'}[
                config.precision])
        keras.utils.set_random_seed(config.seed)
        self.rng = tf.random.Generator.from_seed(config.seed)
        # Of its own: evaluating more or less often must not change the training.
        self.eval_rng = tf.random.Generator.from_seed(config.seed + 1)
        self.world = WorldModel(config, action_size)
        self.behavior = ActorCritic(config, self.world.rssm.feature_size, action_size)
        scale = config.precision == '16'
        self.optimizers = {
            name: tools.Optimizer(name, variables, rate, config.grad_clip, scale)
            for name, variables, rate in (
                ('model', self.world.weights, config.model_lr),
                ('actor', self.behavior.actor.trainable_weights, config.actor_lr),
                ('value', self.behavior.value.trainable_weights, config.value_lr))}
        self.gradient_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.env_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Where training began, [environment steps]; -1 while the prefill goes on.
        self.train_start = tf.Variable(-1, dtype=tf.int64, trainable=False)
        # No Python control flow depends on tensors: plain tracing is a third faster.
        self.train = tf.function(
            self._train, autograph=False, jit_compile=config.jit)

    def noise(self, batch, length):
        """All standard normal noise of one update."""
        config, normal = self._config, self.rng.normal
        rows = batch * length
        return dict(
            post=normal((batch, length, config.stoch_size)),
            latent=normal((config.horizon, rows, config.stoch_size)),
            action=normal((config.horizon, rows, self._action_size)))

    def _train(self, data):
        """One update of world model, actor and value network from a replay batch
        [B, L, ...]; returns scalar metrics."""
        return self.update(data, self.noise(*data['reward'].shape))

    def update(self, data, noise):
        """`train` with given noise."""
        model, actor, value = (
            self.optimizers[name] for name in ('model', 'actor', 'value'))
        with tf.GradientTape() as tape:
            loss, post, metrics = self.world.loss(data, noise['post'])
            loss = model.scaled(loss)
        metrics['model_grad_norm'] = model.apply(tape, loss)
        start = {key: tf.reshape(state, (-1, state.shape[-1]))
                 for key, state in post.items()}
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch([weight.value for part in (
                self.behavior.actor, self.behavior.value)
                for weight in part.trainable_weights])
            actor_loss, value_loss, more = self.behavior.losses(
                self.world, start, tf.reshape(data['discount'], (-1,)),
                noise['latent'], noise['action'])
            actor_loss = actor.scaled(actor_loss)
            value_loss = value.scaled(value_loss)
        metrics['actor_grad_norm'] = actor.apply(tape, actor_loss)
        metrics['value_grad_norm'] = value.apply(tape, value_loss)
        self.gradient_step.assign_add(1)
        return dict(metrics, **more)

    def policy(self, image, is_first, state, training):
        """Choose actions.

        Args:
          image: [E, 64, 64, 3] uint8.
          is_first: [E] bool; there the state is forgotten.
          state: of the call before, or `initial_state`.
          training: Python bool; explore, or act by the mode.

        Returns:
          actions [E, A] in [-1, 1] or one-hot, and the state to pass on: what the agent
          believes and the action that it really took.
        """
        config = self._config
        rng = self.rng if training else self.eval_rng
        belief, action = state
        latent = self.world.rssm.observe_step(
            belief, action, self.world.encoder(image), is_first,
            rng.normal(belief['stoch'].shape))
        policy = self.behavior.actor.dist(self.world.rssm.feature(latent))
        if training and config.expl_action == 'sample':
            action = policy.sample(rng.normal(action.shape))
        else:
            action = policy.mode(rng.normal((self.MODE_SAMPLES, *action.shape)))
        amount = tools.linear_schedule(
            config.expl_amount, config.expl_min, config.expl_decay,
            self.gradient_step) if training else config.eval_noise
        explore = (tools.epsilon_greedy if config.expl == 'epsilon_greedy'
                   else tools.add_gaussian)
        action = explore(action, amount, rng)
        return action, ({key: latent[key] for key in belief}, action)

    def initial_state(self, envs):
        """The policy's state before the first step in `envs` environments."""
        state = self.world.rssm.initial(envs)
        belief = {key: state[key] for key in ('deter', 'stoch')}
        return belief, tf.zeros((envs, self._action_size))

    @tf.function(autograph=False)
    def openloop(self, data):
        """A video of `data` [B, L, ...]: truth, model and error, one above the other.

        Returns:
          [L, 3*64, B*64, 3] uint8. The first five frames are reconstructions.
        """
        shape = (*data['reward'].shape, self._config.stoch_size)
        model = self.world.openloop(data, self.eval_rng.normal(shape))
        truth = tf.cast(data['image'], tf.float32) / 255
        video = tf.concat([truth, model, (model - truth + 1) / 2], 2)
        video = tf.transpose(video, (1, 2, 0, 3, 4))
        shape = video.shape
        video = tf.reshape(video, (*shape[:2], shape[2] * shape[3], 3))
        return tf.cast(tf.round(video * 255), tf.uint8)

    def check_finite(self, limit=50):
        """Raise FloatingPointError if a module's last `limit` gradients were all
        non-finite: more than float16's loss scale sheds while it settles."""
        for name, optimizer in self.optimizers.items():
            if optimizer.skipped_in_a_row >= limit:
                raise FloatingPointError(
                    f'the gradient of the {name} was not finite {limit} times in a '
                    'row; try --precision 32 or a lower learning rate')


class Policy:
    """The agent acting: keeps between calls what it believes and did.

    Args:
      agent: `Dreamer`.
      envs: E, environments that step together.
      training: explore, or act by the mode.
    """

    def __init__(self, agent, envs, training):
        state = tf.nest.map_structure(tf.Variable, agent.initial_state(envs))

        def act(image, is_first):
            action, new = agent.policy(image, is_first, state, training)
            tf.nest.map_structure(lambda old, value: old.assign(value), state, new)
            return action

        # On a CPU the call is many tiny operations, whose dispatch costs more than
        # they do: compiled, traced once, and without a state to pass in and out.
        gpu = tf.config.list_physical_devices('GPU')
        self._act = tf.function(
            act, autograph=False, jit_compile=not gpu).get_concrete_function(
                tf.TensorSpec((envs, 64, 64, 3), tf.uint8),
                tf.TensorSpec((envs,), tf.bool))

    def __call__(self, image, is_first):
        """[E, 64, 64, 3] uint8 and [E] bool, true where an episode starts, to actions
        [E, A] float32 in [-1, 1]."""
        return self._act(tf.constant(image), tf.constant(is_first)).numpy()


def fit_to_actions(config, space):
    """Settle the automatic action head and exploration by the action space; raises
    ConfigError where those that were asked for do not fit it."""
    discrete = isinstance(space, wrappers.OneHot)
    fitting = dict(
        action_dist='onehot' if discrete else 'tanh_normal',
        expl='epsilon_greedy' if discrete else 'additive_gaussian')
    for name, value in fitting.items():
        asked = getattr(config, name)
        if asked not in ('auto', value):
            raise configs.ConfigError(
                f'--{name} {asked} does not fit the '
                f"{'discrete' if discrete else 'continuous'} actions of {config.task}; "
                f'possible: auto, {value}')
    return dataclasses.replace(config, **fitting)


class Run:
    """One run: the agent, its environments, its replay and its logs.

    Args:
      config: `configs.Config`.
      envs, eval_envs: workers.
    """

    def __init__(self, config, envs, eval_envs):
        config = fit_to_actions(config, envs[0].action_space)
        self.config = config
        self.logdir = pathlib.Path(config.logdir)
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.action_size, = envs[0].action_space.shape
        self.agent = Dreamer(config, self.action_size)
        self.checkpoints = tf.train.CheckpointManager(
            tf.train.Checkpoint(agent=self.agent), str(self.logdir / 'checkpoints'), 2)
        self.restore()
        # The counters are part of the seeds: a resumed run must not draw the same
        # sequences, nor start the same episodes, as it did before.
        self.replay = replay.Replay(
            self.logdir / 'episodes', length=config.batch_length,
            seed=(config.seed, self.gradient_step), balance=config.dataset_balance,
            memory=int(config.replay_memory) or None)
        if self.replay.action_size not in (None, self.action_size):
            raise configs.ConfigError(
                f'the episodes in {self.logdir} have {self.replay.action_size} actions '
                f'and {config.task} has {self.action_size}; choose another --logdir')
        # After a crash there are episodes that are newer than the checkpoint.
        self.agent.env_step.assign(
            max(self.step, self.replay.steps * config.action_repeat))
        self.logger = logger.Logger(self.logdir)
        self.random = np.random.default_rng((config.seed, self.step))
        self.collector = workers.Collector(envs, config.seed, self.replay.episodes)
        self.eval_envs = eval_envs
        self.policy = Policy(self.agent, len(envs), training=True)
        self.eval_policy = Policy(self.agent, len(eval_envs), training=False)
        self.metrics = []
        self.stop = False
        self.log_start = (time.time(), self.step, self.gradient_step)

    @property
    def step(self):
        """Environment steps taken, prefill included."""
        return int(self.agent.env_step)

    @property
    def gradient_step(self):
        """Updates made."""
        return int(self.agent.gradient_step)

    @property
    def phases(self):
        """Training phases that the steps since the prefill have earned."""
        return (self.step - int(self.agent.train_start)) // self.config.train_every

    def loop(self):
        """Algorithm 1 of the paper."""
        config = self.config
        last = self.step if self.gradient_step else None
        should_eval = tools.Every(config.eval_every, last)
        should_log = tools.Every(config.log_every, last)
        should_save = tools.Every(config.save_every, last)
        self.prefill()
        while not self.stop:
            self.train()
            if should_log(self.step):
                self.log()
            if should_eval(self.step):
                self.evaluate()
            if self.step >= config.steps or self.stop:
                break
            if should_save(self.step):
                self.save()
            until = int(self.agent.train_start) + (self.phases + 1) * config.train_every
            self.collect(self.policy, min(until, config.steps))
        self.save()

    def prefill(self):
        """Collect with random actions, one whole episode at least."""
        started = self.agent.train_start >= 0
        if not started:
            print(f'collecting {self.config.prefill} steps with random actions',
                  flush=True)
            self.collect(self.random_policy, self.config.prefill)
        while not self.stop and not self.replay.episodes:
            self.collect(self.random_policy, self.step + 1)
        if not self.stop and not started:
            self.agent.train_start.assign(self.step)
            print(f'training begins with {self.config.pretrain} updates', flush=True)

    def collect(self, policy, until):
        """Act until `until` environment steps have been taken."""
        while self.step < until and not self.stop:
            steps, episodes = self.collector.step(policy)
            self.agent.env_step.assign_add(steps)
            for episode in episodes:
                self.replay.add(episode)
                self.log_episodes('train', [episode])

    def train(self):
        """The updates that are due: all of `pretrain`, and `train_steps` for every
        `train_every` environment steps, however collecting and resuming cut them."""
        config = self.config
        due = config.pretrain + self.phases * config.train_steps - self.gradient_step
        for batch in self.replay.stream(config.batch_size, max(0, due)):
            self.metrics.append(self.agent.train(batch))
            if len(self.metrics) % 50 == 0:
                self.agent.check_finite()
            if self.stop:
                break

    def evaluate(self):
        """One episode in every evaluation environment, and two videos."""
        episodes = []
        seed = np.random.SeedSequence((self.config.seed, 1, self.step))
        collector = workers.Collector(self.eval_envs, int(seed.generate_state(1)[0]))
        while len(episodes) < len(self.eval_envs) and not self.stop:
            episodes += collector.step(self.eval_policy)[1]
        if self.stop:
            return
        self.log_episodes('test', episodes)
        self.logger.video(self.step, 'eval', episodes[0]['image'])
        # What is looked at must not change what is trained on.
        state = self.replay.get_state()
        batch = self.replay.sample(self.config.batch_size)
        self.replay.set_state(state)
        # Six sequences, of one episode each where there are such.
        joined = batch['is_first'][:, 1:].any(1)
        rows = np.argsort(joined, kind='stable')[:6]
        video = self.agent.openloop({key: x[rows] for key, x in batch.items()})
        self.logger.video(self.step, 'openloop', video.numpy(), 10)

    def log(self):
        """Means of the losses since the last call, and speeds."""
        now = (time.time(), self.step, self.gradient_step)
        seconds, steps, updates = (
            new - old for new, old in zip(now, self.log_start, strict=True))
        values = {}
        for key in self.metrics[0] if self.metrics else ():
            # Steps that were skipped are counted below; their norms are infinite.
            numbers = np.array([metrics[key] for metrics in self.metrics])
            finite = numbers[np.isfinite(numbers)]
            values[key] = finite.mean() if finite.size else np.nan
        values.update(gradient_step=self.gradient_step, fps=steps / seconds,
                      updates_per_s=updates / seconds)
        values['episodes_skipped'] = self.replay.skipped
        for name, optimizer in self.agent.optimizers.items():
            values[f'{name}_skipped'] = int(optimizer.skipped)
        self.logger.scalars(self.step, values)
        self.metrics = []
        self.log_start = now

    def log_episodes(self, mode, episodes):
        """Mean raw return and length [agent steps] of episodes."""
        score = float(np.mean([episode['reward'].sum() for episode in episodes]))
        length = float(np.mean([len(episode['reward']) - 1 for episode in episodes]))
        self.logger.scalars(self.step, {
            f'{mode}/return': score, f'{mode}/length': length,
            'episodes': self.replay.episodes})
        print(f'step {self.step}: {mode} return {score:.1f}, length {length:.0f}',
              flush=True)

    def random_policy(self, image, is_first):
        """Uniform actions."""
        if self.config.action_dist == 'onehot':
            choices = self.random.integers(self.action_size, size=len(image))
            return np.eye(self.action_size, dtype=np.float32)[choices]
        return self.random.uniform(-1, 1, (len(image), self.action_size))

    def save(self):
        """Write a checkpoint: networks, optimisers, loss scales, counters, noise."""
        self.checkpoints.save()

    def restore(self):
        """Load the newest checkpoint, if there is one."""
        path = self.checkpoints.latest_checkpoint
        if path:
            try:
                status = self.checkpoints.checkpoint.restore(path)
                status.assert_existing_objects_matched()
            except (ValueError, AssertionError, tf.errors.OpError) as error:
                raise configs.ConfigError(
                    f'{path} is damaged or of another network '
                    f'({str(error).splitlines()[0]})') from None
            print(f'resumed at step {self.step}', flush=True)

    def request_stop(self, number, frame):
        """Signal handler: finish the current step, save, exit. A second signal ends the
        program at once."""
        self.stop = True
        signal.signal(number, signal.SIG_DFL)
        print('stopping: saving first, again to quit at once', file=sys.stderr)


def main(argv=None):
    """The command line; returns the exit code."""
    try:
        config = configs.parse(argv)
        logdir = pathlib.Path(config.logdir)
        config_path = logdir / 'config.json'
        changes = configs.differences(config, config_path)
        if changes and not config.allow_config_change:
            raise configs.ConfigError(
                f"{logdir} belongs to another configuration ({'; '.join(changes)}); "
                'choose another --logdir or add --allow_config_change true')
        tools.keep_freed_memory()
        config, devices = tools.set_up_devices(config)
        kwargs = {name: getattr(config, name) for name in configs.ENVIRONMENT_FLAGS}
        envs = workers.make_workers(
            config.task, config.envs + 1, kwargs, config.parallel, devices,
            config.worker_timeout, evaluation=1)
    except (ValueError, RuntimeError, OSError) as error:
        configs.fail(error)
    try:
        try:
            run = Run(config, envs[:-1], envs[-1:])
            configs.write(config, config_path)
        except (configs.ConfigError, OSError) as error:
            configs.fail(error)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, run.request_stop)
        try:
            run.loop()
        except (workers.WorkerError, FloatingPointError, OSError) as error:
            print(f'dreamer: stopped: {error}', file=sys.stderr)
            if isinstance(error, workers.WorkerError):
                run.save()
            return 1
        finally:
            run.logger.close()
    finally:
        for env in envs:
            env.close()


if __name__ == '__main__':
    sys.exit(main())
