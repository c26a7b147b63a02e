#!/bin/sh
# Makes the runs of this folder again, below logs/ablation. Start it beside dreamer.py.
set -e

run() { # TASK LABEL SEED FLAG ...
    task=$1 label=$2 seed=$3
    shift 3
    python dreamer.py --logdir "logs/ablation/$task/$label/$seed" --task "$task" \
        --seed "$seed" --configs small --precision 32 "$@"
}

no_entropy() { # TASK STEPS
    run "$1" small-no-entropy 0 --actor_entropy 0 --actor_entropy_decay 0 \
        --steps "$2"
}

v0() { # TASK SEED STEPS: the preset small as it was at first
    run "$1" small-v0 "$2" --batch_size 12 --batch_length 16 --num_units 128 \
        --cnn_act elu --kl_scale 0.3 --model_lr 1e-3 --value_lr 3e-4 --discount 0.95 \
        --horizon 10 --action_init_std 1 --actor_entropy 0 --actor_entropy_decay 0 \
        --steps "$3"
}

no_entropy dmc_cartpole_balance 115000
no_entropy dmc_cartpole_swingup 58000
no_entropy dmc_pendulum_swingup 115000
no_entropy dmc_walker_stand 115000
no_entropy dmc_walker_walk 115000
v0 dmc_cartpole_balance 0 150000
v0 dmc_walker_stand 1 150000
v0 dmc_walker_walk 0 268000
