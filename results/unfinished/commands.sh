#!/bin/sh
# Makes the runs of this folder again, below logs/unfinished. Start it beside dreamer.py.
set -e

run() { # TASK SEED FLAG ...
    task=$1 seed=$2
    shift 2
    python dreamer.py --logdir "logs/unfinished/$task/small-bfloat16/$seed" --task "$task" \
        --seed "$seed" --configs small --precision bfloat16 "$@"
}

run dmc_cartpole_swingup_sparse 0 --steps 8000
run dmc_pendulum_swingup 0 --steps 14000
