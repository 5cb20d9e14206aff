#!/bin/sh
# Train superpoint-vgg as it was released: sh weights/recipes/train-vgg.sh PHOTOGRAPHS [RUNS]
# RUNS holds what train-edge.sh made: the labels are by the networks of its fifth, sixth and seventh runs.
# Every command goes on where it stopped, so the script can be started again after any interruption.
set -eu
photographs=${1:?usage: train-vgg.sh PHOTOGRAPHS [RUNS]}
runs=${2:-runs}
recipes=$(dirname "$0")

superpoint label "$photographs" --model "$runs/superpoint/superpoint.safetensors" --config "$recipes/vgg-label.toml" --out "$runs/vgg-labels"
superpoint train superpoint --images "$photographs" --labels "$runs/vgg-labels" --refiner "$runs/superpoint/superpoint.safetensors" \
    --config "$recipes/vgg-superpoint1.toml" --out "$runs/vgg1"
superpoint train superpoint --images "$photographs" --labels "$runs/vgg-labels" \
    --init "$runs/vgg1/superpoint.safetensors" --config "$recipes/vgg-superpoint2.toml" --out "$runs/vgg2"
superpoint train superpoint --images "$photographs" --labels "$runs/vgg-labels" \
    --init "$runs/vgg2/superpoint.safetensors" --config "$recipes/vgg-superpoint3.toml" --out "$runs/vgg3"
superpoint train superpoint --images "$photographs" --labels "$runs/vgg-labels" \
    --init "$runs/vgg3/superpoint.safetensors" --config "$recipes/vgg-superpoint4.toml" --out "$runs/vgg4"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/vgg4/superpoint.safetensors" --out "$runs/superpoint-vgg-4.safetensors"
superpoint label "$photographs" --model "$runs/superpoint-edge-6.safetensors" --refiner "$runs/superpoint-vgg-4.safetensors" \
    --config "$recipes/vgg-label2.toml" --out "$runs/vgg-labels2"
superpoint train superpoint --images "$photographs" --labels "$runs/vgg-labels2" \
    --init "$runs/superpoint-vgg-4.safetensors" --config "$recipes/vgg-superpoint5.toml" --out "$runs/vgg5"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/vgg5/superpoint.safetensors" --out "$runs/superpoint-vgg-5.safetensors"
superpoint label "$photographs" --model "$runs/superpoint-edge-7.safetensors" --refiner "$runs/superpoint-vgg-5.safetensors" \
    --config "$recipes/vgg-label3.toml" --out "$runs/vgg-labels3"
superpoint train superpoint --images "$photographs" --labels "$runs/vgg-labels3" \
    --init "$runs/superpoint-vgg-5.safetensors" --config "$recipes/vgg-superpoint6.toml" --out "$runs/vgg"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/vgg/superpoint.safetensors" --out "$runs/superpoint-vgg.safetensors"
