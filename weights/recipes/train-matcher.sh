#!/bin/sh
# Train the learned matcher for superpoint-edge as it was released: sh weights/recipes/train-matcher.sh PHOTOGRAPHS [RUNS]
# Every command goes on where it stopped, so the script can be started again after any interruption.
set -eu
photographs=${1:?usage: train-matcher.sh PHOTOGRAPHS [RUNS]}
runs=${2:-runs}
recipes=$(dirname "$0")

# one thread for the extractor, two processes that draw and warp
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views" --scenes 2000 --images "$photographs" --views 4 --workers 2
# two processes of one thread each: a step is so many small operations that threads would mostly wait for each other
export OMP_NUM_THREADS=1
torchrun --nproc-per-node 2 -m frontend.cli.main train lightglue --views "$runs/views" \
    --config "$recipes/matcher-lightglue1.toml" --workers 1 --out "$runs/matcher1"
torchrun --nproc-per-node 2 -m frontend.cli.main train lightglue --views "$runs/views" \
    --init "$runs/matcher1/lightglue.safetensors" --config "$recipes/matcher-lightglue2.toml" --workers 1 --out "$runs/matcher2"
