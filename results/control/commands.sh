#!/bin/sh
# Makes the runs of this folder again, below logs/control. Start it beside dreamer.py.
set -e

label=small
run() { # TASK SEED FLAG ...
    task=$1 seed=$2
    shift 2
    python dreamer.py --logdir "logs/control/$task/$label/$seed" --task "$task" \
        --seed "$seed" --configs small --precision 32 "$@"
}

run dmc_cartpole_balance 0 --steps 205000
for seed in 0 1 2; do
    run dmc_cartpole_swingup "$seed" --steps 115000
done
run dmc_cup_catch 0 --steps 72000
run dmc_walker_stand 0 --steps 115000
run dmc_walker_walk 0 --steps 115000
label=small-bfloat16
for task in \
    dmc_acrobot_swingup dmc_cartpole_balance_sparse dmc_cartpole_swingup_sparse \
    dmc_cup_catch dmc_finger_spin dmc_finger_turn_easy dmc_finger_turn_hard \
    dmc_hopper_hop dmc_hopper_stand dmc_quadruped_run dmc_quadruped_walk \
    dmc_reacher_easy dmc_reacher_hard dmc_walker_run; do
    run "$task" 0 --steps 115000 --precision bfloat16
done
run dmc_cheetah_run 0 --steps 205000 --precision bfloat16
for seed in 0 1; do
    run dmc_pendulum_swingup "$seed" --steps 115000 --precision bfloat16
done
for seed in 1 2; do
    run dmc_cheetah_run "$seed" --steps 115000 --precision bfloat16
done
