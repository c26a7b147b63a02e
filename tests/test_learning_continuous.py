"""The agent learns continuous control in bfloat16, which has the fewest digits.

Seeds 0, 1 and 2 need about 1,140, 1,600 and 1,180 updates, of 2,040 at most. The
baselines learn in float32.
"""

import pytest
from learners import CONTINUOUS, check_learns


@pytest.mark.slow
def test_agent_learns(tmp_path):
    check_learns(tmp_path, 0, f'{CONTINUOUS} --precision bfloat16')
