#!/bin/sh
# Makes the runs of this folder again, below logs/states. Start it beside dreamer.py.
set -e

run() { # TASK SEED FLAG ...
    task=$1 seed=$2
    shift 2
    python dreamer.py --logdir "logs/states/$task/small-state/$seed" --task "$task" \
        --seed "$seed" --configs small --observation state --precision 32 "$@"
}

run dmc_cartpole_swingup 0 --steps 100000
run dmc_walker_walk 0 --steps 100000
run gym_LunarLander-v3 0 --steps 100000
run gym_Pendulum-v1 0 --steps 100000
