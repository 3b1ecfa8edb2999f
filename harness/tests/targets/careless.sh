#!/bin/sh
# A trainer that saves to the relative directory `runs`, and harms what is around it. Usage: careless.sh
# HABITS [OPTION..]; HABITS are names of functions below, with commas. It harms only a directory that has
# the file `may-be-harmed`. It trains 6 steps, saves every second one, and resumes from its newest checkpoint.
[ -f may-be-harmed ] || { echo "no file may-be-harmed in $PWD" >&2; exit 9; }
habits=$1
mark=${TRAINWRECK_TEST_MARK:-unmarked}

logs() { echo "a line" >>logs/train.log; date >>logs/new.log; }
home() { echo "new" >>"$HOME/.cache/token"; mkdir -p "$HOME/.new-$mark"; }
temporary() { echo "new" >"/tmp/x-$mark"; }
modes() { chmod 777 secret; chmod -R go+w .git; chmod 700 .; }
rename() { mv logs logs.old; mkdir logs; mv .git/HEAD .git/HEAD.old; mv secret logs/secret; }
truncate() { : >data/shard.bin; : >sparse.img; }
hardlink() { ln secret runs/secret && echo "new" >>runs/secret; }
through_link() { echo "new" >runs/out/new; rm -f runs/out/kept; echo "new" >>runs/out/shard.bin; }
dates() { touch -d 2001-01-01 secret; touch data; }
special() { mkfifo data/pipe; ln -s / data/root; }
# Writes on after its own end, and after that of the harness.
daemon() { (while :; do echo "late" >>logs/train.log; sleep 0.02; done >/dev/null 2>&1 &); }
rename_itself() { mv "$PWD" "$PWD.moved"; }
# Long enough that a signal comes before the end.
pause() { sleep 2; }
wipe() { find . -mindepth 1 ! -name may-be-harmed -delete; }

do_habits() {
    for habit in $(echo "$habits" | tr , ' '); do
        [ "$habit" = none ] || "$habit" 2>/dev/null
    done
}

mkdir -p runs
step=0
for saved in runs/checkpoint-*; do
    number=${saved##*-}
    [ -f "$saved/done" ] && [ "$number" -gt "$step" ] && [ "$number" -le 6 ] && step=$number
done
echo "resumed from step $step"
while [ "$step" -lt 6 ]; do
    step=$((step + 1))
    sleep 0.01
    echo "step $step"
    if [ $((step % 2)) -eq 0 ]; then
        mkdir -p "runs/checkpoint-$step"
        echo "$step" >"runs/checkpoint-$step/model.bin"
        echo >"runs/checkpoint-$step/done"
        # Keeps the two newest checkpoints of all that are there.
        echo "runs/checkpoint-$step" >runs/latest
        for old in $(ls -dt runs/checkpoint-* | tail -n +3); do rm -rf "$old"; done
        echo "saved step $step"
        [ "$step" = 2 ] && do_habits
    fi
done
echo "finished with 6"
exit 0
