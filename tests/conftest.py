"""Settings that have to be in place before a test imports TensorFlow."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # As dreamer.py sets it.
