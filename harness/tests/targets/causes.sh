#!/bin/sh
# A trainer in a few lines of shell. Usage: causes.sh STYLE DIRECTORY. It trains 6 steps, or 12 where old
# checkpoints are pruned or saves end late, saves every third one, and resumes from its newest checkpoint. Each style has one
# defect of a save or of a resume. Those that begin with `sound` do the same without the defect.
style=$1
cd "$2" || exit 9
last=6
offset=0

fail() { echo "Error: $1" >&2; exit 1; }

# Writes a checkpoint in two parts, so that it can be half written.
put() { { echo "$n"; echo complete; } >"$1"; }

# Reads what `put` has written into `n`.
get() {
    [ -e "$1" ] || fail "there is no $1"
    { read -r n && read -r complete; } <"$1" || fail "checkpoint $1 is incomplete"
    [ "$complete" = complete ] || fail "checkpoint $1 is damaged"
}

replace() { put t && sync t && mv t "$1" && sync .; }

# The newest name that begins with $1 and ends with a number.
newest() {
    found=
    for name in "$1"*; do
        [ -e "$name" ] && { [ -z "$found" ] || [ "${name##*-}" -gt "${found##*-}" ]; } && found=$name
    done
}

save() {
    case $style in
    in-place-run) mkdir -p run-1; put run-1/s; sync run-1/s; sync run-1; sync . ;;
    *in-place) put s; sync s; sync . ;;
    in-place-pointer) replace "c-$n"; echo "c-$n" >latest; sync latest; sync . ;;
    copied) put t; sync t; cp t s; sync s; rm t; sync . ;;
    unfinished) mkdir "d-$n"; put "d-$n/a"; put "d-$n/b"; sync "d-$n/a" "d-$n/b"; sync "d-$n"; sync . ;;
    sound-directory)
        rm -rf new; mkdir new; put new/a; put new/b; sync new/a new/b; sync new; mv new "d-$n"; sync . ;;
    deleted-first) put t; sync t; rm -f s; mv t s; sync . ;;
    marker-first) echo "c-$n" >p; sync p; mv p latest; sync .; replace "c-$n" ;;
    sound-marker) replace "c-$n"; echo "c-$n" >p; sync p; mv p latest; sync . ;;
    no-order) put "c-$n"; sync "c-$n"; echo "c-$n" >p; sync p; mv p latest; sync . ;;
    mixed) put t; put u; sync t u; mv t a; mv u b; sync . ;;
    no-fsync) put t; mv t s; sync . ;;
    no-directory-sync) put t; sync t; mv t s ;;
    too-early) echo "saved step $n"; replace s ;;
    # A save is announced at once, and ends with the next one.
    background) [ "$n" -eq 3 ] || { n=$((n - 3)); replace s; n=$((n + 3)); } ;;
    # The same, but several saves end at once.
    background-burst)
        [ $((n % 12)) -eq 0 ] && { n=$((n - 9)); replace s; n=$((n + 3)); replace s; n=$((n + 3)); replace s; n=$((n + 3)); } ;;
    background-directory)
        [ "$n" -eq 3 ] || { put "d-$((n - 3))/b"; sync "d-$((n - 3))/b"; : >"d-$((n - 3))/complete"; sync .; }
        mkdir "d-$n"; put "d-$n/a"; sync "d-$n/a" ;;
    lock | lock-fails | sound-lock)
        until mkdir lock 2>/dev/null; do
            [ "$style" = lock-fails ] && fail "another process is saving"
            sleep 0.02
        done
        replace s
        rmdir lock
        ;;
    pruned) set -- c-*; [ $# -ge 3 ] && { rm "$1"; sync .; }; replace "c-$n" ;;
    pruned-directory) set -- d-*; [ $# -ge 3 ] && { rm -r "$1"; sync .; }
        mkdir new; put new/a; sync new/a; sync new; mv new "d-$n"; sync . ;;
    sound-pruned)
        replace "c-$n"
        set -- $(ls -d c-* | sort -t - -k 2 -n)
        [ $# -ge 4 ] && { rm "$1"; sync .; }
        ;;
    *) replace s ;;
    esac
}

load() {
    case $style in
    unfinished | sound-directory)
        newest d-; [ -n "$found" ] && { get "$found/a"; get "$found/b"; } ;;
    background-directory)
        for name in d-*; do [ -e "$name/complete" ] || rm -rf "$name"; done
        newest d-; [ -n "$found" ] && get "$found/a" ;;
    pruned-directory) rm -rf new; newest d-; [ -n "$found" ] && get "$found/a" ;;
    in-place-pointer | marker-first | sound-marker | no-order)
        [ -e latest ] && { read -r name <latest || fail "latest is empty"; } &&
            { [ -e "$name" ] || fail "there is no $name"; } && get "$name" ;;
    mixed)
        [ -e a ] && [ -e b ] && { get a; one=$n; get b; [ "$n" = "$one" ] || fail "a and b differ"; } ;;
    pruned | sound-pruned) newest c-; [ -n "$found" ] && get "$found" ;;
    in-place-run) [ -e run-1/s ] && get run-1/s ;;
    starts-over | silent) ;;
    crashes) [ -e s ] && fail "key optimizer is missing" ;;
    hangs) [ -e s ] && sleep 1000 ;;
    other-samples*) [ -e s ] && { get s; offset=100; } ;;
    other-value) [ -e s ] && { get s; value=100; } ;;
    later-samples) [ -e s ] && { get s; late=100; } ;;
    ends-early) [ -e s ] && { get s; [ "$n" -lt "$last" ] && last=$((last - 1)); } ;;
    sound-lock) rm -rf lock; [ -e s ] && get s ;;
    run-lock) [ -e run.lock ] && fail "run.lock is there"; : >run.lock; [ -e s ] && get s ;;
    *) [ -e s ] && get s ;;
    esac
}

n=0
value=0
late=0
case $style in background-burst) last=48 ;; *pruned* | background*) last=12 ;; esac
load
if [ "$style" = sound-from-0 ] && [ ! -e s ]; then replace s; echo "saved step 0"; fi
[ "$style" = silent ] || echo "resumed from step $n"
while [ "$n" -lt "$last" ]; do
    n=$((n + 1))
    case $style in later-samples) [ $((n % 3)) -ne 1 ] && offset=$late ;; esac
    echo "step $n ate $((n + offset))"
    case $style in *pruned*) ;; *) [ $((n % 3)) -eq 0 ] || continue ;; esac
    save
    case $style in too-early*) ;; *) echo "saved step $n" ;; esac
done
[ "$style" = run-lock ] && rm run.lock
case $style in
background | background-burst) replace s ;;
background-directory) [ -e d-12/complete ] || { put d-12/b; : >d-12/complete; sync .; } ;;
esac
echo "finished with $value"
[ "$style" = tidies ] && { rm -f s; sync .; replace s; }
exit 0
