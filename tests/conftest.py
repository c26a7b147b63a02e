"""Settings that have to be in place before a test imports TensorFlow."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
