"""The agent learns continuous control."""

import pytest
from learners import CONTINUOUS, check_learns


@pytest.mark.slow
def test_agent_learns(tmp_path):
    check_learns(tmp_path, 0, CONTINUOUS)
