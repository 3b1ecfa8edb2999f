/* Runs programs of file-system calls and prints what each call did, for the tests of the gate. The result must be
 * the same with and without the gate.
 *
 * `random_calls FILE` runs the programs in FILE. A line `program DIRECTORY` begins one; it runs in a process of its
 * own in that directory. Each other line is a call: its name, then its arguments. A line that begins with `>` is run
 * by a child of the program, which shares its descriptors; the program waits for its end.
 *
 * Arguments: `=3` puts the descriptor that the call returns into slot 3, `@3` is the descriptor in slot 3, `:a/b` is
 * a path or a text, in which `{3}` is the number in slot 3 and `~` is the program's directory; `A|B` are flags by
 * their names; everything else is a number. `buf`, `buf+5`, `end-5`, `low`, `null` and `kernel` are addresses. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Of Linux 6.6; the C library may not have it yet. */
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif
#ifndef RWF_NOAPPEND
#define RWF_NOAPPEND 0x20
#endif

#define SLOTS 8
#define MAX_ARGUMENTS 12
/* More than two of the pieces in which the supervisor copies bytes. */
#define BLOCK_BYTES (640 * 1024)
#define PAGE 4096
/* A program that waits for so long will never end. */
#define MAX_SECONDS 20

static char said[1 << 16];
static size_t said_bytes;
static int report_fd;
static int slots[SLOTS];
static char *maps[SLOTS];
static size_t map_bytes[SLOTS];
static char *block;
static char home[PATH_MAX];
static int too_large;
static sigjmp_buf after_fault;
static volatile sig_atomic_t may_fault;

static char *arguments[MAX_ARGUMENTS];
static int argument_count;
static unsigned step;

static void flush_report(void) {
    size_t done = 0;
    while (done < said_bytes) {
        ssize_t written = write(report_fd, said + done, said_bytes - done);
        if (written <= 0) break;
        done += written;
    }
    said_bytes = 0;
}

static void say(const char *format, ...) {
    va_list list;
    if (said_bytes > sizeof said - 2048) flush_report();
    va_start(list, format);
    said_bytes += vsnprintf(said + said_bytes, sizeof said - said_bytes, format, list);
    va_end(list);
}

struct flag { const char *name; long long value; };
#define F(name) {#name, name}
static const struct flag flags[] = {
    F(O_RDONLY), F(O_WRONLY), F(O_RDWR), F(O_CREAT), F(O_EXCL), F(O_TRUNC), F(O_APPEND), F(O_DIRECT), F(O_SYNC),
    F(O_DSYNC), F(O_NOFOLLOW), F(O_DIRECTORY), F(O_PATH), F(O_TMPFILE), F(O_CLOEXEC), F(O_NOATIME), F(O_NONBLOCK),
    F(RESOLVE_NO_XDEV), F(RESOLVE_NO_MAGICLINKS), F(RESOLVE_NO_SYMLINKS), F(RESOLVE_BENEATH), F(RESOLVE_IN_ROOT),
    F(RWF_HIPRI), F(RWF_DSYNC), F(RWF_SYNC), F(RWF_NOWAIT), F(RWF_APPEND), F(RWF_NOAPPEND),
    F(FALLOC_FL_KEEP_SIZE), F(FALLOC_FL_PUNCH_HOLE), F(FALLOC_FL_ZERO_RANGE), F(FALLOC_FL_COLLAPSE_RANGE),
    F(FALLOC_FL_INSERT_RANGE), F(FALLOC_FL_UNSHARE_RANGE), F(RENAME_NOREPLACE), F(RENAME_EXCHANGE),
    F(AT_FDCWD), F(AT_SYMLINK_FOLLOW), F(AT_SYMLINK_NOFOLLOW), F(AT_EMPTY_PATH), F(AT_REMOVEDIR),
    F(S_IFREG), F(S_IFIFO), F(S_IFSOCK), F(S_IFDIR), F(S_IFCHR), F(SEEK_SET), F(SEEK_CUR), F(SEEK_END),
    F(SEEK_DATA), F(SEEK_HOLE), F(XATTR_CREATE), F(XATTR_REPLACE), F(SYNC_FILE_RANGE_WRITE),
    F(SPLICE_F_MOVE), F(SPLICE_F_NONBLOCK), F(MS_SYNC), F(MS_ASYNC), F(MS_INVALIDATE), F(PROT_READ), F(PROT_WRITE),
    F(MAP_SHARED), F(MAP_PRIVATE), F(UTIME_NOW), F(UTIME_OMIT),
};

