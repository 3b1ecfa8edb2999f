#!/usr/bin/env bash
# Gets NVRTC from its wheel into the folder given and prints where the library lies: the value for NVRTC_LIBRARY_DIR.
# 12.0 is the first of CUDA 12, so that its PTX loads with every driver of CUDA 12. No card and no driver are needed.
set -euo pipefail
to=${1:?a folder for the wheel}
lib=$to/nvidia/cuda_nvrtc/lib
if [[ ! -e $lib/libnvrtc.so.12 ]]; then
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: --target "$to" nvidia-cuda-nvrtc-cu12==12.0.140 >&2
fi
cd "$lib" && pwd
