"""Imports TensorFlow as dreamer.py does, before a test does."""

import quiet  # noqa: F401
