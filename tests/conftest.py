"""Settings that have to be in place before a test imports TensorFlow."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # As dreamer.py sets it.

if 'PYTEST_XDIST_WORKER' in os.environ:
    # One thread for each of the processes that share the cores, and for the programs
    # that they start: small networks lose nothing by it.
    for name in ('OMP_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS'):
        os.environ.setdefault(name, '1')


def pytest_collection_modifyitems(items):
    """Learning takes longest: started last, it would run on alone."""
    items.sort(key=lambda item: 'learning' not in item.path.name)
