#!/bin/sh
# Train superpoint-slim as it was released: sh weights/recipes/train-slim.sh PHOTOGRAPHS [RUNS]
# Every command goes on where it stopped, so the script can be started again after any interruption.
set -eu
photographs=${1:?usage: train-slim.sh PHOTOGRAPHS [RUNS]}
runs=${2:-runs}
recipes=$(dirname "$0")

superpoint label "$photographs" --model superpoint-edge --config "$recipes/slim-label.toml" --out "$runs/slim-labels"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels" \
    --config "$recipes/slim-superpoint.toml" --out "$runs/slim"
