"""`--profile`: which updates are recorded, and how often."""

import pytest

from support.run import profiling


@pytest.mark.parametrize('updates, recorded', [(3 + 2, 0), (3 + 2 + 4, 4), (30, 10)])
def test_ten_updates_are_recorded_once_after_the_trial(tmp_path, updates, recorded):
    told = []
    profile = profiling.Profile(tmp_path, told.append)
    for number in range(updates):
        # The first three are the trial's; two more trace what stays.
        profile.updated({'loss': 0.0}, steady=number >= 3)
    profile.end()
    profile.end()
    assert [line.split(' in ')[0] for line in told] == (
        [f'profile: {recorded} updates recorded'] if recorded else []
    )
    files = [*tmp_path.rglob('*.xplane.pb')]
    assert len(files) == bool(recorded)
