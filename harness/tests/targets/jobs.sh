#!/bin/sh
# A daemon in a few lines of shell: does the three jobs in its queue, one after the other. Usage: jobs.sh STYLE ROOT.
# With the style `again` it does a job again that it had finished before it was killed.
style=$1
cd "$2" || exit 9
mkdir -p ckpt queue done
for job in a b c; do
    [ -f "done/$job" ] && [ "$style" != again ] && continue
    step=0
    [ -f "ckpt/$job" ] && read -r step <"ckpt/$job"
    echo "resumed from step $step"
    while [ "$step" -lt 4 ]; do
        step=$((step + 1))
        echo "step $step"
        [ $((step % 2)) -eq 0 ] || continue
        echo "$step" >ckpt/new
        mv ckpt/new "ckpt/$job"
        echo "saved step $step"
    done
    echo "$step" >done/new
    mv done/new "done/$job"
    [ "$style" = again ] && rm "ckpt/$job"
    echo "finished job $job with $step"
    # It is done: nothing of it is needed to resume.
    rm -f "ckpt/$job"
done
