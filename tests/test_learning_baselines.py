"""What the paper compares Dreamer with learns too: at least half of the way from a
random policy's return to the best possible one.

All observe states, which Dreamer learns from in the contrastive agent. Dreamer's other
tests show that the networks for images learn, and these agents have the same ones.
"""

import pytest
from learners import DISCRETE, STATES, make_run, train

# A contrastive agent tells a state from the others of a batch. The target of
# dummy_continuous is the same in a whole sequence, which is little to tell it by. With
# the others' learning rate its scores rise and fall.
# Seeds 0, 1 and 2 need 280, 680 and at most 440 updates, of 800; without values 220,
# 140 and at most 300, of 580; and PlaNet's 300, 380 and 300, of 460.
BASELINES = dict(
    contrastive=f"""{DISCRETE} --observation state --representation contrastive
        --log_images false --discount 0.9 --grad_clip 10 --kl_scale 0.02
        --model_lr 1e-3 --steps 8500""",
    no_value=f'{STATES} --method no_value --horizon 10 --steps 7500',
    planet=f"""{STATES} --method planet --plan_candidates 50 --plan_iterations 4
        --plan_elites 6 --plan_horizon 8 --batch_size 16 --steps 4500 --train_every 200
        --envs 4""",
)


@pytest.mark.slow
@pytest.mark.parametrize('name', BASELINES)
def test_baseline_learns(tmp_path, name):
    run = make_run(tmp_path, 0, BASELINES[name])
    # What plans takes long to play.
    assert train(run, 0.5, 30, first=8 if run.config.method == 'planet' else 4) >= 0.5
