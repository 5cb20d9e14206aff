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
# the rest takes minutes on a GPU; other scenes
for seed in 40 41 42 43; do
    superpoint make-scenes "$runs/scenes3/$seed" --count 750 --seed $seed
    superpoint label "$runs/scenes3/$seed" --model "$runs/synthetic/superpoint.safetensors" \
        --config "$recipes/synthetic-label3.toml" --seed $seed --out "$runs/synthetic-labels3/$seed"
done
superpoint train superpoint --images "$runs/scenes3" --labels "$runs/synthetic-labels3" --workers 4 \
    --init "$runs/synthetic/superpoint.safetensors" --config "$recipes/synthetic-superpoint3.toml" --out "$runs/synthetic3"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/synthetic3/superpoint.safetensors" --out "$runs/superpoint-synthetic-3.safetensors"
# on, on labels that its own refiner has settled; other scenes, on two CPU cores
for seed in 44 45; do
    superpoint make-scenes "$runs/scenes6/$seed" --count 700 --seed $seed
    superpoint label "$runs/scenes6/$seed" --model "$runs/superpoint-synthetic-3.safetensors" --refiner "$runs/superpoint-synthetic-3.safetensors" \
        --config "$recipes/synthetic-label4.toml" --seed $seed --out "$runs/synthetic-labels4/$seed"
done
superpoint train superpoint --images "$runs/scenes6" --labels "$runs/synthetic-labels4" --workers 1 \
    --init "$runs/superpoint-synthetic-3.safetensors" --config "$recipes/synthetic-superpoint4.toml" --out "$runs/synthetic4"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/synthetic4/superpoint.safetensors" --out "$runs/superpoint-synthetic-4.safetensors"
# neighbours pushed apart, on the same scenes; what is released is a mean, three parts of this run and one of what it began with
superpoint label "$runs/scenes6" --model "$runs/superpoint-synthetic-4.safetensors" --refiner "$runs/superpoint-synthetic-4.safetensors" \
    --config "$recipes/synthetic-label5.toml" --out "$runs/synthetic-labels5"
superpoint train superpoint --images "$runs/scenes6" --labels "$runs/synthetic-labels5" --workers 1 --precision bf16 \
    --init "$runs/superpoint-synthetic-4.safetensors" --config "$recipes/synthetic-superpoint5.toml" --out "$runs/synthetic5"
superpoint export --format weights-float16 --refiner-passes 2 --model "$runs/superpoint-synthetic-4.safetensors" \
    --average "$runs/synthetic5/superpoint.safetensors" --average-share 0.75 --out "$runs/superpoint-synthetic.safetensors"
# the matcher; it is for the model that the name of the weights says, and learnt from the features of the third run
mkdir -p "$runs/now"
cp "$runs/synthetic3/superpoint.safetensors" "$runs/now/superpoint-synthetic.safetensors"
for seed in 80 81 82 83 84; do
    SUPERPOINT_THREADS=1 superpoint make-views "$runs/synthetic-views" --model "$runs/now/superpoint-synthetic.safetensors" \
        --scenes 200 --seed $seed --views 4 --workers 2
done
for seed in 90 91 92; do
    superpoint make-scenes "$runs/scenes4/$seed" --count 200 --seed $seed
done
SUPERPOINT_THREADS=1 superpoint make-views "$runs/synthetic-views" --model "$runs/now/superpoint-synthetic.safetensors" \
    --images "$runs/scenes4" --seed 89 --views 4 --workers 2
superpoint train lightglue --views "$runs/synthetic-views" --config "$recipes/synthetic-lightglue1.toml" --workers 12 --out "$runs/synthetic-matcher"
# on, on other groups: the first 942 of the first scenes, warped, and 1,000 scenes by cameras that moved; on two CPU cores
mkdir -p "$runs/scenes5"
find "$(cd "$runs/scenes" && pwd)" -name '*.jpg' | sort | head -n 942 | while read -r image; do ln -sf "$image" "$runs/scenes5/"; done
SUPERPOINT_THREADS=1 superpoint make-views "$runs/synthetic-views2" --model "$runs/now/superpoint-synthetic.safetensors" \
    --images "$runs/scenes5" --seed 93 --views 4 --workers 2