/* The program itself is wrong. */
static void fail(const char *what, const char *text) {
    say("wrong program: %s `%s`\n", what, text);
    flush_report();
    _exit(99);
}

static const char *text_of(int n) {
    if (n >= argument_count) fail("no such argument in the call of", arguments[0]);
    return arguments[n];
}

static int slot_of(int n) { return (text_of(n)[1] - '0') & (SLOTS - 1); }

/* A number, flags, or the descriptor in a slot. */
static long long number(int n) {
    static char copy[512];
    const char *text = text_of(n);
    if (text[0] == '@') return slots[slot_of(n)];
    long long value = 0;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *rest = copy, *part; (part = strsep(&rest, "|"));) {
        char *end;
        long long one = (long long)strtoull(part, &end, 0);
        if (*part && !*end) { value |= one; continue; }
        size_t known = 0;
        while (known < sizeof flags / sizeof *flags && strcmp(flags[known].name, part) != 0) known++;
        if (known == sizeof flags / sizeof *flags) fail("unknown flag", part);
        value |= flags[known].value;
    }
    return value;
}

/* An address: of our bytes, or a wrong one. */
static char *address(const char *text) {
    if (strcmp(text, "null") == 0) return NULL;
    if (strcmp(text, "low") == 0) return (char *)8;
    if (strcmp(text, "kernel") == 0) return (char *)0xffff800000000000;
    if (strncmp(text, "buf+", 4) == 0) return block + atoi(text + 4);
    if (strncmp(text, "end-", 4) == 0) return block + BLOCK_BYTES - atoi(text + 4);
    if (strcmp(text, "buf") == 0) return block;
    fail("unknown address", text);
    return NULL;
}

/* A path or a text. Each argument has a place of its own. */
static const char *path(int n) {
    static char places[MAX_ARGUMENTS][8192];
    const char *text = text_of(n);
    char *out = places[n], *end = places[n] + sizeof places[n] - PATH_MAX;
    if (strcmp(text, "*long") == 0) { memset(out, 'n', 300); out[300] = 0; return out; }
    if (strcmp(text, "*longest") == 0) { memset(out, '/', 5000); out[5000] = 0; return out; }
    if (text[0] != ':') return address(text);
    for (text++; *text && out < end; text++) {
        if (*text == '~') out += sprintf(out, "%s", home);
        else if (text[0] == '{' && text[1] && text[2] == '}') {
            out += sprintf(out, "%d", slots[(text[1] - '0') & (SLOTS - 1)]);
            text += 2;
        } else *out++ = *text;
    }
    *out = 0;
    return places[n];
}

/* `buf:3,low:5`: parts of memory. `*1025`: so many parts of one byte each. */
struct parts { struct iovec *first; int count; };
static struct parts parts(int n) {
    static struct iovec places[2000];
    static char copy[512];
    const char *text = text_of(n);
    struct parts result = {places, 0};
    if (strcmp(text, "low") == 0) return (struct parts){(struct iovec *)8, 1};
    if (text[0] == '*') {
        result.count = atoi(text + 1);
        for (int i = 0; i < 2000; i++) places[i] = (struct iovec){block + i, 1};
        return result;
    }
    snprintf(copy, sizeof copy, "%s", text);
    for (char *rest = copy, *part; (part = strsep(&rest, ","));) {
        char *length = strchr(part, ':');
        if (!length) fail("a part without a length", part);
        *length++ = 0;
        places[result.count++] = (struct iovec){address(part), strtoull(length, NULL, 0)};
    }
    return result;
}

