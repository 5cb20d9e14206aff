#!/bin/sh
# Train superpoint-slim as it was released: sh weights/recipes/train-slim.sh PHOTOGRAPHS [RUNS]
# RUNS holds what train-edge.sh made: the first labels are by the network of its fifth run, others by that of its sixth, the last by that of its seventh.
# Every command goes on where it stopped, so the script can be started again after any interruption.
set -eu
photographs=${1:?usage: train-slim.sh PHOTOGRAPHS [RUNS]}
runs=${2:-runs}
recipes=$(dirname "$0")

superpoint label "$photographs" --model "$runs/superpoint/superpoint.safetensors" --config "$recipes/slim-label.toml" --out "$runs/slim-labels"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels" \
    --config "$recipes/slim-superpoint1.toml" --out "$runs/slim1"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels" --init "$runs/slim1/superpoint.safetensors" \
    --config "$recipes/slim-superpoint2.toml" --out "$runs/slim2"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels" --init "$runs/slim2/superpoint.safetensors" \
    --config "$recipes/slim-superpoint3.toml" --out "$runs/slim3"
superpoint label "$photographs" --model "$runs/superpoint-edge-6.safetensors" --config "$recipes/slim-label2.toml" --out "$runs/slim-labels2"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels2" --init "$runs/slim3/superpoint.safetensors" \
    --config "$recipes/slim-superpoint4.toml" --out "$runs/slim4"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels2" --init "$runs/slim4/superpoint.safetensors" \
    --config "$recipes/slim-superpoint5.toml" --out "$runs/slim5"
superpoint label "$photographs" --model "$runs/superpoint-edge-6.safetensors" --refiner "$runs/slim5/superpoint.safetensors" \
    --config "$recipes/slim-label3.toml" --out "$runs/slim-labels3"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels3" --init "$runs/slim5/superpoint.safetensors" \
    --config "$recipes/slim-superpoint6.toml" --out "$runs/slim6"
superpoint export --format weights-float16 --model "$runs/slim6/superpoint.safetensors" --out "$runs/superpoint-slim-6.safetensors"
superpoint label "$photographs" --model "$runs/superpoint-edge-7.safetensors" --refiner "$runs/superpoint-slim-6.safetensors" \
    --config "$recipes/slim-label4.toml" --out "$runs/slim-labels4"
superpoint train superpoint --images "$photographs" --labels "$runs/slim-labels4" --init "$runs/superpoint-slim-6.safetensors" \
    --config "$recipes/slim-superpoint7.toml" --out "$runs/slim"
superpoint export --format weights-float16 --model "$runs/slim/superpoint.safetensors" --out "$runs/superpoint-slim.safetensors"
