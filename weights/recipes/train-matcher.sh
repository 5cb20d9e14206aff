#!/bin/sh
# Train the learned matcher for superpoint-edge as it was released: sh weights/recipes/train-matcher.sh PHOTOGRAPHS [RUNS]
# RUNS holds what train-edge.sh made: the first two runs are on features of the network of its fifth run, the third of its sixth, the fourth
# of its seventh; what came of them is then carried over to the network that was released.
# Every command goes on where it stopped, so the script can be started again after any interruption.
set -eu
photographs=${1:?usage: train-matcher.sh PHOTOGRAPHS [RUNS]}
runs=${2:-runs}
recipes=$(dirname "$0")

# a matcher is for the model that the name of its weights says
before="$runs/before/superpoint-edge.safetensors"
now="$runs/now/superpoint-edge.safetensors"
mkdir -p "$runs/before" "$runs/now"
cp "$runs/superpoint/superpoint.safetensors" "$before"
cp "$runs/edge/superpoint.safetensors" "$now"

# (what was released had no groups from one place in these first two runs: they came with the third)
# one thread for the extractor, two processes that draw and warp
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views" --model "$before" \
    --scenes 2000 --images "$photographs" --views 4 --workers 2
# two processes of one thread each: on a CPU a step is so many small operations that threads would mostly wait for each other
export OMP_NUM_THREADS=1
torchrun --nproc-per-node 2 -m frontend.cli.main train lightglue --device cpu --views "$runs/views" \
    --config "$recipes/matcher-lightglue1.toml" --workers 1 --out "$runs/matcher1"
torchrun --nproc-per-node 2 -m frontend.cli.main train lightglue --device cpu --views "$runs/views" \
    --init "$runs/matcher1/lightglue.safetensors" --config "$recipes/matcher-lightglue2.toml" --workers 1 --out "$runs/matcher2"

# this takes minutes on a GPU, where one process does
for seed in 60 61 62 63 64 65; do
    SUPERPOINT_THREADS=1 superpoint make-views "$runs/views3" --model "$now" --scenes 280 --seed $seed --views 4 --workers 2
done
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views3" --model "$now" --images "$photographs" --seed 66 --views 4 --workers 2
superpoint train lightglue --views "$runs/views3" --init "$runs/matcher2/lightglue.safetensors" \
    --config "$recipes/matcher-lightglue3.toml" --workers 8 --out "$runs/matcher3"
superpoint export --format weights-float16 --model "$runs/matcher3/lightglue.safetensors" --out "$runs/lightglue-edge-3.safetensors"

# on two CPU cores again; the mean of this run and of what it began with
mkdir -p "$runs/seventh"
cp "$runs/superpoint-edge-7.safetensors" "$runs/seventh/superpoint-edge.safetensors"
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views4" --model "$runs/seventh/superpoint-edge.safetensors" --scenes 1000 --seed 67 --views 4 --workers 2
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views4" --model "$runs/seventh/superpoint-edge.safetensors" \
    --images "$photographs" --seed 68 --views 4 --workers 2
torchrun --nproc-per-node 2 -m frontend.cli.main train lightglue --device cpu --views "$runs/views4" \
    --init "$runs/lightglue-edge-3.safetensors" --config "$recipes/matcher-lightglue4.toml" --workers 1 --out "$runs/matcher4"
superpoint export --format weights-float16 --model "$runs/lightglue-edge-3.safetensors" --average "$runs/matcher4/lightglue.safetensors" \
    --out "$runs/lightglue-edge-4.safetensors"
# a linear map from the descriptors of the network that was released before
superpoint align-matcher --from "$runs/seventh/superpoint-edge.safetensors" --to "$runs/superpoint-edge.safetensors" \
    --matcher "$runs/lightglue-edge-4.safetensors" --images "$photographs" --limit 128 --out "$runs/aligned/lightglue-edge.safetensors"
superpoint export --format weights-float16 --model "$runs/aligned/lightglue-edge.safetensors" --out "$runs/lightglue-edge-5.safetensors"

# on from there on hard pairs of views, in one process of one thread; the mean of this run and of what it began with
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views5" --model "$runs/superpoint-edge.safetensors" --scenes 700 --seed 71 --views 4
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views5" --model "$runs/superpoint-edge.safetensors" --scenes 600 --seed 75 --views 4
# the released one had 517 of these groups
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views5" --model "$runs/superpoint-edge.safetensors" --images "$photographs" --seed 72 --views 4
superpoint train lightglue --device cpu --views "$runs/views5" --init "$runs/lightglue-edge-5.safetensors" \
    --config "$recipes/matcher-lightglue5.toml" --workers 1 --out "$runs/matcher5"
superpoint export --format weights-float16 --model "$runs/matcher5/lightglue.safetensors" --average "$runs/lightglue-edge-5.safetensors" \
    --out "$runs/lightglue-edge-6.safetensors"
superpoint export --format weights-int8 --model "$runs/lightglue-edge-6.safetensors" --out "$runs/lightglue-edge-7.safetensors"

# and once more, with as many others; again the mean of this run and of what it began with
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views5" --model "$runs/superpoint-edge.safetensors" --scenes 700 --seed 111 --views 4
SUPERPOINT_THREADS=1 superpoint make-views "$runs/views5" --model "$runs/superpoint-edge.safetensors" --images "$photographs" --seed 112 --views 4
superpoint train lightglue --device cpu --views "$runs/views5" --init "$runs/lightglue-edge-7.safetensors" \
    --config "$recipes/matcher-lightglue6.toml" --workers 1 --out "$runs/matcher6"
superpoint export --format weights-float16 --model "$runs/matcher6/lightglue.safetensors" --average "$runs/lightglue-edge-7.safetensors" \
    --out "$runs/lightglue-edge-8.safetensors"
superpoint export --format weights-int8 --model "$runs/lightglue-edge-8.safetensors" --out "$runs/lightglue-edge.safetensors"

# the same for the features of superpoint-slim and superpoint-vgg, where train-slim.sh and train-vgg.sh have made them: a map alone, stored as what differs
if [ -f "$runs/superpoint-slim.safetensors" ]; then
    superpoint align-matcher --from "$runs/superpoint-edge.safetensors" --to "$runs/superpoint-slim.safetensors" \
        --matcher "$runs/lightglue-edge-8.safetensors" --images "$photographs" --limit 128 --out "$runs/aligned/lightglue-slim.safetensors"
    superpoint export --format weights-int8 --model "$runs/aligned/lightglue-slim.safetensors" \
        --base "$runs/lightglue-edge.safetensors" --out "$runs/lightglue-slim.safetensors"
fi
if [ -f "$runs/superpoint-vgg.safetensors" ]; then
    superpoint align-matcher --from "$runs/superpoint-edge.safetensors" --to "$runs/superpoint-vgg.safetensors" \
        --matcher "$runs/lightglue-edge-8.safetensors" --images "$photographs" --limit 128 --out "$runs/aligned/lightglue-vgg.safetensors"
    superpoint export --format weights-int8 --model "$runs/aligned/lightglue-vgg.safetensors" \
        --base "$runs/lightglue-edge.safetensors" --out "$runs/lightglue-vgg.safetensors"
fi
