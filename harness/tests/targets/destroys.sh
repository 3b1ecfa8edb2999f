#!/bin/sh
# A trainer that saves to `runs` in its working directory, and destroys what is around it. Usage: destroys.sh
# NAME; NAME is one of the names below. It destroys only in a directory that has the file `may-be-harmed`, or
# that is new. It trains 4 steps, saves each one, and resumes from its newest checkpoint.
[ -f may-be-harmed ] || [ -z "$(ls -A)" ] || { echo "no file may-be-harmed in $PWD" >&2; exit 9; }
: >>may-be-harmed

# Names that its own files survive.
name_none() { :; }
name_tmp() { find /tmp -maxdepth 1 -type f -delete; rm -rf /tmp/trainwreck*; }
name_tmpdir() { rm -rf "$TMPDIR"/* "$TMPDIR"; }
name_shared_memory() { rm -rf /dev/shm/*; mkdir -p /dev/shm/a/b; chmod 000 /dev/shm/a; chmod 000 /dev/shm; }
name_run() { rm -rf /run/*; }
name_mode_tmp() { chmod 000 /tmp; }
name_fill_root() { echo new >/new-file; mkdir -p /new/dir; mv /bin /old-bin; mv /old-bin /bin; }
name_fill_tmp() { dd if=/dev/zero of=/tmp/filled bs=1M count=64; }
name_daemon() { (trap '' TERM INT HUP; sleep 600 >/dev/null 2>&1 &); }
name_deep() { d=/tmp/deep; i=0; while [ $i -lt 200 ]; do d=$d/directory; i=$((i + 1)); done; mkdir -p "$d"; }
name_locked() { mkdir -p /tmp/l/m /dev/shm/l/m; chmod 000 /tmp/l/m /tmp/l /dev/shm/l/m /dev/shm/l; }
name_kill_init() { kill -9 1; kill -STOP 1; kill -INT 1; }
name_limit_init() { for limit in nofile=0 as=1 cpu=1 nproc=1 fsize=0; do prlimit --pid 1 --"$limit"; done; }
name_output() { head -c 3000000 /dev/zero | tr '\0' x; echo; head -c 100000 /dev/urandom; echo; }
name_control() { printf '\033]0;title\007\033[2J\033[1A'; }
name_mounts() { umount -l "$PWD" /tmp / /dev/shm runs; mount -t tmpfs none "$PWD"; }
name_namespace() { unshare -Urm sh -c 'mount -t tmpfs none /tmp; umount -l /'; }
name_closes() { exec 0<&-; for fd in 3 4 5 6 7 8 9; do eval "exec $fd>&-"; done; }

# Names that may harm itself.
name_own_files() { rm -rf ./* ./.[!.]*; }
name_above() { rm -rf ../*; }
name_home() { rm -rf "$HOME"; }
name_state() { rm -rf "$HOME/.local" "$HOME/.cache"; }
name_var_tmp() { find /var/tmp -mindepth 1 -delete; }
name_visible() { rm -rf /trainwreck*; rm -rf /trainwreck*/* /trainwreck*/.[!.]*; }
name_modes_visible() { chmod -R 000 /trainwreck*; }
name_move_itself() { mv "$PWD" "$PWD.moved"; }
name_move_above() { mv "$(dirname "$PWD")" "$(dirname "$PWD").moved"; }
name_mode_root() { chmod 000 /; }
name_mode_here() { chmod 000 .; }
name_modes_here() { chmod -R 000 .; }
name_mode_watched() { chmod 000 runs; }
name_watched_gone() { rm -rf runs; }
name_watched_link() { rm -rf runs; ln -s "$HOME" runs; }
name_watched_link_etc() { rm -rf runs; ln -s /etc runs; }
name_watched_file() { rm -rf runs; : >runs; }
name_watched_moved() { mv runs runs.old; mkdir runs; }
name_watched_mount() { mkdir -p runs/m; mount -t tmpfs none runs/m; mount --bind / runs/m; }
name_watched_devices() { mkfifo runs/pipe; mknod runs/null c 1 3; mknod runs/disk b 7 0; mknod runs/gone c 0 0; }
name_watched_names() { touch "$(printf 'runs/a\nb\377')"; ln -s runs runs/loop; ln -s /proc/self/root runs/root; }
name_kill_all() { kill -9 -1; }
name_kill_group() { kill -9 0; }
name_kill_parent() { kill -9 $PPID; }
name_stop_all() { kill -STOP -1; }
name_stop_itself() { kill -STOP $$; }
name_closes_outputs() { exec 0<&- 1>&- 2>&-; }
name_file_limit() { ulimit -f 0; }
name_descriptor_limit() { ulimit -n 4; }
name_process_limit() { ulimit -u 1; }
name_memory_limit() { ulimit -v 4000; }
name_cpu_limit() { ulimit -t 1; while :; do :; done; }
name_fork() { i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i + 1)); done; }

mkdir -p runs
step=0
for saved in runs/checkpoint-*; do
    number=${saved##*-}
    [ -f "$saved" ] && [ "$number" -gt "$step" ] && step=$number
done
echo "resumed from step $step"
while [ "$step" -lt 4 ]; do
    step=$((step + 1))
    echo "step $step"
    echo "$step" >"runs/new" && mv runs/new "runs/checkpoint-$step"
    echo "saved step $step"
    [ "$step" = 2 ] && "name_$1" 2>/dev/null
done
echo "finished with 4"
exit 0
