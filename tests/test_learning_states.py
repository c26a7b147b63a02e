"""The agent learns from state vectors, without images.

Seeds 0, 1 and 2 need 580, 500 and 500 updates, of 780 at most.
"""

import pytest
from learners import STATES, check_learns


@pytest.mark.slow
def test_agent_learns_from_states(tmp_path):
    check_learns(tmp_path, 0, STATES)
