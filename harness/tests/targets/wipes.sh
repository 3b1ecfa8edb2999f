#!/bin/sh
# A trainer that throws its checkpoints away at each start. Usage: wipes.sh DIR
rm -rf "$1"/*
echo "resumed from step 0"
for step in 1 2 3; do
    echo "$step" >"$1/new" && sync "$1/new" && mv "$1/new" "$1/checkpoint" && sync "$1"
    echo "saved step $step"
done
echo "final sum 3"
