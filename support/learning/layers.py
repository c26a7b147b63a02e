"""Keras' layers in forms that TensorFlow computes faster or more exactly on a CPU, and
recurrences.

Each layer has the weights of the Keras layer that it derives from and computes the
same values; tests compare values and gradients. `benchmarks/README.md` lists what each
form gains. On a GPU the layers use Keras' forms, which are faster there.
"""

import contextlib

import keras
import tensorflow as tf


def _on_gpu():
    return bool(tf.config.list_physical_devices('GPU'))


@contextlib.contextmanager
def in_float32(parts):
    """Trace all layers of `parts` in float32 in this context.

    In half precision each call casts all weights. For few rows these casts take longer
    than the products.
    """
    found = [layer for part in parts for layer in part._flatten_layers()]
    before = [
        (layer.dtype_policy, getattr(layer, '_products', None)) for layer in found
    ]

    def use(layer, policy, products):
        layer.dtype_policy = policy
        if products:
            layer._products = products

    for layer, (_, products) in zip(found, before, strict=True):
        use(layer, 'float32', products and 'float32')
    try:
        yield
    finally:
        for layer, settings in zip(found, before, strict=True):
            use(layer, *settings)


def _summed_in(dtype):
    """Return the dtype of a recurrence's state, and of its weights' gradients, which
    are sums over steps. bfloat16 has too few digits for such sums.
    """
    return 'float32' if dtype == 'bfloat16' else dtype


def _as(dtype, *values):
    return [tf.cast(value, dtype) for value in values]


def _add_bias(outputs, bias):
    """Add a bias, whose gradient is summed in float32.

    In half precision TensorFlow's CPU kernel for the gradient of `bias_add` sums in
    half precision, too. Its error is a half for 37,500 rows, and larger for images.
    """
    if outputs.dtype != tf.float16:
        return outputs + bias

    # In float16 even the gradient of a plain sum needs this.
    @tf.custom_gradient
    def add(outputs, bias):
        def gradient(upstream):
            rows = tf.reshape(tf.cast(upstream, tf.float32), (-1, bias.shape[0]))
            return upstream, tf.cast(tf.reduce_sum(rows, 0), bias.dtype)

        return outputs + bias, gradient

    return add(outputs, tf.convert_to_tensor(bias))


class Dense(keras.layers.Dense):
    """Dense with `_add_bias` in half precision on a CPU."""

    def call(self, inputs):
        if self.compute_dtype == 'float32' or _on_gpu():
            return super().call(inputs)
        rows = tf.reshape(inputs, (-1, inputs.shape[-1]))
        outputs = self.activation(_add_bias(tf.matmul(rows, self.kernel), self.bias))
        shape = tf.concat([tf.shape(inputs)[:-1], [self.units]], 0)
        outputs = tf.reshape(outputs, shape)
        return tf.ensure_shape(outputs, (*inputs.shape[:-1], self.units))


class Conv2D(keras.layers.Conv2D):
    """Conv2D, 'valid', with `_add_bias` on a CPU.

    In float32 TensorFlow fuses the gradient of Keras' bias with that of the kernel, in
    an operation that takes three times as long as both where images have three
    channels.
    """

    def call(self, inputs):
        if _on_gpu():
            return super().call(inputs)
        outputs = tf.nn.conv2d(inputs, self.kernel, self.strides, 'VALID')
        return self.activation(_add_bias(outputs, self.bias))


class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """Conv2DTranspose, 'valid', with `_add_bias` in half precision on a CPU."""

    def call(self, inputs):
        if self.compute_dtype == 'float32' or _on_gpu():
            return super().call(inputs)
        outputs = keras.ops.conv_transpose(inputs, self.kernel, self.strides, 'valid')
        return self.activation(_add_bias(outputs, self.bias))


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
        if _on_gpu():
            return super().call(inputs)
        images = inputs.shape[0]
        few = images is not None and images < self.FEW
        outputs = self._patches(inputs) if few else self._winograd(inputs)
        return self.activation(_add_bias(outputs, self.bias))

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
        return self.activation(_add_bias(outputs, self.bias))


