/* Runs a program on a kernel that seems to lack something. Usage: deny WHAT PROGRAM [ARGUMENT..]; WHAT is
 *   namespaces  no new user namespaces: unshare, and clone with CLONE_NEWUSER, fail with EPERM, and clone3
 *               with ENOSYS, as under Docker's default profile
 *   seccomp     no filters: seccomp(2), and prctl(PR_SET_SECCOMP) from now on, fail with EPERM
 *   notify      filters, but none that notifies: seccomp(2) with a listener fails with EINVAL
 *   mounts      namespaces, but no right to mount in them, as with AppArmor's restriction: EACCES
 *   network     all namespaces but network namespaces: ENOSPC, as with user.max_net_namespaces = 0
 *   both        namespaces and seccomp
 *   nothing     everything is there
 * x86-64 and arm64 only. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ANSWER(value) BPF_STMT(BPF_RET | BPF_K, value)
#define ERROR(number) ANSWER(SECCOMP_RET_ERRNO | (number))
/* Goes on with the next instruction if equal, or if a bit is set; else skips so many. */
#define IF_EQUAL(value, skipped) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skipped)
#define IF_SET(bits, skipped) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, 0, skipped)

static struct sock_filter no_namespaces[] = {
    LOAD(nr),
    IF_EQUAL(SYS_unshare, 1), ERROR(EPERM),
    IF_EQUAL(SYS_clone3, 1), ERROR(ENOSYS),
    IF_EQUAL(SYS_clone, 3), LOAD(args[0]), IF_SET(CLONE_NEWUSER, 1), ERROR(EPERM),
    ANSWER(SECCOMP_RET_ALLOW),
};

static struct sock_filter no_mounts[] = {
    LOAD(nr),
    IF_EQUAL(SYS_mount, 1), ERROR(EACCES),
    IF_EQUAL(SYS_fsopen, 1), ERROR(EACCES),
    IF_EQUAL(SYS_open_tree, 1), ERROR(EACCES),
    IF_EQUAL(SYS_move_mount, 1), ERROR(EACCES),
    ANSWER(SECCOMP_RET_ALLOW),
};

static struct sock_filter no_network[] = {
    LOAD(nr),
    IF_EQUAL(SYS_clone3, 1), ERROR(ENOSYS),
    IF_EQUAL(SYS_unshare, 3), LOAD(args[0]), IF_SET(CLONE_NEWNET, 1), ERROR(ENOSPC),
    LOAD(nr),
    IF_EQUAL(SYS_clone, 3), LOAD(args[0]), IF_SET(CLONE_NEWNET, 1), ERROR(ENOSPC),
    ANSWER(SECCOMP_RET_ALLOW),
};

static struct sock_filter no_listeners[] = {
    LOAD(nr),
    IF_EQUAL(SYS_seccomp, 3), LOAD(args[1]), IF_SET(SECCOMP_FILTER_FLAG_NEW_LISTENER, 1), ERROR(EINVAL),
    ANSWER(SECCOMP_RET_ALLOW),
};

static struct sock_filter no_seccomp[] = {
    LOAD(nr),
    IF_EQUAL(SYS_seccomp, 1), ERROR(EPERM),
    IF_EQUAL(SYS_prctl, 3), LOAD(args[0]), IF_EQUAL(PR_SET_SECCOMP, 1), ERROR(EPERM),
    ANSWER(SECCOMP_RET_ALLOW),
};

static void install(struct sock_filter *filter, size_t count) {
    struct sock_fprog program = {count, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("deny");
        _exit(125);
    }
}

#define INSTALL(filter) install(filter, sizeof filter / sizeof filter[0])

int main(int count, char **arguments) {
    if (count < 3) return 125;
    const char *what = arguments[1];
    int both = !strcmp(what, "both");
    if (both || !strcmp(what, "namespaces")) INSTALL(no_namespaces);
    if (!strcmp(what, "mounts")) INSTALL(no_mounts);
    if (!strcmp(what, "network")) INSTALL(no_network);
    if (!strcmp(what, "notify")) INSTALL(no_listeners);
    /* Last, because it denies the installation of others. */
    if (both || !strcmp(what, "seccomp")) INSTALL(no_seccomp);
    execvp(arguments[2], arguments + 2);
    perror(arguments[2]);
    return 125;
}
