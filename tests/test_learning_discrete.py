"""The agent learns discrete control with ends, and the discounts of them."""

import pytest
from learners import DISCRETE, check_learns


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 10])
def test_discrete_agent_learns(tmp_path, seed):
    check_learns(tmp_path, seed, DISCRETE)
