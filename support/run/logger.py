"""Where a run's results go: metrics file, TensorBoard, videos."""

import io
import itertools
import os
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image

from support.run import startup
from support.storage import metrics
from support.system import atomic, faults

# Groups of TensorBoard's scalars by the first word of a metric; others are the world
# model's losses. Names with a group of their own, such as test/return, keep it.
TAG_GROUPS = dict(
    actor='actor',
    action='actor',
    value='value',
    fps='time',
    updates='time',
    jit='time',
    gradient='time',
    episodes='replay',
)


# Pixels of a video, 2048 frames of 64x64: noise, which compresses worst, takes 12 MB.
LARGEST_VIDEO = 2**23


def tag(key):
    """The name in TensorBoard of the metric `key`, with its group."""
    return key if '/' in key else f'{TAG_GROUPS.get(key.split("_")[0], "model")}/{key}'


class Logger:
    """Write `metrics.jsonl`, TensorBoard events and `videos/*.gif` under `logdir`.

    Args:
      logdir: folder that exists.
      size: bytes of `metrics.jsonl` that belong to the checkpoint from which the run
        goes on. What is behind them tells of what is done again; it is moved to
        `metrics_undone.jsonl`.

    All methods raise OSError if something could not be written.
    """

    def __init__(self, logdir, size=0):
        self._logdir = pathlib.Path(logdir)
        with startup.disk_errors(self._logdir):
            # In bytes, for names that are not UTF-8.
            self._writer = tf.summary.create_file_writer(os.fsencode(self._logdir))
        self.metrics = metrics.File(self._logdir, size)

    def scalars(self, step, values):
        """Append one line: `values` (name to number) at `step` [environment steps].

        Numbers that JSON cannot express, NaN and infinities, become null.
        """
        values = self.metrics.append(step, values)
        with startup.disk_errors(self._logdir), self._writer.as_default(step=int(step)):
            for key, value in values.items():
                if value is not None:
                    tf.summary.scalar(tag(key), value)
            self._writer.flush()

    def text(self, step, name, markdown):
        """Write a text for TensorBoard's page of texts."""
        with startup.disk_errors(self._logdir), self._writer.as_default(step=int(step)):
            # A folder's name need not be UTF-8.
            tf.summary.text(name, markdown.encode(errors='backslashreplace'))
            self._writer.flush()

    def video(self, step, name, frames, fps=20):
        """Write `frames` [T, H, W, 3] uint8 as `videos/{name}-{step}.gif` and for
        TensorBoard, which shows GIFs as images: the first of them, of long episodes.
        """
        height, width = frames.shape[1:3]
        data = encode_gif(frames[: max(1, LARGEST_VIDEO // (height * width))], fps)
        self._show(step, name, '.gif', data, (width, height))

    def picture(self, step, name, data):
        """Write the bytes of a PNG file as `videos/{name}-{step}.png` and for
        TensorBoard.
        """
        self._show(step, name, '.png', data, Image.open(io.BytesIO(data)).size)

    def _show(self, step, name, suffix, data, size):
        folder = self._logdir / 'videos'
        folder.mkdir(exist_ok=True)
        faults.reach('video')
        atomic.write(folder / f'{name}-{int(step):09d}{suffix}', data)
        metadata = tf.compat.v1.SummaryMetadata(plugin_data={'plugin_name': 'images'})
        with startup.disk_errors(self._logdir), self._writer.as_default(step=int(step)):
            tf.summary.write(
                f'videos/{name}',
                tf.constant([*map(str, size), data]),
                metadata=metadata,
            )
            self._writer.flush()

    def close(self):
        """Flush and close the TensorBoard events."""
        with startup.disk_errors(self._logdir):
            self._writer.close()


def means(rows):
    """The mean of every metric over the dicts `rows` that have it: after a resume,
    those of before may be another version's, with other names.

    Numbers that are not finite are left out; where none is, the mean is NaN. Steps that
    were skipped, whose norms are infinite, have a count of their own.
    """
    result = {}
    for key in dict.fromkeys(itertools.chain(*rows)):
        numbers = np.array([float(row[key]) for row in rows if key in row])
        finite = numbers[np.isfinite(numbers)]
        result[key] = finite.mean() if finite.size else np.nan
    return result


def encode_gif(frames, fps):
    """`frames` [T, H, W, 3] uint8 as the bytes of a looping GIF."""
    # Median cut, which is Pillow's own choice, gives rare colours to their neighbours
    # (yellow shows as pink), and takes ten times as long for files twice as large.
    images = [
        Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE)
        for frame in np.asarray(frames)
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        'gif',
        save_all=True,
        append_images=images[1:],
        duration=1000 / fps,
        loop=0,
    )
    return buffer.getvalue()
