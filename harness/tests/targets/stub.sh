#!/bin/sh
# A trainer in a few lines, sound or bad in one way: stub.sh STYLE ROOT
# It counts steps, keeps a running value, saves every third step, and resumes from its save.
style=$1
cd "$2" || exit 9
mkdir -p ckpt
asked=0
if [ "$style" = ignores-sigterm ]; then trap '' TERM; else trap 'asked=1' TERM; fi

save() {
    case $style in
    torn)
        printf '%s ' "$step" >ckpt/latest
        sleep 0.03
        echo "$value" >>ckpt/latest
        ;;
    deletes-first)
        rm -f ckpt/latest
        sleep 0.03
        echo "$step $value" >ckpt/aside
        mv ckpt/aside ckpt/latest
        ;;
    promises-early) ;;
    *)
        echo "$step $value" >ckpt/aside
        mv ckpt/aside ckpt/latest
        ;;
    esac
    echo "saved step $step"
    if [ "$style" = promises-early ]; then
        sleep 0.03
        echo "$step $value" >ckpt/aside
        mv ckpt/aside ckpt/latest
    fi
}

step=0
value=1
if [ -f ckpt/latest ]; then
    read -r step value <ckpt/latest
    value=${value:-0}
    [ "$style" = hangs ] && sleep 1000
fi
echo "resumed from step $step"
while [ "$step" -lt 12 ]; do
    sleep 0.02
    step=$((step + 1))
    value=$(((value * 31 + step) % 1000003))
    echo "step $step"
    [ $((step % 3)) -eq 0 ] && save
    if [ "$asked" = 1 ]; then
        save
        exit 0
    fi
done
if [ "$style" = leaks-a-child ]; then
    sleep 1000 >/dev/null 2>&1 &
fi
echo "finished with $value"