/* An offset argument passed by its address. */
static loff_t offsets[MAX_ARGUMENTS];
static loff_t *offset(int n) {
    const char *text = text_of(n);
    if (strcmp(text, "null") == 0 || strcmp(text, "low") == 0) return (loff_t *)address(text);
    offsets[n] = number(n);
    return &offsets[n];
}

static struct timespec time_of(int n) {
    const char *text = text_of(n);
    if (strncmp(text, "UTIME", 5) == 0) return (struct timespec){0, number(n)};
    return (struct timespec){number(n), 12345};
}

/* Opening a pipe would wait for its other end. */
static int without_waiting(int dir, const char *name, long long wanted) {
    struct stat status;
    if ((uintptr_t)name > 4096 && fstatat(dir, name, &status, 0) == 0 && S_ISFIFO(status.st_mode)) {
        wanted |= O_NONBLOCK;
    }
    return (int)wanted;
}

static long put(long fd) {
    if (fd >= 0) slots[slot_of(1)] = (int)fd;
    return fd;
}

static long pass_over_a_socket(int fd) {
    int pair[2], received = -1;
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
    char byte = 'x';
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) return -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(pair[0], &message, MSG_DONTWAIT) == 1 && recvmsg(pair[1], &message, MSG_DONTWAIT) == 1) {
        memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof received);
    }
    int error = errno;
    close(pair[0]); close(pair[1]);
    errno = error;
    return received;
}

static long limit(int resource, rlim_t soft) {
    struct rlimit now;
    getrlimit(resource, &now);
    now.rlim_cur = soft;
    return setrlimit(resource, &now);
}

static long map_file(int slot, size_t len, int protection, int kind, int fd, off_t at) {
    char *mapped = mmap(NULL, len, protection, kind, fd, at);
    if (mapped == MAP_FAILED) return -1;
    maps[slot] = mapped;
    map_bytes[slot] = len;
    return 0;
}

static long store(int slot, size_t at, size_t len) {
    if (!maps[slot]) return -1;
    for (size_t n = 0; n < len && at + n < map_bytes[slot]; n++) {
        ((volatile char *)maps[slot])[at + n] = (char)(step * 17 + n);
    }
    return 0;
}

static char *mapped(int slot, size_t at) { return maps[slot] ? maps[slot] + at : (char *)PAGE; }

static void say_bytes(const char *bytes, long len) {
    uint64_t hash = 0xcbf29ce484222325;
    for (long n = 0; n < len && n < BLOCK_BYTES; n++) hash = (hash ^ (uint8_t)bytes[n]) * 0x100000001b3;
    if (len > 0) say(" bytes %016llx", (unsigned long long)hash);
}

#define CALL(name) else if (strcmp(call, name) == 0)
#define N(n) number(n)
#define P(n) path(n)
#define I(n) ((int)number(n))
#define DIR_PATH(n) I(n), P((n) + 1)

static long open_call(const char *call) {
    struct open_how how;
    if (0) return 0;
    CALL("open") return put(open(P(2), without_waiting(AT_FDCWD, P(2), N(3)), (mode_t)N(4)));
    CALL("openat") return put(openat(DIR_PATH(2), without_waiting(DIR_PATH(2), N(4)), (mode_t)N(5)));
    CALL("creat") return put(creat(P(2), (mode_t)N(3)));
    CALL("openat2") {
        how = (struct open_how){.flags = (uint64_t)N(4), .mode = (uint64_t)N(5), .resolve = (uint64_t)N(6)};
        how.flags |= (uint64_t)(without_waiting(DIR_PATH(2), 0));
        return put(syscall(SYS_openat2, DIR_PATH(2), &how, sizeof how));
    }
    CALL("close") return close(I(1));
    CALL("dup") return put(dup(I(2)));
    CALL("dup2") return put(dup2(I(2), I(3)));
    CALL("dupfd") return put(fcntl(I(2), F_DUPFD_CLOEXEC, I(3)));
    CALL("setfl") return fcntl(I(1), F_SETFL, I(2));
    CALL("pass") return put(pass_over_a_socket(I(2)));
    CALL("pipe") {
        int both[2];
        if (pipe2(both, O_NONBLOCK) != 0) return -1;
        slots[slot_of(1)] = both[0];
        slots[slot_of(2)] = both[1];
        return 0;
    }
    CALL("chdir") return chdir(P(1));
    CALL("fchdir") return fchdir(I(1));
    CALL("chroot") return chroot(P(1));
    CALL("umask") return umask((mode_t)N(1));
    CALL("limit_fsize") return limit(RLIMIT_FSIZE, (rlim_t)N(1));
    CALL("limit_nofile") return limit(RLIMIT_NOFILE, (rlim_t)N(1));
    return -2;
}

