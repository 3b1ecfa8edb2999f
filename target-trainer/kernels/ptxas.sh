#!/usr/bin/env bash
# Installs ptxas from its wheel into the given directory and assembles the committed PTX for two GPU
# architectures. Prints a Markdown table of each kernel's registers for each thread, spilled bytes and stack
# bytes. Fails if a kernel spills. Does not update registers.md.
#
#   ptxas.sh DIRECTORY
set -euo pipefail
to=${1:?the directory for the wheel}
ptxas=$to/nvidia/cuda_nvcc/bin/ptxas
if [[ ! -e $ptxas ]]; then
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --only-binary=:all: --target "$to" nvidia-cuda-nvcc-cu12==12.8.93 >&2
    chmod +x "$ptxas"
fi
here=$(cd "$(dirname "$0")" && pwd)
for arch in sm_80 sm_90; do
    "$ptxas" -arch="$arch" -v "$here/ptx/kernels.ptx" -o /dev/null 2>&1 | sed "s/^/$arch /"
done | awk '
    /Function properties for/ { kernel = $NF }
    /Compiling entry function/ { kernel = $0; sub(/.*function \047/, "", kernel); sub(/\047.*/, "", kernel) }
    /bytes stack frame/ { stack = $2; spilled = $6 + $10 }
    /Used [0-9]+ registers/ {
        for (i = 1; i <= NF; i++) if ($i == "Used") registers[kernel, $1] = $(i + 1)
        spills[kernel, $1] = spilled; frames[kernel, $1] = stack; total += spilled
        if (!(kernel in seen)) { seen[kernel] = 1; order[++count] = kernel }
    }
    END {
        if (count == 0) { print "no kernel was assembled" > "/dev/stderr"; exit 1 }
        print "| kernel | sm_80 registers | spilled | stack | sm_90 registers | spilled | stack |"
        print "|---|--:|--:|--:|--:|--:|--:|"
        for (i = 1; i <= count; i++) {
            k = order[i]
            printf "| `%s` | %d | %d | %d | %d | %d | %d |\n", k,
                registers[k, "sm_80"], spills[k, "sm_80"], frames[k, "sm_80"],
                registers[k, "sm_90"], spills[k, "sm_90"], frames[k, "sm_90"]
        }
        exit total > 0
    }' | { IFS= read -r head; IFS= read -r rule; printf '%s\n%s\n' "$head" "$rule"; sort; }
