#!/usr/bin/env bash
# Train on CIFAR-10 for some minutes, sample, and print FID against the training set:
#   experiments/speed/cifar10_gpu.sh [MINUTES] [IMAGES] [RUN] [more flags for `ddpm train`]
# Needs a GPU, and $DDPM_DATA with CIFAR-10 and the feature network.
set -euo pipefail
minutes=${1:-60} images=${2:-50000} run=${3:-runs/cifar10_gpu}
shift $(($# < 3 ? $# : 3))

# on SIGINT the run saves a checkpoint and exits with code 130
code=0
timeout --signal=INT "${minutes}m" ddpm train "${PRESET:-cifar10_fast}" --out "$run" "$@" || code=$?
[[ $code == 0 || $code == 124 || $code == 130 ]] || exit "$code"

ddpm evaluate "$run" --data "${DATA:-cifar10}" --metrics fid --num "$images" \
    --sampler "${SAMPLER:-dpm++}" --steps "${STEPS:-50}" --features "${FEATURES:-inception}" --force \
    --out "$run/fid.json" --overwrite
