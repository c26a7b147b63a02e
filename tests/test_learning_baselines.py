"""What the paper compares Dreamer with learns too: at least half of the way from a
random policy's return to the best possible one."""

import pytest
from test_learning import CONTINUOUS, make_run, score

BASELINES = dict(
    no_value=f'{CONTINUOUS} --method no_value --steps 16500',
    planet=f"""{CONTINUOUS} --method planet --plan_candidates 100 --plan_iterations 5
        --plan_elites 10 --plan_horizon 8 --steps 8500 --train_every 200""")


@pytest.mark.slow
@pytest.mark.parametrize('name', BASELINES)
def test_baseline_learns(tmp_path, name):
    run = make_run(tmp_path, 0, BASELINES[name])
    run.loop()
    assert score(run, 30) >= 0.5