static long byte_call(const char *call) {
    long result;
    struct parts p;
    if (0) return 0;
    CALL("write") return write(I(1), address(text_of(2)), (size_t)N(3));
    CALL("pwrite") return pwrite(I(1), address(text_of(2)), (size_t)N(3), N(4));
    CALL("writev") { p = parts(2); return syscall(SYS_writev, I(1), p.first, p.count); }
    CALL("pwritev") { p = parts(2); return syscall(SYS_pwritev, I(1), p.first, p.count, N(3), 0); }
    CALL("pwritev2") { p = parts(2); return syscall(SYS_pwritev2, I(1), p.first, p.count, N(3), 0, I(4)); }
    CALL("read") {
        result = read(I(1), address(text_of(2)), (size_t)N(3));
        say_bytes(address(text_of(2)), result);
        return result;
    }
    CALL("pread") {
        result = pread(I(1), address(text_of(2)), (size_t)N(3), N(4));
        say_bytes(address(text_of(2)), result);
        return result;
    }
    CALL("preadv2") {
        p = parts(2);
        result = syscall(SYS_preadv2, I(1), p.first, p.count, N(3), 0, I(4));
        if (result > 0) say_bytes(p.first[0].iov_base, (long)p.first[0].iov_len < result ? (long)p.first[0].iov_len
            : result);
        return result;
    }
    CALL("lseek") return lseek(I(1), N(2), I(3));
    CALL("ftruncate") return ftruncate(I(1), N(2));
    CALL("truncate") return truncate(P(1), N(2));
    CALL("fallocate") return fallocate(I(1), I(2), N(3), N(4));
    CALL("sendfile") {
        off_t *at = offset(3);
        result = sendfile(I(1), I(2), at, (size_t)N(4));
        say(" at %lld", (long long)offsets[3]);
        return result;
    }
    CALL("copy_file_range") {
        loff_t *in = offset(2), *out = offset(4);
        result = syscall(SYS_copy_file_range, I(1), in, I(3), out, (size_t)N(5), (unsigned)N(6));
        say(" at %lld %lld", (long long)offsets[2], (long long)offsets[4]);
        return result;
    }
    CALL("splice") {
        loff_t *in = offset(2), *out = offset(4);
        result = syscall(SYS_splice, I(1), in, I(3), out, (size_t)N(5), (unsigned)N(6));
        say(" at %lld %lld", (long long)offsets[2], (long long)offsets[4]);
        return result;
    }
    CALL("ficlone") return ioctl(I(1), FICLONE, I(2));
    CALL("ficlonerange") {
        struct file_clone_range range = {.src_fd = I(2), .src_length = (uint64_t)N(3), .dest_offset = (uint64_t)N(4)};
        return ioctl(I(1), FICLONERANGE, &range);
    }
    CALL("map") return map_file(slot_of(1), (size_t)N(3), I(4), I(5), I(2), N(6));
    CALL("store") return store(slot_of(1), (size_t)N(2), (size_t)N(3));
    CALL("msync") return msync(mapped(slot_of(1), (size_t)N(2)), (size_t)N(3), I(4));
    CALL("mprotect") return mprotect(mapped(slot_of(1), 0), map_bytes[slot_of(1)], I(2));
    CALL("unmap") {
        if (!maps[slot_of(1)]) return -1;
        result = munmap(maps[slot_of(1)], map_bytes[slot_of(1)]);
        maps[slot_of(1)] = NULL;
        return result;
    }
    CALL("fsync") return fsync(I(1));
    CALL("fdatasync") return fdatasync(I(1));
    CALL("syncfs") return syncfs(I(1));
    CALL("sync_file_range") return sync_file_range(I(1), N(2), N(3), (unsigned)N(4));
    return -2;
}

