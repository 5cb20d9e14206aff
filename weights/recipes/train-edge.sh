#!/bin/sh
# Train superpoint-edge as it was released: sh weights/recipes/train-edge.sh PHOTOGRAPHS [RUNS]
# For the sixth run of what was released the photographs had been reduced to a side of 480 pixels and compressed as JPEG of quality 78;
# this script does not do that.
# Every command goes on where it stopped, so the script can be started again after any interruption.
set -eu
photographs=${1:?usage: train-edge.sh PHOTOGRAPHS [RUNS]}
runs=${2:-runs}
recipes=$(dirname "$0")

superpoint train magicpoint --config "$recipes/edge-magicpoint.toml" --out "$runs/magicpoint"
superpoint label "$photographs" --model "$runs/magicpoint/magicpoint.safetensors" \
    --config "$recipes/edge-label1.toml" --out "$runs/labels1"
superpoint train superpoint --images "$photographs" --labels "$runs/labels1" \
    --init "$runs/magicpoint/magicpoint.safetensors" --config "$recipes/edge-superpoint1.toml" --out "$runs/round1"
superpoint label "$photographs" --model "$runs/round1/superpoint.safetensors" \
    --config "$recipes/edge-label2.toml" --out "$runs/labels2"
superpoint train superpoint --images "$photographs" --labels "$runs/labels2" \
    --init "$runs/round1/superpoint.safetensors" --config "$recipes/edge-superpoint2.toml" --out "$runs/round2"
superpoint train superpoint --images "$photographs" --labels "$runs/labels2" \
    --init "$runs/round2/superpoint.safetensors" --config "$recipes/edge-superpoint3.toml" --out "$runs/round3"
superpoint train superpoint --images "$photographs" --labels "$runs/labels2" \
    --init "$runs/round3/superpoint.safetensors" --config "$recipes/edge-superpoint4.toml" --out "$runs/round4"
superpoint label "$photographs" --model "$runs/round4/superpoint.safetensors" \
    --config "$recipes/edge-label3.toml" --out "$runs/labels3"
superpoint train superpoint --images "$photographs" --labels "$runs/labels3" \
    --init "$runs/round4/superpoint.safetensors" --config "$recipes/edge-superpoint5.toml" --out "$runs/superpoint"
superpoint label "$photographs" --model "$runs/superpoint/superpoint.safetensors" \
    --config "$recipes/edge-label4.toml" --out "$runs/labels4"
superpoint train superpoint --images "$photographs" --labels "$runs/labels4" --workers 4 \
    --init "$runs/superpoint/superpoint.safetensors" --config "$recipes/edge-superpoint6.toml" --out "$runs/edge"
superpoint export --format weights-float16 --model "$runs/edge/superpoint.safetensors" --out "$runs/superpoint-edge-6.safetensors"
superpoint label "$photographs" --model "$runs/superpoint-edge-6.safetensors" --refiner "$runs/superpoint-edge-6.safetensors" \
    --config "$recipes/edge-label5.toml" --out "$runs/labels5"
superpoint train superpoint --images "$photographs" --labels "$runs/labels5" \
    --init "$runs/superpoint-edge-6.safetensors" --config "$recipes/edge-superpoint7.toml" --out "$runs/edge7"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/edge7/superpoint.safetensors" --out "$runs/superpoint-edge-7.safetensors"
# neighbours pushed apart; what is released is a mean, three parts of this run and one of what it began with
superpoint label "$photographs" --model "$runs/superpoint-edge-7.safetensors" --refiner "$runs/superpoint-edge-7.safetensors" \
    --config "$recipes/edge-label6.toml" --out "$runs/labels6"
superpoint train superpoint --images "$photographs" --labels "$runs/labels6" --workers 1 --precision bf16 \
    --init "$runs/superpoint-edge-7.safetensors" --config "$recipes/edge-superpoint8.toml" --out "$runs/edge8"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/superpoint-edge-7.safetensors" \
    --average "$runs/edge8/superpoint.safetensors" --average-share 0.75 --out "$runs/superpoint-edge.safetensors"