class SubPixelConv2DTranspose(keras.layers.Conv2DTranspose):
    """Conv2DTranspose, 'valid', stride 2, even kernel, in sub-pixels.

    The bias is added in float32, as in no layer of Keras': its gradient, a sum over all
    pixels, would overflow in float16.
    """

    def __init__(self, *args, **kwargs):
        self._products = keras.config.dtype_policy().compute_dtype
        super().__init__(*args, dtype='float32', autocast=False, **kwargs)

    def call(self, inputs):
        inputs, kernel = _as(self._products, inputs, self.kernel)
        if _on_gpu():
            outputs = keras.ops.conv_transpose(inputs, kernel, self.strides, 'valid')
            return self.activation(tf.cast(outputs, tf.float32) + self.bias)
        bias = tf.convert_to_tensor(self.bias)
        return self.activation(_sub_pixel(inputs, kernel, bias))


@tf.custom_gradient
def _sub_pixel(inputs, kernel, bias):
    """[N, h, w, C], [k, k, c, C] and [c] to [N, 2h + k - 2, 2w + k - 2, c], which has
    the bias' dtype: a transposed convolution as one that computes the four phases of
    every 2x2 block, and a `depth_to_space`.

    Where there are few channels TensorFlow's CPU kernel takes twice as long; its
    gradients are fast and stay.
    """
    half, (channels, deep) = kernel.shape[0] // 2, kernel.shape[2:]
    # Pixel 2i + p is the sum over a of kernel[2a + p] inputs[i - a].
    phases = tf.reshape(kernel, (half, 2, half, 2, channels, deep))[::-1, :, ::-1]
    phases = tf.reshape(
        tf.transpose(phases, (0, 2, 5, 1, 3, 4)), (half, half, deep, 4 * channels)
    )
    margin = [half - 1] * 2
    padded = tf.pad(inputs, [[0, 0], margin, margin, [0, 0]])
    outputs = tf.cast(tf.nn.conv2d(padded, phases, 1, 'VALID'), bias.dtype)
    outputs = tf.nn.depth_to_space(outputs + tf.tile(bias, [4]), 2)

    def gradient(upstream):
        # Sums over long rows are faster than over three channels.
        columns = tf.reduce_sum(
            tf.reshape(upstream, (-1, outputs.shape[2] * channels)), 0
        )
        of_products = tf.cast(upstream, inputs.dtype)
        return (
            tf.nn.conv2d(of_products, kernel, 2, 'VALID'),
            tf.raw_ops.Conv2DBackpropFilter(
                input=of_products,
                filter_sizes=kernel.shape,
                out_backprop=inputs,
                strides=[1, 2, 2, 1],
                padding='VALID',
            ),
            tf.reduce_sum(tf.reshape(columns, (-1, channels)), 0),
        )

    return outputs, gradient


class JoinedDense(Dense):
    """A dense layer of two inputs side by side, of which one may be there before."""

    def split(self, early):
        """Split the layer: act([x, y] W + b) = act(x W_x + (y W_y + b)).

        Args:
          early: y, the last inputs, [..., Y].

        Returns:
          the function of x, its share (the part in brackets) and W_x; the shares
          [..., units] of all y, computed at once; and W_x.
        """
        dtype = self.compute_dtype
        kernel = tf.cast(self.kernel, _summed_in(dtype))
        kernels = tf.split(kernel, [kernel.shape[0] - early.shape[-1], early.shape[-1]])
        rows = tf.reshape(early, (-1, early.shape[-1]))
        shares = tf.matmul(*_as(dtype, rows, kernels[1]))
        shares = _add_bias(shares, tf.cast(self.bias, dtype))

        def rest(x, share, kernel):
            return self.activation(tf.matmul(*_as(dtype, x, kernel)) + share)

        return rest, tf.reshape(shares, (*early.shape[:-1], self.units)), kernels[0]