static long name_call(const char *call) {
    if (0) return 0;
    CALL("rename") return rename(P(1), P(2));
    CALL("renameat") return renameat(DIR_PATH(1), DIR_PATH(3));
    CALL("renameat2") return syscall(SYS_renameat2, DIR_PATH(1), DIR_PATH(3), (unsigned)N(5));
    CALL("link") return link(P(1), P(2));
    CALL("linkat") return linkat(DIR_PATH(1), DIR_PATH(3), I(5));
    CALL("symlink") return symlink(P(1), P(2));
    CALL("symlinkat") return symlinkat(P(1), DIR_PATH(2));
    CALL("unlink") return unlink(P(1));
    CALL("rmdir") return rmdir(P(1));
    CALL("unlinkat") return unlinkat(DIR_PATH(1), I(3));
    CALL("mkdir") return mkdir(P(1), (mode_t)N(2));
    CALL("mkdirat") return mkdirat(DIR_PATH(1), (mode_t)N(3));
    CALL("mknod") return mknod(P(1), (mode_t)N(2), makedev(1, 3));
    CALL("mknodat") return mknodat(DIR_PATH(1), (mode_t)N(3), 0);
    return -2;
}

static long attribute_call(const char *call) {
    if (0) return 0;
    CALL("chmod") return chmod(P(1), (mode_t)N(2));
    CALL("fchmod") return fchmod(I(1), (mode_t)N(2));
    CALL("fchmodat2") return syscall(SYS_fchmodat2, DIR_PATH(1), (mode_t)N(3), I(4));
    CALL("chown") return chown(P(1), (uid_t)N(2), (gid_t)N(3));
    CALL("lchown") return lchown(P(1), (uid_t)N(2), (gid_t)N(3));
    CALL("fchown") return fchown(I(1), (uid_t)N(2), (gid_t)N(3));
    CALL("fchownat") return fchownat(DIR_PATH(1), (uid_t)N(3), (gid_t)N(4), I(5));
    CALL("utimensat") {
        struct timespec both[2] = {time_of(3), time_of(4)};
        return syscall(SYS_utimensat, DIR_PATH(1), both, I(5));
    }
    CALL("setxattr") return setxattr(P(1), P(2), P(3), strlen(P(3)), I(4));
    CALL("lsetxattr") return lsetxattr(P(1), P(2), P(3), strlen(P(3)), I(4));
    CALL("fsetxattr") return fsetxattr(I(1), P(2), P(3), strlen(P(3)), I(4));
    CALL("removexattr") return removexattr(P(1), P(2));
    CALL("stat") { struct stat status; return stat(P(1), &status); }
    CALL("access") return access(P(1), I(2));
    CALL("fremovexattr") return fremovexattr(I(1), P(2));
    return -2;
}

static void say_slot(int slot) {
    struct stat status;
    int fd = slots[slot];
    if (fstat(fd, &status) != 0) { say(" [%d closed]", slot); return; }
    long long size = S_ISREG(status.st_mode) ? (long long)status.st_size : 0;
    say(" [%d=%d at %lld size %lld mode %o links %lu flags %x %x]", slot, fd, (long long)lseek(fd, 0, SEEK_CUR), size,
        status.st_mode, S_ISREG(status.st_mode) ? (unsigned long)status.st_nlink : 0, fcntl(fd, F_GETFL),
        fcntl(fd, F_GETFD));
}

/* Puts bytes into our memory that no other call has. */
static void fill_block(void) {
    int is_large = 0;
    for (int n = 1; n < argument_count; n++) is_large |= strlen(arguments[n]) > 5;
    size_t front = is_large ? BLOCK_BYTES : 32 * 1024;
    for (size_t n = 0; n < front; n++) block[n] = (char)(step * 131 + n * 7 + n / 251);
    for (size_t n = BLOCK_BYTES - 8192; n < BLOCK_BYTES; n++) block[n] = (char)(step * 131 + n * 7 + n / 251);
}

