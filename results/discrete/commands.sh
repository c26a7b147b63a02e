#!/bin/sh
# Makes the runs of this folder again, below logs/discrete. Start it beside dreamer.py.
set -e

run() { # TASK LABEL SEED FLAG ...
    task=$1 label=$2 seed=$3
    shift 3
    python dreamer.py --logdir "logs/discrete/$task/$label/$seed" --task "$task" \
        --seed "$seed" --precision 32 "$@"
}

for seed in 0 1; do
    run gym_CartPole-v1 cartpole-pixels "$seed" --configs small --steps 50000
done
run gym_CartPole-v1 cartpole-pixels 2 --configs small --render_quality standard \
    --eval_every 10000 --steps 44000
run gym_CartPole-v1 cartpole-pixels 3 --configs small --render_quality standard \
    --eval_every 10000 --steps 51000
for seed in 0 1; do
    run atari_crazy_climber atari-small "$seed" --configs small tuned \
        --render_quality standard --steps 400000
done
