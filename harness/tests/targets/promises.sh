#!/bin/sh
# A trainer in a few lines of shell that promises more than it holds. Usage: promises.sh STYLE ROOT. Each style but
# `sound`, `stderr`, `returns`, `chatty`, `from-zero` and `one-shot` has one defect. It saves each third of 9 steps.
style=$1
cd "$2" || exit 9
mkdir -p ckpt
say() { echo "$1"; }
case $style in
stderr*) say() { echo "$1" >&2; } ;;
returns*) say() { printf '%s\r' "$1"; } ;;
chatty*)
    # What matters is in the middle of a long log.
    noise=$(seq -f 'a line of a log, number %.0f' 400)
    say() { printf '%s\n%s\n%s\n' "$noise" "$1" "$noise"; }
    ;;
esac

save() {
    case $style in
    too-soon)
        say "saved step $step"
        echo "$step" >ckpt/new && mv ckpt/new ckpt/latest
        return
        ;;
    swallows | swallows-one-shot | never-resumes) (echo "$step" >ckpt/new && mv ckpt/new ckpt/latest) 2>/dev/null ;;
    swallows-writes) (echo "$step" >ckpt/new; mv ckpt/new ckpt/latest) 2>/dev/null ;;
    in-place) (echo "$step" >ckpt/latest) 2>/dev/null || exit 74 ;;
    *-lost) (echo "$step" >ckpt/new && mv ckpt/new ckpt/lost) 2>/dev/null ;;
    *)
        # Asks how it went, and tries once more.
        { echo "$step" >ckpt/new && mv ckpt/new ckpt/latest; } 2>/dev/null ||
            { echo "$step" >ckpt/new && mv ckpt/new ckpt/latest; } 2>/dev/null || exit 74
        ;;
    esac
    say "saved step $step"
}

step=0
if [ -f ckpt/latest ] && [ "$style" != never-resumes ]; then
    [ -s ckpt/latest ] || { echo "Error: ckpt/latest is empty" >&2; exit 70; }
    read -r step <ckpt/latest
elif [ "$style" = from-zero ]; then
    save
fi
say "resumed from step $step"
end=9
began=$step
case $style in
*ends-early) [ "$step" -gt 0 ] && [ "$step" -lt 9 ] && end=$((step + 1)) ;;
esac
[ "$style" = leaves-out ] && [ "$step" -gt 0 ] && [ "$step" -lt 9 ] && step=$((step + 1))
while [ "$step" -lt "$end" ]; do
    step=$((step + 1))
    say "step $step"
    [ "$style" = repeats ] && [ "$began" -gt 0 ] && [ "$step" = 8 ] && say "step 7" && say "step 8"
    [ $((step % 3)) -eq 0 ] && save
done
case $style in
*one-shot) rm -f ckpt/latest ;;
esac
value=9
[ "$style" = resumes-wrong ] && [ "$began" -gt 0 ] && [ "$began" -lt 9 ] && value=8
say "finished $value"
if [ "$style" = forgets-the-end ]; then
    rm -f ckpt/latest
    echo 9 >ckpt/latest
fi
exit 0
