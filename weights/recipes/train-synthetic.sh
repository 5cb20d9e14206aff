#!/bin/sh
# Train superpoint-synthetic as it was released, without a photograph: sh weights/recipes/train-synthetic.sh [RUNS]
# Every command goes on where it stopped, so the script can be started again after any interruption.
set -eu
runs=${1:-runs}
recipes=$(dirname "$0")

superpoint train magicpoint --config "$recipes/synthetic-magicpoint.toml" --out "$runs/synthetic-magicpoint"
superpoint make-scenes "$runs/scenes" --count 2000 --seed 20
superpoint label "$runs/scenes" --model "$runs/synthetic-magicpoint/magicpoint.safetensors" \
    --config "$recipes/synthetic-label1.toml" --out "$runs/synthetic-labels1"
superpoint train superpoint --images "$runs/scenes" --labels "$runs/synthetic-labels1" \
    --init "$runs/synthetic-magicpoint/magicpoint.safetensors" --config "$recipes/synthetic-superpoint1.toml" --out "$runs/synthetic1"
superpoint label "$runs/scenes" --model "$runs/synthetic1/superpoint.safetensors" \
    --config "$recipes/synthetic-label2.toml" --out "$runs/synthetic-labels2"
superpoint train superpoint --images "$runs/scenes" --labels "$runs/synthetic-labels2" \
    --init "$runs/synthetic1/superpoint.safetensors" --config "$recipes/synthetic-superpoint2.toml" --out "$runs/synthetic"
