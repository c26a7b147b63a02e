#!/bin/sh
# Makes the run of this folder again, below logs/paper. Start it beside dreamer.py.
set -e

python dreamer.py --logdir logs/paper/dmc_walker_walk/paper-bfloat16/0 \
    --task dmc_walker_walk --seed 0 --configs paper --precision bfloat16 --steps 10000
