#!/usr/bin/env bash
# All that a GPU has to show, in the order of worth and in at most nine minutes: make gpu
# Needs $DDPM_DATA with CIFAR-10 and, for FID, the feature network. Each part writes its figures as it ends.
set -uo pipefail
part() { # SECONDS TITLE COMMAND...
    local limit=$1; shift
    echo "== $1"; shift
    timeout --signal=INT "$limit" "$@" || echo "== ended with code $?"
}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/runs/compiled} # nothing is compiled twice
part 100 "tests" "$PYTHON" -m pytest -q -x tests/test_cuda.py
part 120 "speed beside Diffusers" "$PYTHON" -m experiments.speed.run gpu --rounds 5
part 40 "profile" "$PYTHON" -m experiments.speed.profile cifar10_fast
part 200 "training" "$PYTHON" -m ddpm train cifar10_fast --minutes 3 --training.preview_every 0 \
    --data.labels true --out runs/cifar10_gpu --overwrite
part 80 "FID of 10,000" "$PYTHON" -m ddpm evaluate runs/cifar10_gpu --data cifar10 --metrics fid --num 10000 \
    --features inception --out runs/cifar10_gpu/fid.json --overwrite
