"""The agent learns discrete control with ends, and the discounts of them."""

import pytest
from learners import DISCRETE, check_learns


@pytest.mark.slow
def test_discrete_agent_learns(tmp_path):
    check_learns(tmp_path, 0, DISCRETE)
