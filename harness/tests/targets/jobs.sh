#!/bin/sh
# A daemon in a few lines of shell: does the three jobs in its queue, one after the other. Usage: jobs.sh STYLE ROOT.
# With the style `again` it does a job again that it had finished before it was killed; with `forgets` it takes a job
# out of its queue before the job is done, with `starts-over` it loses a checkpoint. A style that ends in `-named` names
# the job in each line.
style=${1%-named}
named=
[ "$style" = "$1" ] || named=yes
cd "$2" || exit 9
if [ ! -d queue ]; then
    rm -rf new
    mkdir -p new ckpt done
    touch new/a new/b new/c
    mv new queue
fi
say() { echo "${named:+job $job: }$1"; }
for job in a b c; do
    [ -f "queue/$job" ] || continue
    [ -f "done/$job" ] && [ "$style" != again ] && continue
    step=0
    [ "$style" = starts-over ] && rm -f "ckpt/$job"
    [ -f "ckpt/$job" ] && read -r step <"ckpt/$job"
    [ "$style" = forgets ] && rm "queue/$job"
    say "resumed from step $step"
    while [ "$step" -lt 4 ]; do
        step=$((step + 1))
        say "step $step"
        [ $((step % 2)) -eq 0 ] || continue
        echo "$step" >ckpt/new
        mv ckpt/new "ckpt/$job"
        say "saved step $step"
    done
    echo "$step" >done/new
    mv done/new "done/$job"
    [ "$style" = again ] && rm "ckpt/$job"
    echo "finished job $job with $step"
    # It is done: nothing of it is needed to resume.
    rm -f "ckpt/$job"
done
