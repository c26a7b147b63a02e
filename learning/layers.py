"""Keras' layers in forms that TensorFlow computes faster on a CPU, and a loss in a form
that takes less memory.

The layers have the weights of those that they derive from, and compute the same; tests
compare values and gradients. What each form gains is in `benchmarks/README.md`. Where
Keras' own form is better, on a GPU and in half precision, they use it.
"""

import keras
import tensorflow as tf


def _keras_is_faster(layer):
    return layer.compute_dtype != 'float32' or bool(
        tf.config.list_physical_devices('GPU')
    )


class Conv2D(keras.layers.Conv2D):
    """Conv2D, 'valid', whose bias is a sum.

    The gradient of Keras' bias is fused with that of the kernel, in an operation that
    takes three times as long as both where images have three channels.
    """

    def call(self, inputs):
        if _keras_is_faster(self):
            return super().call(inputs)
        outputs = tf.nn.conv2d(inputs, self.kernel, self.strides, 'VALID')
        return self.activation(outputs + self.bias)


class WinogradConv2D(keras.layers.Conv2D):
    """Conv2D, 'valid', kernel 4, stride 2, of images [N, 6, 6, C] to [N, 2, 2, c].

    In blocks of 2x2 pixels it is a convolution with a kernel of two by two blocks.
    Along each axis two outputs take three products of matrices instead of four
    (Winograd's F(2, 2)):

        d0 g0 + d1 g1 = (d0 - d1) g0 + d1 (g0 + g1)
        d1 g0 + d2 g1 = (d2 - d1) g1 + d1 (g0 + g1)

    With few images the sums of the kernel would take longer than the products, and what
    each output sees is multiplied by the kernel as it is.
    """

    FEW = 64

    def call(self, inputs):
        if _keras_is_faster(self):
            return super().call(inputs)
        images = inputs.shape[0]
        few = images is not None and images < self.FEW
        outputs = self._patches(inputs) if few else self._winograd(inputs)
        return self.activation(outputs + self.bias)

    def _patches(self, inputs):
        patches = tf.stack(
            [
                tf.stack([inputs[:, i : i + 4, j : j + 4] for j in (0, 2)], 1)
                for i in (0, 2)
            ],
            1,
        )
        kernel = tf.reshape(self.kernel, (-1, self.filters))
        outputs = tf.matmul(tf.reshape(patches, (-1, kernel.shape[0])), kernel)
        return tf.reshape(outputs, (-1, 2, 2, self.filters))

    def _winograd(self, inputs):
        pixels = self._both_axes(
            lambda d: (d[0] - d[1], d[1], d[2] - d[1]), self._blocks(inputs, 3)
        )
        kernel = self._both_axes(
            lambda g: (g[0], g[0] + g[1], g[1]),
            self._blocks(tf.transpose(self.kernel, (3, 0, 1, 2)), 2),
        )
        products = [
            [tf.matmul(a, b, transpose_b=True) for a, b in zip(*rows, strict=True)]
            for rows in zip(pixels, kernel, strict=True)
        ]
        outputs = self._both_axes(lambda m: (m[0] + m[1], m[1] + m[2]), products)
        return tf.stack([tf.stack(row, 1) for row in outputs], 1)

    @staticmethod
    def _blocks(x, size):
        """[N, 2 size, 2 size, C] to rows and columns of blocks [N, 4C]."""
        x = tf.reshape(x, (-1, size, 2, size, 2, x.shape[-1]))
        x = tf.transpose(x, (1, 3, 0, 2, 4, 5))
        x = tf.reshape(x, (size, size, -1, 4 * x.shape[-1]))
        return [tf.unstack(row) for row in tf.unstack(x)]

    @staticmethod
    def _both_axes(transform, rows):
        """Rows of columns, transformed along either axis."""
        columns = zip(*[transform(row) for row in rows], strict=True)
        return list(zip(*[transform(column) for column in columns], strict=True))


class ProjectConv2DTranspose(keras.layers.Conv2DTranspose):
    """Conv2DTranspose, 'valid', of a 1x1 input, which is a matrix product.

    TensorFlow's CPU kernel takes 75 times as long for it.
    """

    def call(self, inputs):
        inputs = tf.reshape(inputs, (-1, inputs.shape[-1]))
        kernel = tf.reshape(self.kernel, (-1, inputs.shape[-1]))
        outputs = tf.matmul(inputs, kernel, transpose_b=True)
        outputs = tf.reshape(outputs, (-1, *self.kernel_size, self.filters))
        return self.activation(outputs + self.bias)