SUPERPOINT_THREADS=1 superpoint make-views "$runs/synthetic-views2" --model "$runs/now/superpoint-synthetic.safetensors" \
    --scenes 1000 --seed 85 --views 4 --workers 2
OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m frontend.cli.main train lightglue --device cpu --views "$runs/synthetic-views2" \
    --init "$runs/synthetic-matcher/lightglue.safetensors" --config "$recipes/synthetic-lightglue2.toml" --workers 1 --out "$runs/synthetic-matcher2"
superpoint export --format weights-float16 --model "$runs/synthetic-matcher2/lightglue.safetensors" --out "$runs/lightglue-synthetic-1.safetensors"
# on, with the features of the fourth run: 942 of its last scenes, warped, and 1,000 scenes by cameras that moved
mkdir -p "$runs/scenes7" "$runs/fourth"
cp "$runs/superpoint-synthetic-4.safetensors" "$runs/fourth/superpoint-synthetic.safetensors"
find "$(cd "$runs/scenes6" && pwd)" -name '*.jpg' | sort | head -n 942 | while read -r image; do
    ln -sf "$image" "$runs/scenes7/$(basename "$(dirname "$image")")-$(basename "$image")"
done
SUPERPOINT_THREADS=1 superpoint make-views "$runs/synthetic-views3" --model "$runs/fourth/superpoint-synthetic.safetensors" \
    --images "$runs/scenes7" --seed 94 --views 4 --workers 2
SUPERPOINT_THREADS=1 superpoint make-views "$runs/synthetic-views3" --model "$runs/fourth/superpoint-synthetic.safetensors" \
    --scenes 1000 --seed 95 --views 4 --workers 2
OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m frontend.cli.main train lightglue --device cpu --views "$runs/synthetic-views3" \
    --init "$runs/lightglue-synthetic-1.safetensors" --config "$recipes/synthetic-lightglue3.toml" --workers 1 --out "$runs/synthetic-matcher3"
superpoint export --format weights-float16 --model "$runs/synthetic-matcher3/lightglue.safetensors" --out "$runs/lightglue-synthetic-3.safetensors"
# a linear map from the descriptors of the network that is released
superpoint align-matcher --from "$runs/fourth/superpoint-synthetic.safetensors" --to "$runs/superpoint-synthetic.safetensors" \
    --matcher "$runs/lightglue-synthetic-3.safetensors" --images "$runs/scenes6" --limit 128 --out "$runs/aligned/lightglue-synthetic.safetensors"
superpoint export --format weights-float16 --model "$runs/aligned/lightglue-synthetic.safetensors" --out "$runs/lightglue-synthetic-4.safetensors"

# on from there on hard pairs of views, in one process of one thread; the mean of this run and of what it began with
for seed in 101 102; do
    superpoint make-views "$runs/synthetic-views4" --model "$runs/superpoint-synthetic.safetensors" --scenes 450 --seed $seed
done
OMP_NUM_THREADS=1 superpoint train lightglue --device cpu --views "$runs/synthetic-views4" --init "$runs/lightglue-synthetic-4.safetensors" \
    --config "$recipes/synthetic-lightglue4.toml" --workers 1 --out "$runs/synthetic-matcher4"
superpoint export --format weights-float16 --model "$runs/synthetic-matcher4/lightglue.safetensors" --average "$runs/lightglue-synthetic-4.safetensors" \
    --out "$runs/lightglue-synthetic-5.safetensors"
superpoint export --format weights-int8 --model "$runs/lightglue-synthetic-5.safetensors" --out "$runs/lightglue-synthetic.safetensors"
