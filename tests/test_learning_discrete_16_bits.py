"""The agent learns discrete control with ends in both formats of 16 bits."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from learners import DISCRETE, check_learns


@pytest.mark.slow
def test_discrete_agent_learns_in_bfloat16(tmp_path):
    check_learns(tmp_path, 1, f'{DISCRETE} --precision bfloat16')


@pytest.mark.slow
def test_discrete_agent_learns_in_float16(tmp_path):
    """In a process without oneDNN, to which TensorFlow gives float16 on processors with
    AVX512-FP16 alone, so that it is the same computation everywhere.
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
