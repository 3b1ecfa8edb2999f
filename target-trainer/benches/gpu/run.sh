#!/usr/bin/env bash
# Tokens per second of LoRA training, ours beside PyTorch + PEFT (eager and torch.compile), by turns in one run on one card.
#
#   target-trainer/benches/gpu/run.sh [--rounds 3] [--out FOLDER]
#
# Needs a card, cargo or a built `target-trainer` (TARGET_TRAINER=path), and a Python with torch, transformers and peft (PYTHON=path).
# Writes results.jsonl and table.md into FOLDER (default: a new one in the temporary folder) and prints the table.
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
    { echo "run.sh: \`$python\` needs torch with CUDA, transformers and peft; name another one by PYTHON=" >&2; exit 3; }

results=$out/results.jsonl
: >"$results"
say() { echo "$(date +%T) $*" >&2; }
one() { # shape batch who command...
    local shape=$1 batch=$2; shift 2
    say "$shape batch $batch: $*"
    # One that fails is told in the table, the others go on.
    local line
    if line=$("$@" 2>>"$out/errors.log" | tail -n 1) && [ -n "$line" ]; then
        echo "{\"round\":$round,\"shape\":\"$shape\",\"batch\":$batch,\"result\":$line}" >>"$results"
    else
        echo "{\"round\":$round,\"shape\":\"$shape\",\"batch\":$batch,\"failed\":\"$*\"}" >>"$results"
    fi
}
for round in $(seq "$rounds"); do
    say "round $round of $rounds"
    for setting in 'llama124m 16' 'llama1b 8'; do
        read -r shape batch <<<"$setting"
        size=(--shape "$shape" --sequence 1024 --batch "$batch" --rank 16 --steps 20)
        one "$shape" "$batch" "$TARGET_TRAINER" bench "${size[@]}" --device cuda:0 --precision bf16
        one "$shape" "$batch" "$python" "$here/baseline.py" "${size[@]}"
        one "$shape" "$batch" "$python" "$here/baseline.py" "${size[@]}" --compile
    done
done
# What a save costs a step, and where the time goes: ours alone.
for setting in 'llama124m 16' 'llama1b 8'; do
    read -r shape batch <<<"$setting"
    size=(--shape "$shape" --sequence 1024 --batch "$batch" --rank 16 --steps 20 --device cuda:0 --precision bf16)
    one "$shape" "$batch" "$TARGET_TRAINER" bench "${size[@]}" --save-every 5
    "$TARGET_TRAINER" bench "${size[@]}" --profile >"$out/profile-$shape.txt" 2>>"$out/errors.log" || say "no profile of $shape"
done
"$python" "$here/table.py" "$results" | tee "$out/table.md"
for shape in llama124m llama1b; do
    if [ -s "$out/profile-$shape.txt" ]; then printf '\n%s, where the time goes:\n\n' "$shape"; cat "$out/profile-$shape.txt"; fi
done | tee -a "$out/table.md"
say "in $out"
