"""What the paper compares Dreamer with learns too: at least half of the way from a
random policy's return to the best possible one.
"""

import pytest
from learners import CONTINUOUS, DISCRETE, make_run, score

# Telling an image from the others of a batch takes ln(their number) nats, and a state
# need not know more: many images make it exact. Here that is where the point is; on
# dummy_continuous the target too, which changes with the sequence alone.
BASELINES = dict(
    contrastive=f"""{DISCRETE} --representation contrastive --log_images false
        --batch_size 40 --batch_length 10 --discount 0.9 --model_lr 2e-3 --grad_clip 10
        --kl_scale 0.3 --train_steps 60 --steps 13500""",
    no_value=f'{CONTINUOUS} --method no_value --steps 16500',
    planet=f"""{CONTINUOUS} --method planet --plan_candidates 100 --plan_iterations 5
        --plan_elites 10 --plan_horizon 8 --steps 8500 --train_every 200
        --envs 4 --eval_envs 4""",
)


@pytest.mark.slow
@pytest.mark.parametrize('name', BASELINES)
def test_baseline_learns(tmp_path, name):
    run = make_run(tmp_path, 0, BASELINES[name])
    run.loop()
    assert score(run, 30) >= 0.5
