#!/usr/bin/env bash
# Installs NVRTC from its wheel into the given directory and prints the directory of the library: the value
# for NVRTC_LIBRARY_DIR. 12.0 is the first NVRTC of CUDA 12, so its PTX loads with every driver of CUDA 12.
# Needs no GPU and no driver.
#
#   nvrtc.sh DIRECTORY
set -euo pipefail
to=${1:?the directory for the wheel}
lib=$to/nvidia/cuda_nvrtc/lib
if [[ ! -e $lib/libnvrtc.so.12 ]]; then
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --only-binary=:all: --target "$to" nvidia-cuda-nvrtc-cu12==12.0.140 >&2
fi
cd "$lib" && pwd