class SubPixelConv2DTranspose(keras.layers.Conv2DTranspose):
    """Conv2DTranspose, 'valid', stride 2, even kernel, as a convolution that computes
    the four phases of every 2x2 block and a `depth_to_space`.

    Where there are as few channels as in an image, TensorFlow's CPU kernel takes twice
    as long; its gradients are fast and stay. The bias is added in float32, as in no
    layer of Keras': its gradient, a sum over all pixels, would overflow in float16.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, autocast=False, **kwargs)

    def call(self, inputs):
        if _keras_is_faster(self):
            outputs = keras.ops.conv_transpose(
                inputs, tf.cast(self.kernel, inputs.dtype), self.strides, 'valid'
            )
            return self.activation(tf.cast(outputs, tf.float32) + self.bias)
        return self.activation(
            _sub_pixel(inputs, *map(tf.convert_to_tensor, (self.kernel, self.bias)))
        )


@tf.custom_gradient
def _sub_pixel(inputs, kernel, bias):
    """[N, h, w, C], [k, k, c, C] and [c] to [N, 2h + k - 2, 2w + k - 2, c]."""
    half, (channels, deep) = kernel.shape[0] // 2, kernel.shape[2:]
    # Pixel 2i + p is the sum over a of kernel[2a + p] inputs[i - a].
    phases = tf.reshape(kernel, (half, 2, half, 2, channels, deep))[::-1, :, ::-1]
    phases = tf.reshape(
        tf.transpose(phases, (0, 2, 5, 1, 3, 4)), (half, half, deep, 4 * channels)
    )
    margin = [half - 1] * 2
    padded = tf.pad(inputs, [[0, 0], margin, margin, [0, 0]])
    outputs = tf.nn.conv2d(padded, phases, 1, 'VALID') + tf.tile(bias, [4])
    outputs = tf.nn.depth_to_space(outputs, 2)

    def gradient(upstream):
        # Sums over long rows are faster than over three channels.
        columns = tf.reduce_sum(
            tf.reshape(upstream, (-1, outputs.shape[2] * channels)), 0
        )
        return (
            tf.nn.conv2d(upstream, kernel, 2, 'VALID'),
            tf.raw_ops.Conv2DBackpropFilter(
                input=upstream,
                filter_sizes=kernel.shape,
                out_backprop=inputs,
                strides=[1, 2, 2, 1],
                padding='VALID',
            ),
            tf.reduce_sum(tf.reshape(columns, (-1, channels)), 0),
        )

    return outputs, gradient


class GRUCell(keras.layers.GRUCell):
    """GRUCell with `reset_after` that cuts its products by splits.

    Keras cuts slices, whose gradients are three arrays of zeros to fill and to add.
    """

    def call(self, inputs, state):
        bias, state_bias = tf.unstack(tf.convert_to_tensor(self.bias))
        parts = tf.split(tf.matmul(inputs, self.kernel) + bias, 3, -1)
        state_parts = tf.split(
            tf.matmul(state, self.recurrent_kernel) + state_bias, 3, -1
        )
        update, reset = (
            tf.sigmoid(part + state_part)
            for part, state_part in zip(parts[:2], state_parts[:2], strict=True)
        )
        new = tf.tanh(parts[2] + reset * state_parts[2])
        state = new + update * (state - new)
        return state, state


PART = 500


def mean_loss(losses, layer, inputs, targets):
    """The mean of a layer's losses over rows, of which a tape has the gradient already.

    What many rows leave in memory for their gradient is most of what training needs, so
    rows are differentiated `PART` at a time, one part after the other. Not in half
    precision, where the gradient would miss the loss scale.

    Args:
      losses: function of `inputs` and `targets`, [N, ...] each, to losses [N].
      layer: the only one that `losses` calls.
      inputs, targets: of all rows; targets have no gradient.

    Returns:
      scalar.
    """
    rows = inputs.shape[0]
    if rows <= PART or _keras_is_faster(layer):
        return tf.reduce_mean(losses(inputs, targets))
    weights = layer.trainable_weights
    total, sums, of_inputs = 0.0, [0.0] * len(weights), []
    for start in range(0, rows, PART):
        with tf.control_dependencies(of_inputs[-1:]):
            some = inputs[start : start + PART]
        with tf.GradientTape() as tape:
            tape.watch(some)
            loss = tf.reduce_sum(losses(some, targets[start : start + PART])) / rows
        *gradients, of_some = tape.gradient(loss, [*weights, some])
        total += loss
        sums = [a + b for a, b in zip(sums, gradients, strict=True)]
        of_inputs.append(of_some)

    @tf.custom_gradient
    def differentiated(*_):
        return total, lambda upstream: [
            upstream * gradient for gradient in (tf.concat(of_inputs, 0), *sums)
        ]

    return differentiated(inputs, *map(tf.convert_to_tensor, weights))
