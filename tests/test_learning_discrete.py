"""The agent learns discrete control with ends in float16, compiled."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_discrete_agent_learns_in_float16(tmp_path):
    """As most GPUs take it: TensorFlow's own operations take a processor three times as
    long in float16. In a process without oneDNN, to which they are given on processors
    with AVX512-FP16 alone, so that it is the same computation everywhere.
    """
    code = f'from learners import *\ncheck_learns({str(tmp_path)!r}, 0, FLOAT16, 0.6)'
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={
            **os.environ,
            'TF_ENABLE_ONEDNN_OPTS': '0',
            'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
        },
        text=True,
        capture_output=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
