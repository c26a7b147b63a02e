"""`--profile`: TensorFlow's profile of a few updates, for TensorBoard."""

import tensorflow as tf

from support.run import startup

# Updates to record, and updates before them: the first ones trace and compile.
RECORDED, SKIPPED = 10, 2


class Profile:
    """Record the profile of `RECORDED` updates, once.

    Args:
      logdir: folder of the run.
      tell: takes the line that says where the profile is.
    """

    def __init__(self, logdir, tell):
        self._logdir, self._tell = logdir, tell
        self._before, self._done = SKIPPED, None

    def updated(self, metrics, steady):
        """Count an update, and begin or end recording after it.

        Args:
          metrics: of the update.
          steady: whether the next updates have the form of this one.
        """
        if self._done is not None:
            self._done += 1
            if self._done == RECORDED:
                _wait_for(metrics)
                self.end()
        elif steady and self._before > 0:
            self._before -= 1
            if not self._before:
                _wait_for(metrics)
                self._begin()

    def end(self):
        """Write the profile of what has been recorded, if it is not yet written."""
        done, self._done = self._done, None
        if done is None:
            return
        try:
            with startup.disk_errors(self._logdir):
                tf.profiler.experimental.stop(save=done > 0)
        except (tf.errors.OpError, OSError) as error:
            self._tell(f'profile: not written: {startup.explain(error)}')
            return
        if not done:
            return
        self._tell(
            f'profile: {done} updates recorded in {self._logdir}/plugins/profile; '
            f'tensorboard --logdir {self._logdir}, tab Profile'
        )

    def _begin(self):
        try:
            tf.profiler.experimental.start(str(self._logdir))
            self._done = 0
        except tf.errors.OpError as error:
            self._tell(f'profile: not recorded: {startup.explain(error)}')


def _wait_for(metrics):
    """Wait until the device has made the update."""
    float(next(iter(metrics.values())))
