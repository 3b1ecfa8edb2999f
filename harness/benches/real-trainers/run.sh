#!/usr/bin/env bash
# Explores the real trainers in this directory and prints one line for each: seconds, states, findings.
# Usage: run.sh TRAINWRECK PYTHON [NAME...]   (OPTIONS="--no-warm", CRASH=process|power|all, MAX_STATES=N|all)
set -euo pipefail
trainwreck=$(realpath "$1")
python=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(hf_trainer accelerate_state torch_dcp keras_jax orbax_manager xgboost_rounds lightning_fit)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
printf '%-18s %8s %8s %9s  %s\n' trainer seconds states findings notes
for name in "${names[@]}"; do
    began=$(date +%s.%N)
    code=0
    # shellcheck disable=SC2086
    "$trainwreck" explore --watch "$work/runs" --same '^(?:weights|model) (\w+)' --crash "${CRASH:-process}" \
        --max-states "${MAX_STATES:-20000}" --timeout 60s --json "$work/$name.json" ${OPTIONS:-} \
        -- "$python" "$here/$name.py" "$work/runs" >"$work/$name.log" 2>&1 || code=$?
    seconds=$(echo "$(date +%s.%N) - $began" | bc)
    if [ -e "$work/$name.json" ]; then
        read -r states findings < <("$python" -c '
import json, sys
result = json.load(open(sys.argv[1]))
print(result["tried"], len(result["findings"]))' "$work/$name.json")
    else
        states=- findings=-
    fi
    notes=$(grep -m1 -E 'recoveries are forked|new process' "$work/$name.log" || tail -n 1 "$work/$name.log")
    printf '%-18s %8.1f %8s %9s  exit %s; %s\n' "$name" "$seconds" "$states" "$findings" "$code" "${notes:0:150}"
    [ -z "${LOGS:-}" ] || cp "$work/$name".* "$LOGS"/
done
uptime
