"""What an open-loop prediction looks like beside what happened: frames of images, a
plot of state vectors.

Shapes: B sequences, L length, V state vector.
"""

import io

import numpy as np

MOST_COMPONENTS = 24  # of a state vector, in a plot


def compare_images(truth, predicted):
    """Put real image, prediction and error side by side.

    Args:
      truth: [B, L, 64, 64, 3] uint8.
      predicted: [B, L, 64, 64, 3] in [0, 1].

    Returns:
      [L, B, 3, 64, 64, 3] uint8.
    """
    truth, predicted = np.float32(truth) / 255, np.asarray(predicted)
    error = (predicted - truth + 1) / 2
    rows = np.stack([truth, predicted, error], 2)
    return np.round(255 * rows).astype(np.uint8).swapaxes(0, 1)


def frames(truth, predicted):
    """The video of `compare_images`: real images above predictions above errors, a
    column a sequence, [L, 3*64, B*64, 3] uint8.
    """
    rows = compare_images(truth, predicted).transpose(0, 2, 3, 1, 4, 5)
    return rows.reshape(len(rows), 3 * 64, -1, 3)


def plot(truth, predicted, context):
    """A PNG file, as bytes, of the components of state vectors over time: what
    happened, and the prediction from the first `context` steps, which are shaded.

    Args:
      truth, predicted: [B, L, V]; a column is drawn for each of B sequences.
      context: steps that the prediction has seen.
    """
    from matplotlib.figure import Figure  # Only here: it takes a while.

    sequences, length, size = truth.shape
    shown = min(size, MOST_COMPONENTS)
    figure = Figure((3.2 * sequences, 0.5 + 0.75 * shown), layout='constrained')
    axes = figure.subplots(shown, sequences, sharex=True, squeeze=False)
    for component in range(shown):
        for sequence in range(sequences):
            ax = axes[component, sequence]
            ax.axvspan(0, context - 1, color='0.9', linewidth=0)
            for values, style in (
                (truth, dict(color='0.3')),
                (predicted, dict(color='C1', linestyle='--')),
            ):
                ax.plot(values[sequence, :, component], linewidth=1, **style)
            ax.tick_params(labelsize=6)
        axes[component, 0].set_ylabel(f'{component}', fontsize=7, labelpad=8)
    axes[0, 0].plot([], [], color='0.3', label='real')
    axes[0, 0].plot([], [], color='C1', linestyle='--', label='predicted')
    axes[0, 0].legend(fontsize=6, loc='upper right')
    rest = f', the first {shown} of {size} components' * (shown < size)
    figure.supxlabel(f'agent steps; shaded: seen{rest}', fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=100)
    return buffer.getvalue()
