"""The optimiser of all networks: Adam with clipped and scaled gradients, which leaves
out steps whose numbers are not finite.
"""

import math

import keras
import tensorflow as tf

from support.learning import replicas


class Optimizer(tf.Module):
    """Adam with a clipped global norm, loss scaling, and no step on non-finite numbers.

    The loss scale (float16 only) halves at every non-finite gradient and doubles after
    `GROW_AFTER` good steps in a row.

    Args:
      name: of the module it trains, for messages and metrics.
      variables: Keras variables, float32.
      learning_rate, epsilon: of Adam; other settings are Keras' defaults.
      clip: largest global gradient norm.
      scale_loss: whether gradients pass through float16.
    """

    GROW_AFTER = 1000

    def __init__(
        self, name, variables, learning_rate, clip, epsilon=1e-7, scale_loss=False
    ):
        super().__init__(name)
        self._variables = variables
        self._clip = clip
        self._scale_loss = scale_loss
        self._adam = keras.optimizers.Adam(learning_rate, epsilon=epsilon)
        self._adam.build(variables)
        # Unused without scaling, but a run may go on in float16.
        self.loss_scale = tf.Variable(2.0**15, trainable=False)
        # Of 64 bits: TensorFlow keeps int32 variables on the host, out of XLA's reach.
        self.good_steps, self.skipped, self.skipped_in_a_row = (
            tf.Variable(0, trainable=False, dtype=tf.int64) for _ in range(3)
        )

    @property
    def parameters(self):
        """How many numbers it trains."""
        return sum(math.prod(variable.shape) for variable in self._variables)

    @property
    def updates(self):
        """How many steps it has taken, without those left out; an int64 variable."""
        return self._adam.iterations

    @property
    def weights(self):
        """The variables that it trains, and Adam's averages."""
        return [*self._variables, *self._adam.variables]

    def without_averages(self):
        """Return a module of what it trains alone, by the names of a checkpoint."""
        trained = tf.Module()
        trained._variables = self._variables
        return trained

    def apply(self, tape, loss):
        """Differentiate a scalar loss and take one step; return the norm before
        clipping.
        """
        scale = self.loss_scale if self._scale_loss else tf.constant(1.0)
        gradients = tape.gradient(loss, self._variables, output_gradients=scale)
        # As one vector: on a GPU it is the number of operations that takes time. The
        # loss too: a maximum has a finite gradient where it hides a NaN.
        gradient, loss = replicas.mean(
            [tf.concat([tf.reshape(x, (-1,)) for x in gradients], 0), loss]
        )
        norm = tf.sqrt(2 * tf.nn.l2_loss(gradient))
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        factor = self._clip / tf.maximum(norm, self._clip * scale)
        # Zero, also where a number is not finite, if the step is to be skipped.
        clipped = tf.math.multiply_no_nan(gradient, tf.where(finite, factor, 0.0))
        parts = tf.split(clipped, [math.prod(x.shape) for x in self._variables])
        replicas.once_for_all(self._step, parts, finite)
        return norm / scale

    def _step(self, gradients, finite):
        """One step of Keras' Adam, an operation a variable where Keras has 22.

            m += (1 - b1) (g - m),  v += (1 - b2) (g^2 - v)
            w -= rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)

        With a rate of 0 and b1 = b2 = 1 nothing changes: there is no branch, in which a
        GPU would wait for the host.
        """
        adam = self._adam
        step = tf.cast(adam.iterations + 1, tf.float32)
        settings = dict(
            beta1_power=adam.beta_1**step,
            beta2_power=adam.beta_2**step,
            lr=tf.where(finite, adam.learning_rate, 0.0),
            beta1=tf.where(finite, adam.beta_1, 1.0),
            beta2=tf.where(finite, adam.beta_2, 1.0),
            epsilon=adam.epsilon,
        )

        def update(weight, m, v, gradient):
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=m.handle,
                v=v.handle,
                grad=tf.reshape(gradient, weight.shape),
                **settings,
            )

        # Those of Keras' Adam, so that checkpoints have its names.
        averages = adam._momentums, adam._velocities
        for *variables, gradient in zip(
            self._variables, *averages, gradients, strict=True
        ):
            variables = (variable.value for variable in variables)
            replicas.for_each_copy(update, *variables, gradient)
        adam.iterations.assign_add(tf.cast(finite, tf.int64))
        self._count(finite)

    def _count(self, finite):
        bad = 1 - tf.cast(finite, tf.int64)
        self.skipped.assign_add(bad)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * bad)
        if self._scale_loss:
            good = (self.good_steps + 1) * (1 - bad)
            grow = good >= self.GROW_AFTER
            self.good_steps.assign(tf.where(grow, tf.zeros_like(good), good))
            self.loss_scale.assign(
                self.loss_scale * tf.where(finite, tf.where(grow, 2.0, 1.0), 0.5)
            )