class GRUCell(keras.layers.GRUCell):
    """GRUCell with `reset_after` that computes only its products in bfloat16. Gates
    and state are float32, since errors of the state add up over a sequence.

    The products are split. Keras takes slices of them, whose gradients are more kernels
    for a GPU to start. On a CPU both take the same time.
    """

    def __init__(self, *args, **kwargs):
        self._products = keras.config.dtype_policy().compute_dtype
        super().__init__(*args, dtype='float32', autocast=False, **kwargs)

    @property
    def state_dtype(self):
        """What gates and state are kept in."""
        return _summed_in(self._products)

    def call(self, inputs, state):
        (state,) = _as(self.state_dtype, state)

        def product(values, kernel, bias):
            product = tf.matmul(*_as(self._products, values, kernel))
            product = tf.add(*_as(self.state_dtype, product, bias))
            return tf.split(product, [2 * self.units, self.units], -1)

        bias, state_bias = tf.unstack(tf.convert_to_tensor(self.bias))
        gates, new = product(inputs, self.kernel, bias)
        state_gates, state_new = product(state, self.recurrent_kernel, state_bias)
        update, reset = tf.split(tf.sigmoid(gates + state_gates), 2, -1)
        new = tf.tanh(new + reset * state_new)
        state = new + update * (state - new)
        return state, state


_loops_kept = False


@contextlib.contextmanager
def keep_loops():
    """Trace recurrences as loops in this context, with a GPU too. XLA compiles loops
    well.
    """
    global _loops_kept
    before, _loops_kept = _loops_kept, True
    try:
        yield
    finally:
        _loops_kept = before


def scan(step, inputs, initial, parts, shared=()):
    """Return all states of a recurrence, s_t = step(s_{t-1}, x_t).

    With a GPU the steps are unrolled. In a TensorFlow loop the host decides before
    every step whether to go on, and waits for the GPU each time. On a CPU a loop is as
    fast and is traced much sooner.

    The weights of `parts` are read, and cast to float16 if their layers compute in it,
    once before the first step. A loop would do both again in every step.

    Args:
      step: function of a state, the inputs of one step and `shared` to the next state.
      inputs: structure of tensors [T, ...], T known.
      initial: the state s_0, a structure of tensors [...].
      parts: layers that `step` calls.
      shared: further tensors that are the same in all steps, used in products by the
        first of `parts`.

    Returns:
      s_1 to s_T, a structure of tensors [T, ...].
    """
    weights, values, used = [], [], []
    for layer in (layer for part in parts for layer in part._flatten_layers()):
        kept = getattr(layer, 'state_dtype', _summed_in(layer.compute_dtype))
        products = getattr(layer, '_products', layer.compute_dtype)
        biases = getattr(layer, 'state_dtype', layer.compute_dtype)
        for weight in layer._trainable_variables:
            weights.append(weight)
            values.append(tf.cast(weight, kept))
            used.append(products if 'kernel' in weight.name else biases)
    values += shared
    used += [parts[0].compute_dtype] * len(shared)

    def run(state, inputs, values):
        scope = keras.StatelessScope()
        # Handed over one by one: the constructor would cast them back.
        for pair in zip(weights, values, strict=False):
            scope.add_update(pair)
        with scope:
            return step(state, inputs, *values[len(weights) :])

    if _loops_kept or not _on_gpu():
        return tf.scan(lambda state, row: run(state, row, values), inputs, initial)
    columns = [tf.unstack(x) for x in tf.nest.flatten(inputs)]
    steps = len(columns[0])
    copies = [_deal(*each, steps) for each in zip(values, used, strict=True)]
    states = [initial]
    for *row, own in zip(*columns, zip(*copies, strict=True), strict=True):
        row = tf.nest.pack_sequence_as(inputs, row)
        states.append(run(states[-1], row, list(own)))
    return tf.nest.map_structure(lambda *steps: tf.stack(steps), *states[1:])


def _deal(value, dtype, steps):
    """Return a copy of a tensor for each step, cast to `dtype`.

    Their gradients are summed in the tensor's dtype, all at once. A cast for each would
    be a sixth of all kernels that a GPU starts in an update.
    """
    if value.dtype == dtype:
        return [value] * steps

    @tf.custom_gradient
    def deal(value):
        def gradient(*upstream):
            return tf.reduce_sum(tf.cast(tf.stack(upstream), value.dtype), 0)

        return [tf.cast(value, dtype)] * steps, gradient

    return deal(value)
