#!/bin/sh
# Makes the runs of this folder again, below logs/methods. Start it beside dreamer.py.
set -e

run() { # TASK LABEL SEED FLAG ...
    task=$1 label=$2 seed=$3
    shift 3
    python dreamer.py --logdir "logs/methods/$task/$label/$seed" --task "$task" \
        --seed "$seed" --configs small --precision 32 "$@"
}

v0() { # LABEL FLAG ...: the preset small as it was at first
    label=$1
    shift
    run dmc_walker_stand "$label" 0 --batch_size 12 --batch_length 16 --num_units 128 \
        --cnn_act elu --kl_scale 0.3 --model_lr 1e-3 --value_lr 3e-4 --discount 0.95 \
        --horizon 10 --action_init_std 1 --actor_entropy 0 --actor_entropy_decay 0 \
        --steps 40000 "$@"
}

for seed in 0 1; do
    run dmc_cartpole_swingup "small no_value" "$seed" --method no_value --steps 50000
done
for seed in 1 2; do
    run dmc_cartpole_swingup "small planet" "$seed" --method planet --steps 50000
done
for seed in 0 1 2; do
    run dmc_cheetah_run "small-bfloat16 planet" "$seed" --method planet --steps 50000 \
        --precision bfloat16
    run dmc_cheetah_run "small-bfloat16 no_value" "$seed" --method no_value --steps 50000 \
        --precision bfloat16
done
v0 small-v0
v0 "small-v0 planet" --method planet
