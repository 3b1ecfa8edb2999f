#!/usr/bin/env bash
# Compares tokens per second of LoRA training: target-trainer, and PyTorch + PEFT (eager and torch.compile).
# The trainers alternate in every round, on one GPU.
#
#   target-trainer/benches/gpu/run.sh [--rounds 3] [--out DIRECTORY]
#
# Needs a GPU, cargo or a built `target-trainer` (TARGET_TRAINER=path), and a Python with torch, transformers
# and peft (PYTHON=path). Writes results.jsonl and table.md into DIRECTORY (default: a new temporary
# directory) and prints the table.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rounds=3 out=
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "run.sh: unknown argument \`$1\`; known are --rounds and --out" >&2; exit 2 ;;
    esac
done
out=${out:-$(mktemp -d)}
mkdir -p "$out"
python=${PYTHON:-python3}
if [ -z "${TARGET_TRAINER:-}" ]; then
    (cd "$here/../../.." && cargo build --release --quiet -p target-trainer)
    TARGET_TRAINER=$here/../../../target/release/target-trainer
fi
"$TARGET_TRAINER" bench --help >/dev/null
"$python" -c 'import torch, transformers, peft; assert torch.cuda.is_available(), "torch sees no GPU"' ||
    {
        echo "run.sh: \`$python\` lacks torch with CUDA, transformers or peft; set PYTHON to another one" >&2
        exit 3
    }

results=$out/results.jsonl
: >"$results"
log() { echo "$(date +%T) $*" >&2; }
measure() { # shape batch command...
    local shape=$1 batch=$2; shift 2
    log "$shape batch $batch: $*"
    # A failed run gets its own row in the table; the other runs continue.
    local line
    if line=$("$@" 2>>"$out/errors.log" | tail -n 1) && [ -n "$line" ]; then
        echo "{\"round\":$round,\"shape\":\"$shape\",\"batch\":$batch,\"result\":$line}" >>"$results"
    else
        echo "{\"round\":$round,\"shape\":\"$shape\",\"batch\":$batch,\"failed\":\"$*\"}" >>"$results"
    fi
}
for round in $(seq "$rounds"); do
    log "round $round of $rounds"
    for setting in 'llama124m 16' 'llama1b 8'; do
        read -r shape batch <<<"$setting"
        size=(--shape "$shape" --sequence 1024 --batch "$batch" --rank 16 --steps 20)
        measure "$shape" "$batch" "$TARGET_TRAINER" bench "${size[@]}" --device cuda:0 --precision bf16
        measure "$shape" "$batch" "$python" "$here/baseline.py" "${size[@]}"
        measure "$shape" "$batch" "$python" "$here/baseline.py" "${size[@]}" --compile
    done
done
# target-trainer only: the cost of saving, and the time of each kernel.
for setting in 'llama124m 16' 'llama1b 8'; do
    read -r shape batch <<<"$setting"
    size=(--shape "$shape" --sequence 1024 --batch "$batch" --rank 16 --steps 20)
    size+=(--device cuda:0 --precision bf16)
    measure "$shape" "$batch" "$TARGET_TRAINER" bench "${size[@]}" --save-every 5
    "$TARGET_TRAINER" bench "${size[@]}" --profile >"$out/profile-$shape.txt" 2>>"$out/errors.log" ||
        log "no profile of $shape; see $out/errors.log"
done
"$python" "$here/table.py" "$results" | tee "$out/table.md"
for shape in llama124m llama1b; do
    if [ -s "$out/profile-$shape.txt" ]; then
        printf '\n%s, time of each kernel:\n\n' "$shape"
        cat "$out/profile-$shape.txt"
    fi
done | tee -a "$out/table.md"
log "results are in $out"