static void run_call(void) {
    const char *call = arguments[0];
    long (*const families[])(const char *) = {open_call, byte_call, name_call, attribute_call};
    memset(offsets, 0, sizeof offsets);
    step++;
    fill_block();
    say("%u %s", step, call);
    int earlier_too_large = too_large;
    long result = -2;
    errno = 0;
    int fault = sigsetjmp(after_fault, 1);
    if (fault == 0) {
        may_fault = 1;
        for (size_t n = 0; n < 4 && result == -2; n++) result = families[n](call);
    }
    int error = errno;
    may_fault = 0;
    if (result == -2 && fault == 0) fail("unknown call", call);
    if (fault) say(" fault %d", fault);
    else say(" = %ld %d", result, result < 0 ? error : 0);
    if (too_large != earlier_too_large) say(" SIGXFSZ");
    for (int n = 1; n < argument_count; n++) {
        if (strchr("@=", arguments[n][0]) && arguments[n][1] >= '0') say_slot(slot_of(n));
    }
    say("\n");
}

static void on_fault(int number) {
    if (!may_fault) _exit(100 + number);
    siglongjmp(after_fault, number);
}
static void on_too_large(int number) { (void)number; too_large++; }

static void split(char *line) {
    argument_count = 0;
    for (char *word; argument_count < MAX_ARGUMENTS && (word = strsep(&line, " "));) {
        if (*word) arguments[argument_count++] = word;
    }
}

/* Runs the lines of one program. */
static void run_lines(char **lines, size_t count) {
    size_t n = 0;
    while (n < count) {
        if (lines[n][0] != '>') {
            split(lines[n++]);
            if (argument_count) run_call();
            continue;
        }
        size_t end = n;
        while (end < count && lines[end][0] == '>') end++;
        flush_report();
        pid_t child = fork();
        if (child == 0) {
            alarm(MAX_SECONDS);
            for (; n < end; n++) {
                split(lines[n] + 1);
                if (argument_count) run_call();
            }
            flush_report();
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        say("child %x\n", status);
        step += end - n;
        n = end;
    }
}

static void run_program(const char *directory, char **lines, size_t count) {
    fflush(NULL);
    say("program %s\n", directory);
    flush_report();
    pid_t child = fork();
    if (child == 0) {
        alarm(MAX_SECONDS);
        umask(022);
        if (chdir(directory) != 0 || !getcwd(home, sizeof home)) fail("no directory", directory);
        for (int n = 0; n < SLOTS; n++) slots[n] = 70 + n;
        run_lines(lines, count);
        flush_report();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (status) say("status %x\n", status);
    flush_report();
}

int main(int argc, char **argv) {
    static char text[8 << 20];
    static char *lines[1 << 18];
    if (argc < 2) return 2;
    report_fd = fcntl(1, F_DUPFD, 200);
    int file = open(argv[1], O_RDONLY);
    size_t length = 0;
    for (ssize_t got; (got = read(file, text + length, sizeof text - 1 - length)) > 0;) length += got;
    close(file);
    block = mmap(NULL, BLOCK_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(block + BLOCK_BYTES, PAGE, PROT_NONE);
    struct sigaction fault = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &fault, NULL);
    sigaction(SIGSEGV, &fault, NULL);
    signal(SIGXFSZ, on_too_large);
    signal(SIGPIPE, SIG_IGN);
    size_t count = 0;
    for (char *rest = text, *line; (line = strsep(&rest, "\n"));) {
        if (*line) lines[count++] = line;
    }
    for (size_t n = 0; n < count;) {
        size_t end = n + 1;
        while (end < count && strncmp(lines[end], "program ", 8) != 0) end++;
        run_program(lines[n] + 8, lines + n + 1, end - n - 1);
        n = end;
    }
    return 0;
}
