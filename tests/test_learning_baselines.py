"""What the paper compares Dreamer with learns too: at least half of the way from a
random policy's return to the best possible one."""

import pytest
from test_learning import CONTINUOUS, make_run, score

# The contrastive objective needs no more than ln(images in the batch) nats about an
# image: the more of them, the more exact is the state; and a lighter KL loss.
BASELINES = dict(
    contrastive=f"""{CONTINUOUS} --representation contrastive --log_images false
        --batch_size 40 --batch_length 10 --model_lr 2e-3 --kl_scale 0.1
        --actor_lr 1e-4 --pretrain 400 --train_steps 80 --steps 16500""",
    no_value=f'{CONTINUOUS} --method no_value --steps 16500',
    planet=f"""{CONTINUOUS} --method planet --plan_candidates 100 --plan_iterations 5
        --plan_elites 10 --plan_horizon 8 --steps 8500 --train_every 200""")


@pytest.mark.slow
@pytest.mark.parametrize('name', BASELINES)
def test_baseline_learns(tmp_path, name):
    run = make_run(tmp_path, 0, BASELINES[name])
    run.loop()
    assert score(run, 30) >= 0.5
