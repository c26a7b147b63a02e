"""Where a run's results go: metrics file, TensorBoard, videos."""

import io
import itertools
import os
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins.hparams import api as hparams

from support.run import startup, timing, video
from support.storage import metrics
from support.system import atomic, faults

# Names in TensorBoard by the keys of `metrics.jsonl`.
TAGS = {
    'train/return': 'train/return',
    'train/length': 'train/length',
    'test/return': 'eval/return',
    'test/length': 'eval/length',
    'model_loss': 'model/loss',
    'image_loss': 'model/image_loss',
    'state_loss': 'model/state_loss',
    'reward_loss': 'model/reward_loss',
    'pcont_loss': 'model/discount_loss',
    'contrastive_loss': 'model/contrastive_loss',
    'div': 'model/kl',
    'prior_ent': 'model/prior_entropy',
    'post_ent': 'model/posterior_entropy',
    'actor_loss': 'actor/loss',
    'action_ent': 'actor/entropy',
    'action_ent_share': 'actor/entropy_share',
    'value_loss': 'value/loss',
    **{
        f'{network}_{key}': f'{network}/{key}'
        for network in ('model', 'decoder', 'actor', 'value')
        for key in ('grad_norm', 'skipped')
    },
    'episodes': 'replay/episodes',
    'episodes_dropped': 'replay/dropped',
    'episodes_skipped': 'replay/skipped',
    'gradient_step': 'time/gradient_step',
    'fps': 'time/steps_per_s',
    'updates_per_s': 'time/updates_per_s',
    **{f'time_{phase}': f'time/{phase}' for phase in timing.PHASES},
    'jit_compiled': 'jit/compiled',
    'jit_graph_ms': 'jit/graph_ms',
    'jit_xla_ms': 'jit/xla_ms',
}


class Logger:
    """Write `metrics.jsonl`, TensorBoard events and `videos/*.gif` under `logdir`.

    Args:
      logdir: folder that exists.
      size: bytes of `metrics.jsonl` that belong to the checkpoint from which the run
        continues. Later lines are of steps that are repeated. They are moved to
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
                    tf.summary.scalar(TAGS.get(key, key), value)
            self._writer.flush()

    def hyperparameters(self, values):
        """Write the settings of a run, a dict, for TensorBoard's table of runs."""
        values = {
            # Names of files need not be UTF-8.
            name: value.encode(errors='backslashreplace').decode()
            if isinstance(value, str)
            else value
            for name, value in values.items()
        }
        with startup.disk_errors(self._logdir), self._writer.as_default(step=0):
            hparams.hparams(values)
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
        data = video.encode_gif(video.shorten(frames), fps)
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
