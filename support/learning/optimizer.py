"""The optimiser of all networks: Adam with clipped and scaled gradients. It skips steps
with non-finite numbers.
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
      name: of the trained module, for messages and metrics.
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
        # Created without scaling too, because a run may resume in float16.
        self.loss_scale = tf.Variable(2.0**15, trainable=False)
        # int64: TensorFlow keeps int32 variables on the host, where XLA can't use them.
        self.good_steps, self.skipped, self.skipped_in_a_row = (
            tf.Variable(0, trainable=False, dtype=tf.int64) for _ in range(3)
        )

    @property
    def parameters(self):
        """The number of trained parameters."""
        return sum(math.prod(variable.shape) for variable in self._variables)

    @property
    def updates(self):
        """The number of steps taken, without skipped ones; an int64 variable."""
        return self._adam.iterations

    @property
    def weights(self):
        """The trained variables and Adam's averages."""
        return [*self._variables, *self._adam.variables]

    def without_averages(self):
        """Return a module with only the trained variables, named as in a checkpoint."""
        trained = tf.Module()
        trained._variables = self._variables
        return trained

    def apply(self, tape, loss):
        """Differentiate a scalar loss and take one step; return the norm before
        clipping.
        """
        scale = self.loss_scale if self._scale_loss else tf.constant(1.0)
        gradients = tape.gradient(loss, self._variables, output_gradients=scale)
        # One vector, because a GPU's time depends on the number of operations. The loss
        # is checked too: a maximum can hide a NaN and have a finite gradient.
        gradient, loss = replicas.mean(
            [tf.concat([tf.reshape(x, (-1,)) for x in gradients], 0), loss]
        )
        norm = tf.sqrt(2 * tf.nn.l2_loss(gradient))
        finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        factor = self._clip / tf.maximum(norm, self._clip * scale)
        # A factor of 0 makes zeros even of non-finite numbers.
        clipped = tf.math.multiply_no_nan(gradient, tf.where(finite, factor, 0.0))
        parts = tf.split(clipped, [math.prod(x.shape) for x in self._variables])
        replicas.once_for_all(self._step, parts, finite)
        return norm / scale

    def _step(self, gradients, finite):
        """Take the step of Keras' Adam with 1 operation a variable, where Keras has 22.

            m += (1 - b1) (g - m),  v += (1 - b2) (g^2 - v)
            w -= rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)

        A skipped step has a rate of 0 and b1 = b2 = 1, which change nothing. In a
        branch, a GPU would wait for the host.
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

        # Keras' Adam holds the averages, so that checkpoints have its names.
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
