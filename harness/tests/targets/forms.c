/* Every form of every call that changes a file tree,
    for the tests of the gate. `forms NAME` runs one form in the
 * working directory and prints what each of its calls returned;
 `forms` lists the names. The result must be the same
 * with and without the gate. The test prepares the directory: see `create_files_of_every_type`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <pthread.h>
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
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>

/* Of Linux 6.6; the C library may not have it yet. */
#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452
#endif

static char said[1 << 16];
static size_t said_bytes;
static int report_fd;

static void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    said_bytes += vsnprintf(said + said_bytes, sizeof said - said_bytes, format, arguments);
    va_end(arguments);
}

static void flush_report(void) {
    size_t done = 0;
    while (done < said_bytes) {
        ssize_t written = write(report_fd, said + done, said_bytes - done);
        if (written <= 0) break;
        done += written;
    }
    said_bytes = 0;
}

/* Makes a call, and says what it returned. */
#define T(call)                                                      \
    ({                                                               \
        errno = 0;                                                   \
        long result_ = (long)(call);                                 \
        say("%s = %ld %d\n", #call, result_, result_ < 0 ? errno : 0); \
        result_;                                                     \
    })

static char block[1 << 20];
static char *home;
static char path_buffer[4200];
static const char *in_home(const char *name) {
    snprintf(path_buffer, sizeof path_buffer, "%s/%s", home, name);
    return path_buffer;
}
static const char *proc_fd(const char *prefix, int fd) {
    snprintf(path_buffer, sizeof path_buffer, "%s/%d", prefix, fd);
    return path_buffer;
}
static int create(const char *name) { return open(name, O_RDWR | O_CREAT | O_TRUNC, 0644); }
static long openat2_(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    return syscall(SYS_openat2, dir, path, &how, sizeof how);
}
static long rename2(const char *from, const char *to, unsigned flags) {
    return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
}
static ssize_t pwritev2_(int fd, const void *bytes, size_t len, off_t offset, int flags) {
    struct iovec part = {(void *)bytes, len};
    return pwritev2(fd, &part, 1, offset, flags);
}
static void limit(int resource, rlim_t soft) {
    struct rlimit now;
    getrlimit(resource, &now);
    now.rlim_cur = soft;
    setrlimit(resource, &now);
}

/* Descriptors 0 to 2 */
static void stdin_closed(void) {
    T(close(0));
    T(open("new", O_WRONLY | O_CREAT, 0644));
    T(write(0, "zero", 4)); T(pwrite(0, "Z", 1, 2)); T(pwritev2_(0, "Q", 1, 3, 0));
    T(ftruncate(0, 10)); T(fsync(0));
}
static void stdout_closed(void) {
    T(close(1)); T(open("new", O_WRONLY | O_CREAT, 0644));
    T(write(1, "one", 3)); T(pwrite(1, "O", 1, 5));
    struct iovec parts[2] = {{"ab", 2}, {"cd", 2}};
    T(writev(1, parts, 2)); T(pwritev(1, parts, 2, 20));
}
static void stderr_closed(void) {
    T(close(2)); T(open("new", O_WRONLY | O_CREAT | O_APPEND, 0644));
    T(write(2, "two", 3)); T(pwrite(2, "T", 1, 0));
}
static void duplicated(void) {
    int fd = T(open("old", O_RDWR)), other = T(dup(fd));
    T(write(fd, "abc", 3)); T(write(other, "def", 3)); T(dup2(fd, 100)); T(write(100, "ghi", 3));
    T(lseek(fd, 0, SEEK_CUR));
}
static void after_a_fork(void) {
    int fd = T(create("new")), status;
    T(write(fd, "parent", 6));
    if (fork() == 0) { write(fd, "child", 5); _exit(0); }
    T(wait(&status) > 0); T(write(fd, "parent", 6));
}
static void passed_over_a_socket(void) {
    int pair[2], status;
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
    struct iovec part = {"x", 1};
    char received;
    struct iovec in = {&received, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes};
    if (fork() == 0) {
        int fd = create("new");
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET; header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
        sendmsg(pair[0], &message, 0);
        _exit(0);
    }
    T(wait(&status) > 0);
    message.msg_iov = &in;
    T(recvmsg(pair[1], &message, 0));
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    T(write(fd, "received", 8)); T(ftruncate(fd, 5));
}
static void *writes_in_a_thread(void *fd) { write(*(int *)fd, "thread", 6); return NULL; }
static void in_a_thread(void) {
    int fd = T(create("new"));
    pthread_t thread;
    T(pthread_create(&thread, NULL, writes_in_a_thread, &fd)); T(pthread_join(thread, NULL));
    T(write(fd, "main", 4));
}

/* Opening */
static void create_and_truncate(void) {
    T(open("new", O_WRONLY | O_CREAT | O_EXCL, 0640)); T(open("old", O_WRONLY | O_CREAT | O_EXCL, 0640));
    T(open("old", O_WRONLY | O_TRUNC)); T(creat("hard", 0600)); T(creat("other", 0600));
    T(open("missing", O_WRONLY));
    T(openat(AT_FDCWD, "third", O_CREAT, 0444)); T(open("old", O_RDONLY | O_TRUNC));
}
static void modes_and_umask(void) {
    umask(027);
    T(open("a", O_WRONLY | O_CREAT, 0777)); T(open("b", O_WRONLY | O_CREAT, 07777)); T(mkdir("c", 0777));
    T(mkdir("d", 07777));
    T(openat2_(AT_FDCWD, "e", O_WRONLY | O_CREAT, 0666, 0)); T(mknod("f", S_IFREG | 0666, 0)); umask(0);
    T(creat("g", 0666));
}
static void links_on_the_way(void) {
    T(open("link", O_WRONLY | O_TRUNC)); T(open("link", O_WRONLY | O_NOFOLLOW));
    T(open("dangling", O_WRONLY | O_CREAT, 0644));
    T(open("dangling", O_WRONLY | O_CREAT | O_EXCL, 0644)); T(open("dirlink/new", O_WRONLY | O_CREAT, 0644));
    T(open("dirlink/../beside", O_WRONLY | O_CREAT, 0644)); T(open("loop", O_WRONLY | O_CREAT, 0644));
    T(open("loop/x", O_WRONLY | O_CREAT, 0644));
}
static void dots_and_slashes(void) {
    T(open("./new", O_WRONLY | O_CREAT, 0644)); T(open("dir/../new2", O_WRONLY | O_CREAT, 0644));
    T(open("dir//./new3", O_WRONLY | O_CREAT, 0644));
    T(open("old/", O_WRONLY)); T(open("new4/", O_WRONLY | O_CREAT, 0644)); T(creat("new5/", 0644));
    T(open("dir/", O_WRONLY)); T(open("dir", O_WRONLY | O_CREAT, 0644));
    T(open("link/", O_WRONLY)); T(open("dirlink/", O_RDWR | O_CREAT, 0644)); T(open(".", O_WRONLY));
    T(open("", O_WRONLY | O_CREAT, 0644));
    T(open("old/.", O_WRONLY)); T(open("old/x", O_WRONLY | O_CREAT, 0644));
    T(open("missing/x", O_WRONLY | O_CREAT, 0644));
    T(open(in_home("absolute"), O_WRONLY | O_CREAT, 0644));
    T(open(in_home("//dir/.././absolute2"), O_WRONLY | O_CREAT, 0644));
}
static void wrong_paths(void) {
    memset(block, 'n', 300); block[300] = 0;
    T(open(block, O_WRONLY | O_CREAT, 0644)); memset(block, '/', 5000);
    T(open(block, O_WRONLY | O_CREAT, 0644));
    T(syscall(SYS_openat, AT_FDCWD, 8, O_WRONLY | O_CREAT, 0644));
    T(openat(77, "x", O_WRONLY | O_CREAT, 0644));
    int fd = open("old", O_RDONLY);
    T(openat(fd, "x", O_WRONLY | O_CREAT, 0644)); T(openat(fd, in_home("fine"), O_WRONLY | O_CREAT, 0644));
    T(openat(77, in_home("fine2"), O_WRONLY | O_CREAT, 0644));
}
static void from_a_directory(void) {
    int dir = T(open("dir", O_RDONLY | O_DIRECTORY)), named = T(open("dir", O_PATH));
    T(openat(dir, "a", O_WRONLY | O_CREAT, 0644)); T(openat(named, "b", O_WRONLY | O_CREAT, 0644));
    T(openat(dir, "../c", O_WRONLY | O_CREAT, 0644));
    T(chdir("dir")); T(open("d", O_WRONLY | O_CREAT, 0644)); T(fchdir(dir)); T(mkdir("e", 0755));
    T(rename("d", "../d")); T(unlink("inner")); T(mkdirat(dir, "f", 0700));
    T(unlinkat(dir, "f", AT_REMOVEDIR));
}
static void unnamed_files(void) {
    int a = T(open(".", O_TMPFILE | O_RDWR, 0644)); T(write(a, "unnamed", 7));
    T(linkat(AT_FDCWD, proc_fd("/proc/self/fd", a), AT_FDCWD, "a", AT_SYMLINK_FOLLOW));
    int b = T(open(home, O_TMPFILE | O_WRONLY, 0600)); T(write(b, "b", 1));
    T(linkat(AT_FDCWD, proc_fd("/dev/fd", b), AT_FDCWD, "dir/b", AT_SYMLINK_FOLLOW));
    int c = T(open("dirlink", O_TMPFILE | O_RDWR, 0644));
    T(linkat(AT_FDCWD, proc_fd("/proc/self/fd", c), AT_FDCWD, "a", AT_SYMLINK_FOLLOW));
    int d = T(open("dir", O_TMPFILE | O_RDWR | O_EXCL, 0644));
    T(linkat(AT_FDCWD, proc_fd("/proc/self/fd", d), AT_FDCWD, "d", AT_SYMLINK_FOLLOW));
    T(open("old", O_TMPFILE | O_RDWR, 0644)); T(open("dir", O_TMPFILE | O_RDONLY, 0644));
    T(open("missing", O_TMPFILE | O_RDWR, 0644));
    T(write(a, "more", 4));
    T(linkat(AT_FDCWD, proc_fd("/proc/self/fd", a), AT_FDCWD, "a2", AT_SYMLINK_FOLLOW));
}
static void paths_through_proc(void) {
    int fd = T(open("old", O_RDWR));
    T(open(proc_fd("/proc/self/fd", fd), O_WRONLY | O_TRUNC)); T(write(fd, "kept", 4));
    T(open(proc_fd("/dev/fd", fd), O_WRONLY | O_APPEND));
    T(open(proc_fd("/proc/thread-self/fd", fd), O_RDWR));
    T(open(proc_fd("/proc/self/fd", fd), O_WRONLY | O_CREAT | O_EXCL, 0644));
    T(open(proc_fd("/proc/self/fd", fd), O_WRONLY | O_NOFOLLOW));
    T(open("/proc/self/cwd/new", O_WRONLY | O_CREAT, 0644)); T(mkdir("/proc/self/cwd/made", 0755));
    T(rename("/proc/self/cwd/new", "/proc/thread-self/cwd/newer"));
    snprintf(path_buffer, sizeof path_buffer, "/proc/self/root%s/rooted", home);
    T(open(path_buffer, O_WRONLY | O_CREAT, 0644));
    snprintf(path_buffer, sizeof path_buffer, "/proc/%d/cwd/numbered", getpid());
    T(open(path_buffer, O_WRONLY | O_CREAT, 0644));
    snprintf(path_buffer, sizeof path_buffer, "/proc/self/task/%d/cwd/tasked", getpid());
    T(open(path_buffer, O_WRONLY | O_CREAT, 0644));
    T(symlink("/proc/self/cwd", "procdir")); T(open("procdir/through", O_WRONLY | O_CREAT, 0644));
    T(truncate(proc_fd("/proc/self/fd", fd), 3)); T(chmod(proc_fd("/proc/self/fd", fd), 0604));
    T(unlink("/proc/self/cwd/hard"));
    int dir = open("dir", O_PATH); snprintf(path_buffer, sizeof path_buffer, "/proc/self/fd/%d/below", dir);
    T(open(path_buffer, O_WRONLY | O_CREAT, 0644));
}
static void openat2_resolve(void) {
    int dir = open("dir", O_PATH);
    uint64_t w = O_WRONLY | O_CREAT;
    T(openat2_(AT_FDCWD, "link", O_WRONLY | O_TRUNC, 0, RESOLVE_NO_SYMLINKS));
    T(openat2_(AT_FDCWD, "dirlink/a", w, 0644, RESOLVE_NO_SYMLINKS));
    T(openat2_(AT_FDCWD, "dir/a", w, 0644, RESOLVE_NO_SYMLINKS));
    T(openat2_(dir, "../x", w, 0644, RESOLVE_BENEATH)); T(openat2_(dir, "b", w, 0644, RESOLVE_BENEATH));
    T(openat2_(dir, in_home("c"), w, 0644, RESOLVE_BENEATH));
    T(openat2_(dir, "up/c", w, 0644, RESOLVE_BENEATH));
    T(openat2_(dir, "/d", w, 0644, RESOLVE_IN_ROOT)); T(openat2_(dir, "../../e", w, 0644, RESOLVE_IN_ROOT));
    T(openat2_(dir, "up/f", w, 0644, RESOLVE_IN_ROOT));
    T(openat2_(AT_FDCWD, "g", w, 0644, RESOLVE_NO_XDEV));
    T(openat2_(AT_FDCWD, "/proc/self/cwd/h", w, 0644, RESOLVE_NO_MAGICLINKS));
    T(openat2_(AT_FDCWD, "/proc/self/cwd/h", w, 0644, RESOLVE_BENEATH));
    T(openat2_(AT_FDCWD, in_home("i"), w, 0644, RESOLVE_NO_XDEV));
}
static void openat2_arguments(void) {
    struct { struct open_how how; uint64_t more; } large = {.how = {.flags = O_WRONLY | O_CREAT,
        .mode = 0644}};
    T(syscall(SYS_openat2, AT_FDCWD, "a", &large, sizeof large)); large.more = 1;
    T(syscall(SYS_openat2, AT_FDCWD, "b", &large, sizeof large));
    T(syscall(SYS_openat2, AT_FDCWD, "c", &large, 16)); T(syscall(SYS_openat2, AT_FDCWD, "d", 8, 24));
    T(openat2_(AT_FDCWD, "e", O_WRONLY | O_CREAT | (1ULL << 40), 0644, 0));
    T(openat2_(AT_FDCWD, "f", O_WRONLY | O_CREAT, 0177777, 0));
    T(openat2_(AT_FDCWD, "old", O_WRONLY, 0644, 0)); T(openat2_(AT_FDCWD, "g", O_PATH | O_CREAT, 0644, 0));
    T(openat2_(AT_FDCWD, "h", O_WRONLY | O_CREAT, 0644, 1 << 20));
    T(openat2_(AT_FDCWD, "dir", O_TMPFILE | O_RDWR, 0644, 0)); T(open("i", O_PATH | O_CREAT, 0644));
    T(openat2_(AT_FDCWD, "j/", O_WRONLY | O_CREAT, 0644, 0));
}
static void descriptor_limit(void) {
    int fd = T(open("old", O_RDONLY));
    limit(RLIMIT_NOFILE, fd + 1);
    T(open("new", O_WRONLY | O_CREAT, 0644)); T(open("hard", O_WRONLY | O_TRUNC));
    T(openat2_(AT_FDCWD, "new", O_WRONLY | O_CREAT, 0644, 0)); T(open(".", O_TMPFILE | O_RDWR, 0644));
    /* The flags come before the limit, and the path after it. */
    T(open("new", O_WRONLY | O_CREAT | O_DIRECTORY, 0644)); T(openat2_(AT_FDCWD, "new", O_WRONLY | O_CREAT | (1ULL << 40), 0644, 0));
    T(open("missing/new", O_WRONLY | O_CREAT, 0644)); T(openat2_(AT_FDCWD, "new", O_WRONLY | O_CREAT, 0177777, 0));
    T(mkdir("made", 0755)); T(rename("made", "moved"));
    T(close(fd)); T(open("new", O_WRONLY | O_CREAT, 0644));
}
static void changed_root(void) {
    T(open("before", O_WRONLY | O_CREAT, 0644));
    if (T(chroot("dir")) != 0) return;
    T(open("/inside", O_WRONLY | O_CREAT, 0644)); T(open("outside", O_WRONLY | O_CREAT, 0644));
    T(open("/../still", O_WRONLY | O_CREAT, 0644));
    T(open("../above", O_WRONLY | O_CREAT | O_EXCL, 0644) >= 0); T(unlink("../above"));
    T(open("/up/also", O_WRONLY | O_CREAT, 0644)); T(chdir("/")); T(mkdir("../../made", 0755));
}

/* Writing */
static void writes(void) {
    int fd = T(open("old", O_RDWR));
    T(write(fd, "abc", 3)); T(write(fd, "", 0)); T(pwrite(fd, "P", 1, 5000)); T(pwrite(fd, "x", 1, -1));
    T(lseek(fd, 0, SEEK_END)); T(write(fd, "end", 3)); T(pwrite(fd, "far", 3, 1 << 20));
    T(lseek(fd, 0, SEEK_CUR));
    memset(block, 'b', sizeof block); T(write(fd, block, sizeof block)); T(write(fd, (void *)8, 3));
    T(write(fd, (void *)8, 0));
    int read_only = open("old", O_RDONLY); T(write(read_only, "x", 1)); T(write(read_only, "", 0));
    T(write(99, "x", 1)); int named = open("old", O_PATH); T(write(named, "x", 1));
    int dir = open("dir", O_RDONLY); T(write(dir, "x", 1));
}
static void vectored_writes(void) {
    int fd = T(open("old", O_RDWR));
    struct iovec parts[3] = {{"one", 3}, {"", 0}, {"three", 5}}, wrong[2] = {{"good", 4}, {(void *)8, 4}},
        negative[1] = {{"x", -1UL}};
    T(writev(fd, parts, 3)); T(pwritev(fd, parts, 3, 100)); T(writev(fd, parts, 0));
    T(writev(fd, parts, -1)); T(syscall(SYS_writev, fd, parts, 1025)); T(writev(fd, wrong, 2));
    T(writev(fd, wrong + 1, 1)); T(writev(fd, negative, 1)); T(syscall(SYS_writev, fd, 8, 1));
    T(pwritev(fd, parts, 3, -5)); T(lseek(fd, 0, SEEK_CUR));
}
static void half_mapped_buffer(void) {
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(pages, 'h', 8192); mprotect(pages + 4096, 4096, PROT_NONE);
    int fd = T(create("new")); T(write(fd, pages + 4000, 200)); T(write(fd, pages + 4096, 10));
    T(lseek(fd, 0, SEEK_CUR));
}
static void appends(void) {
    int fd = T(open("old", O_RDWR | O_APPEND));
    T(write(fd, "one", 3)); T(pwrite(fd, "two", 3, 0)); T(pwritev2_(fd, "three", 5, 0, 0));
    T(lseek(fd, 0, SEEK_CUR)); T(pwritev2_(fd, "four", 4, -1, 0)); T(lseek(fd, 0, SEEK_CUR));
    T(pwritev2_(fd, "five", 4, 10, 0x20)); T(ftruncate(fd, 4)); T(write(fd, "six", 3));
    T(fcntl(fd, F_SETFL, 0)); T(write(fd, "seven", 5));
    int other = T(open("hard", O_RDWR)); T(write(other, "A", 1)); T(fcntl(other, F_SETFL, O_APPEND));
    T(write(other, "B", 1));
}
static void flags_of_pwritev2(void) {
    int fd = T(open("old", O_RDWR));
    T(pwritev2_(fd, "APP", 3, -1, RWF_APPEND)); T(lseek(fd, 0, SEEK_CUR));
    T(pwritev2_(fd, "app", 3, 2, RWF_APPEND)); T(lseek(fd, 0, SEEK_CUR));
    T(pwritev2_(fd, "D", 1, 0, RWF_DSYNC)); T(pwritev2_(fd, "S", 1, 1, RWF_SYNC));
    T(pwritev2_(fd, "N", 1, 2, RWF_NOWAIT)); T(pwritev2_(fd, "H", 1, 3, RWF_HIPRI));
    T(pwritev2_(fd, "X", 1, 4, 0x4000)); T(pwritev2_(fd, "", 0, 4, RWF_DSYNC));
    T(pwritev2_(fd, "O", 1, 5, 0x20)); T(pwritev2_(fd, "A", 1, 6, 0x40)); T(pwritev2_(fd, "C", 1, 7, 0x80));
}
static void direct_writes(void) {
    int fd = T(open("direct", O_RDWR | O_CREAT | O_DIRECT, 0644) >= 0) ? open("direct",
        O_RDWR | O_DIRECT) : -1;
    char *aligned = aligned_alloc(4096, 16384); memset(aligned, 'd', 16384);
    T(write(fd, aligned, 4096)); T(pwrite(fd, aligned, 8192, 8192)); T(write(fd, aligned + 1, 512));
    T(write(fd, aligned + 512, 512)); T(pwrite(fd, aligned, 100, 0)); T(pwrite(fd, aligned, 4096, 17));
    struct iovec parts[2] = {{aligned, 4096}, {aligned + 8192, 4096}}; T(pwritev(fd, parts, 2, 0));
}
static void large_direct_writes(void) {
    int fd = T(open("direct", O_RDWR | O_CREAT | O_DIRECT, 0644));
    char *aligned = aligned_alloc(4096, 1 << 20); memset(aligned, 'd', 1 << 20);
    struct iovec good[2] = {{aligned, 4096}, {aligned + 300000 / 4096 * 4096, 300 * 1024}},
        wrong[2] = {{aligned, 4096}, {aligned + 1, 4096}};
    T(write(fd, aligned, 262145)); T(write(fd, aligned, 300000)); T(write(fd, aligned, 1 << 20));
    T(writev(fd, good, 2)); T(writev(fd, wrong, 2)); T(lseek(fd, 0, SEEK_CUR)); T(pwrite(fd, aligned, 270000, 0));
}
static void refused_before_anything_is_written(void) {
    int fd = T(open("old", O_RDWR | O_APPEND)); char *beyond = (char *)0xffff800000000000;
    struct iovec parts[2] = {{"good", 4}, {beyond, 4}}, one[1] = {{beyond, 4}};
    T(pwrite(fd, "x", 1, -1)); T(pwrite(fd, "x", 1, -5)); T(writev(fd, parts, 2)); T(writev(fd, one, 1));
    T(write(fd, block, -1UL)); T(write(fd, block, 0x7fffffffffffffff)); T(pwrite(fd, block, -1UL, 0));
    T(truncate("missing", -1)); T(truncate("missing/x", -1)); T(sendfile(fd, open("other", O_RDONLY), NULL, -1UL));
    T(openat2_(AT_FDCWD, "new", O_WRONLY | O_CREAT, 0644, RESOLVE_BENEATH | RESOLVE_IN_ROOT));
    limit(RLIMIT_FSIZE, 4096); T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 20000));
}
static void synchronous_writes(void) {
    int a = T(open("a", O_WRONLY | O_CREAT | O_SYNC, 0644)), b = T(open("b", O_WRONLY | O_CREAT | O_DSYNC,
        0644)); T(write(a, "a", 1)); T(pwrite(b, "b", 1, 0)); int from = open("old", O_RDONLY);
    T(sendfile(a, from, NULL, 10));
}
static void file_size_limit(void) {
    signal(SIGXFSZ, SIG_IGN); limit(RLIMIT_FSIZE, 1000);
    int fd = T(create("new")), from = open("old", O_RDONLY); memset(block, 'l', 2000);
    T(write(fd, block, 900)); T(write(fd, block, 900)); T(write(fd, block, 1));
    T(pwrite(fd, block, 10, 995)); T(pwrite(fd, block, 10, 1000)); T(ftruncate(fd, 1001));
    T(ftruncate(fd, 1000)); T(truncate("new", 1001)); T(fallocate(fd, 0, 0, 1001));
    T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 5000)); T(lseek(fd, 500, SEEK_SET));
    T(sendfile(fd, from, NULL, 2000)); loff_t in = 0, out = 990;
    T(copy_file_range(from, &in, fd, &out, 100, 0)); T(in); T(out); T(write(fd, "", 0)); T(pwrite(fd, "", 0, 5000));
    T(truncate("old", 5000)); T(truncate("old", 9000));
}
static volatile sig_atomic_t too_large; static void on_too_large(int number) { (void)number; too_large++; }
static void file_size_signal(void) {
    signal(SIGXFSZ, on_too_large); limit(RLIMIT_FSIZE, 100); int fd = T(create("new"));
    memset(block, 's', 200); T(write(fd, block, 200)); T(too_large); T(write(fd, block, 1)); T(too_large);
    T(ftruncate(fd, 101)); T(too_large);
}
static void many_small_writes(void) {
    int fd = T(create("new"));
    for (int n = 0; n < 300; n++) { char text[16]; write(fd, text, snprintf(text, sizeof text, "%d,",
        n)); if (n % 50 == 0) fdatasync(fd); } T(lseek(fd, 0, SEEK_CUR));
}
static void one_large_write(void) {
    char *large = malloc(5 << 20); for (int n = 0; n < 5 << 20; n++) large[n] = n * 7 + n / 4096;
    int fd = T(create("new")); T(write(fd, large, 5 << 20)); T(pwrite(fd, large, 3 << 20, 12345));
}

/* Moving bytes */
static void sendfile_forms(void) {
    int in = T(open("old", O_RDONLY)), out = T(create("new")); off_t from = 100;
    T(sendfile(out, in, NULL, 50)); T(sendfile(out, in, &from, 60)); T(from); T(lseek(in, 0, SEEK_CUR));
    T(lseek(out, 0, SEEK_CUR)); T(sendfile(out, in, NULL, 1 << 20)); T(sendfile(out, in, NULL, 10));
    T(sendfile(out, in, (off_t *)8, 10)); T(sendfile(out, 99, NULL, 10)); from = -1;
    T(sendfile(out, in, &from, 10)); T(sendfile(in, out, NULL, 10));
    int append = open("hard", O_WRONLY | O_APPEND); lseek(in, 0, SEEK_SET); T(sendfile(append, in, NULL, 5));
    int pipes[2]; T(pipe(pipes)); T(write(pipes[1], "piped", 5)); T(sendfile(out, pipes[0], NULL, 5));
    T(sendfile(out, in, NULL, 0));
}
static void copy_file_range_forms(void) {
    int in = T(open("old", O_RDWR)), out = T(create("new")); loff_t a = 10, b = 20;
    T(copy_file_range(in, &a, out, &b, 30, 0)); T(a); T(b); T(copy_file_range(in, NULL, out, NULL, 40, 0));
    T(lseek(out, 0, SEEK_CUR)); T(copy_file_range(in, NULL, out, &b, 1 << 20, 0)); T(b);
    T(copy_file_range(in, NULL, out, NULL, 5, 0)); T(copy_file_range(in, NULL, out, NULL, 5, 1));
    a = 0, b = 5; T(copy_file_range(in, &a, in, &b, 10, 0)); b = 9000;
    T(copy_file_range(in, &a, in, &b, 500, 0)); int append = open("hard", O_WRONLY | O_APPEND);
    T(copy_file_range(in, &a, append, NULL, 5, 0)); int dir = open("dir", O_RDONLY);
    T(copy_file_range(dir, NULL, out, NULL, 5, 0)); a = -4; T(copy_file_range(in, &a, out, NULL, 5, 0));
    a = 0; T(copy_file_range(in, &a, out, (loff_t *)8, 5, 0));
}
static void splice_forms(void) {
    int pipes[2], out = T(create("new")), in = open("old", O_RDONLY); pipe(pipes); loff_t at = 30;
    T(write(pipes[1], "0123456789", 10)); T(splice(pipes[0], NULL, out, NULL, 4, 0));
    T(splice(pipes[0], NULL, out, &at, 100, 0)); T(at); T(lseek(out, 0, SEEK_CUR));
    T(splice(pipes[0], NULL, out, NULL, 5, SPLICE_F_NONBLOCK)); T(splice(in, NULL, pipes[1], NULL, 3000, 0));
    T(splice(pipes[0], NULL, out, NULL, 3000, SPLICE_F_MOVE)); struct iovec part = {"mapped", 6};
    T(vmsplice(pipes[1], &part, 1, 0)); T(splice(pipes[0], NULL, out, NULL, 6, 0));
    T(write(out, "after", 5)); T(rename("new", "renamed"));
}
static void splice_that_waits(void) {
    int pipes[2], out = T(create("new")), status; pipe(pipes);
    if (fork() == 0) { usleep(50000); write(pipes[1], "late", 4); _exit(0); }
    T(splice(pipes[0], NULL, out, NULL, 4, 0)); T(wait(&status) > 0); T(link("new", "linked"));
}
static void cloned_blocks(void) {
    int in = open("old", O_RDONLY), out = T(create("new"));
    struct file_clone_range range = {.src_fd = in, .src_length = 4096};
    T(ioctl(out, FICLONE, in)); T(ioctl(out, FICLONERANGE, &range)); T(ioctl(out, FICLONE, 99));
    T(ioctl(out, FICLONERANGE, 8));
    struct {
        struct file_dedupe_range range;
        struct file_dedupe_range_info info;
    } dedupe = {.range = {.src_length = 4096, .dest_count = 1}, .info = {.dest_fd = out}};
    T(ioctl(in, FIDEDUPERANGE, &dedupe) <= 0);
}

/* Sizes and space */
static void truncates(void) {
    int fd = T(open("old", O_RDWR)), read_only = open("old", O_RDONLY);
    T(ftruncate(fd, 100)); T(ftruncate(fd, 5000)); T(ftruncate(fd, -1)); T(ftruncate(read_only, 3));
    T(truncate("old", 77)); T(truncate("link", 66)); T(truncate("old/", 5)); T(truncate("dir", 5));
    T(truncate("missing", 5)); T(truncate("old", -3)); T(truncate("pipe", 3)); T(truncate("", 3));
    T(ftruncate(99, 3)); T(truncate(in_home("hard"), 55)); T(truncate("dangling", 5)); T(ftruncate(fd, 55));
}
static void allocations(void) {
    int fd = T(open("old", O_RDWR)), read_only = open("old", O_RDONLY);
    T(fallocate(fd, 0, 9000, 3000)); T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 20000, 4096));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 5000));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 11000, 50000));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 50000, 10));
    T(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 50));
    T(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 50));
    T(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 4096, 4096));
    T(fallocate(fd, FALLOC_FL_INSERT_RANGE, 4096, 4096)); T(fallocate(fd, FALLOC_FL_UNSHARE_RANGE, 0, 4096));
    T(fallocate(fd, 0x80, 0, 4096)); T(fallocate(fd, 0, -1, 5)); T(fallocate(fd, 0, 0, 0));
    T(fallocate(read_only, 0, 0, 5)); T(fallocate(99, 0, 0, 5)); T(fallocate(fd, 0x4000, 0, 5));
    T(posix_fallocate(fd, 0, 15000)); T(lseek(fd, 0, SEEK_END));
}

/* Names */
static void renames(void) {
    T(rename("old", "old")); T(rename("old", "hard")); T(rename("old", "new")); T(rename("new", "other"));
    T(rename("missing", "x")); T(rename("dir", "empty")); T(rename("empty", "full"));
    T(rename("full", "full/inside")); T(rename("other", "full")); T(rename("full", "other"));
    T(rename("link", "link2")); T(rename("dirlink", "full/moved")); T(rename("full/", "slashed/"));
    T(rename("other/", "x")); T(rename("other", "x/")); T(rename(".", "x")); T(rename("slashed", ".."));
    T(rename("slashed/.", "x")); T(rename("other", in_home("absolute")));
    T(renameat(AT_FDCWD, "absolute", 99, "x")); T(rename("", "x")); T(rename("pipe", "pipe2"));
    T(rename("slashed/inner", "inner"));
}
static void rename_flags(void) {
    T(rename2("old", "other", RENAME_NOREPLACE)); T(rename2("old", "fresh", RENAME_NOREPLACE));
    T(rename2("fresh", "other", RENAME_EXCHANGE)); T(rename2("fresh", "dir", RENAME_EXCHANGE));
    T(rename2("hard", "other", RENAME_EXCHANGE)); T(rename2("fresh", "missing", RENAME_EXCHANGE));
    T(rename2("fresh", "other", RENAME_EXCHANGE | RENAME_NOREPLACE)); T(rename2("fresh", "other", 0x100));
    T(rename2("link", "dirlink", RENAME_EXCHANGE)); T(rename2("other", "other", RENAME_EXCHANGE));
    T(rename2("other", "other", RENAME_NOREPLACE));
}
static void renamed_while_open(void) {
    int fd = T(create("a")); T(write(fd, "1", 1)); T(rename("a", "b")); T(write(fd, "2", 1)); T(create("a"));
    T(rename("a", "b")); T(write(fd, "3", 1)); T(fsync(fd)); T(unlink("b")); T(ftruncate(fd, 9));
    T(linkat(AT_FDCWD, proc_fd("/proc/self/fd", fd), AT_FDCWD, "back", AT_SYMLINK_FOLLOW));
}
static void hard_links(void) {
    T(link("old", "linked")); T(link("old", "other")); T(link("dir", "x")); T(link("link", "linklink"));
    T(linkat(AT_FDCWD, "link", AT_FDCWD, "followed", AT_SYMLINK_FOLLOW));
    T(linkat(AT_FDCWD, "dirlink", AT_FDCWD, "x", AT_SYMLINK_FOLLOW));
    T(linkat(AT_FDCWD, "dangling", AT_FDCWD, "x", AT_SYMLINK_FOLLOW));
    T(linkat(AT_FDCWD, "dangling", AT_FDCWD, "danglink", 0)); T(link("old/", "x")); T(link("old", "x/"));
    T(link("missing", "x")); T(linkat(AT_FDCWD, "old", AT_FDCWD, "x", 0x40)); T(link("pipe", "pipe2"));
    T(link("old", in_home("dir/absolute")));
    int fd = open("old", O_RDONLY); T(linkat(fd, "", AT_FDCWD, "x", 0));
    T(linkat(AT_FDCWD, proc_fd("/proc/self/fd", fd), AT_FDCWD, "by-fd", AT_SYMLINK_FOLLOW));
    T(linkat(AT_FDCWD, proc_fd("/proc/self/fd", fd), AT_FDCWD, "x", 0)); T(unlink("old"));
    T(unlink("linked"));
}
static void symbolic_links(void) {
    T(symlink("anything", "a")); T(symlink("old", "other")); T(symlink("", "x")); T(symlink("old", "x/"));
    T(symlink("old", "dir/b")); T(symlinkat("up", AT_FDCWD, "dirlink/c")); T(symlink("old", "missing/x"));
    memset(block, 'l', 5000); block[4090] = 0; T(symlink(block, "long")); block[4090] = 'l'; block[5000] = 0;
    T(symlink(block, "longer")); T(unlink("a")); T(rename("dir/b", "b")); T(symlinkat("old", 99, "x"));
    T(symlink((char *)8, "x"));
}
static void removals(void) {
    T(unlink("missing")); T(unlink("dir")); T(unlink("old/")); T(unlink("link")); T(unlink("link"));
    T(rmdir("full")); T(rmdir("old")); T(rmdir("dirlink")); T(rmdir("dirlink/")); T(unlink("dirlink/"));
    T(rmdir("empty/.")); T(rmdir("empty/..")); T(rmdir(".")); T(rmdir("empty/"));
    T(unlinkat(AT_FDCWD, "other", 0x1)); T(unlinkat(AT_FDCWD, "other", 0));
    T(unlinkat(AT_FDCWD, "full/inner", 0)); T(unlinkat(AT_FDCWD, "full", AT_REMOVEDIR)); T(unlink("pipe"));
    T(unlink("")); T(unlink("/")); T(unlink(".")); int fd = open("old", O_RDWR); T(unlink("old"));
    T(write(fd, "still", 5)); T(unlink("hard")); T(write(fd, "gone", 4)); T(remove("dir/inner"));
}
static void directories(void) {
    T(mkdir("a", 0755)); T(mkdir("a", 0755)); T(mkdir("b/", 0711)); T(mkdir("old", 0755));
    T(mkdir("link", 0755)); T(mkdir("dangling", 0755)); T(mkdir("old/x", 0755)); T(mkdir("dirlink/c", 0755));
    T(mkdir(".", 0755)); T(mkdir("..", 0755)); T(mkdir("a/.", 0755)); T(mkdir("", 0755));
    T(mkdirat(99, "x", 0755)); T(mkdir(in_home("d"), 01777)); T(mkdir("a/e", 02755)); T(rmdir("b"));
}
static void special_files(void) {
    T(mknod("a", S_IFREG | 0640, 0)); T(mknod("b", 0600, 0)); T(mknod("c", S_IFIFO | 0600, 0));
    T(mkfifo("d", 0644)); T(mknod("old", S_IFREG, 0)); T(mknod("e", S_IFDIR, 0)); T(mknod("f/", S_IFREG, 0));
    T(mknodat(AT_FDCWD, "dir/g", S_IFREG | 0644, 0)); T(mknod("h", S_IFLNK, 0)); T(rename("c", "moved"));
    T(unlink("d")); T(mkfifoat(AT_FDCWD, "dirlink/i", 0600)); int fd = T(open("a", O_WRONLY));
    T(write(fd, "made", 4)); T(chmod("moved", 0622));
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int s = socket(AF_UNIX, SOCK_STREAM, 0); T(bind(s, (struct sockaddr *)&address, sizeof address));
    T(mknod("sock2", S_IFSOCK | 0600, 0)); T(unlink("sock2"));
}

/* Attributes */
static void set_id_bits(void) {
    int fd = T(open("old", O_RDWR)), other = T(open("other", O_RDWR)); struct stat status;
    T(fchmod(fd, 06755)); T(write(fd, "x", 1)); fstat(fd, &status); T(status.st_mode);
    T(fchmod(fd, 04755)); T(ftruncate(fd, 100)); fstat(fd, &status); T(status.st_mode);
    T(fchmod(fd, 04711)); T(fallocate(fd, 0, 0, 500)); fstat(fd, &status); T(status.st_mode);
    T(fchmod(other, 04755)); T(sendfile(other, fd, NULL, 5)); fstat(other, &status); T(status.st_mode);
    T(fchmod(other, 02755)); T(open("other", O_WRONLY | O_TRUNC)); fstat(other, &status); T(status.st_mode);
}
static void default_access_list(void) {
    /* Of linux/posix_acl_xattr.h: a version, then tag, permissions and id of owner, group and others. */
    struct { uint32_t version; struct { uint16_t tag, bits; uint32_t id; } entries[3]; } list = {2,
        {{1, 7, -1}, {4, 6, -1}, {0x20, 4, -1}}};
    umask(077); T(setxattr("dir", "system.posix_acl_default", &list, sizeof list, 0));
    T(open("dir/a", O_WRONLY | O_CREAT, 0666)); T(mkdir("dir/b", 0777)); T(mknod("dir/c", S_IFREG | 0666, 0));
    T(mkfifo("dir/d", 0666)); T(openat2_(AT_FDCWD, "dir/e", O_WRONLY | O_CREAT, 0666, 0)); T(creat("f", 0666));
    T(open("dir", O_TMPFILE | O_RDWR, 0666));
}
static void permissions(void) {
    int fd = open("old", O_RDONLY), named = open("hard", O_PATH); T(chmod("old", 0600)); T(fchmod(fd, 0611));
    T(fchmodat(AT_FDCWD, "dir", 0711, 0)); T(chmod("link", 0644));
    T(syscall(SYS_fchmodat2, AT_FDCWD, "other", 0640, 0));
    T(syscall(SYS_fchmodat2, AT_FDCWD, "link", 0640, AT_SYMLINK_NOFOLLOW));
    T(syscall(SYS_fchmodat2, named, "", 0622, AT_EMPTY_PATH)); T(fchmod(named, 0600));
    T(chmod("missing", 0600)); T(chmod(".", 0750)); T(chmod("dir/", 0755)); T(chmod("old/", 0755));
    T(chmod("other", 04755)); T(chmod("pipe", 0600)); T(mkdir("made", 0700)); T(chmod("made", 02775)); T(mkdir("made/sub", 0755));
}
static void owners(void) {
    uid_t u = getuid(); gid_t g = getgid(); int fd = open("old", O_RDONLY); T(chown("old", u, g));
    T(chown("old", -1, -1)); T(fchown(fd, u, -1)); T(lchown("link", u, g));
    T(fchownat(AT_FDCWD, "link", u, g, AT_SYMLINK_NOFOLLOW)); T(fchownat(fd, "", u, g, AT_EMPTY_PATH));
    T(chown("missing", u, g)); T(chown("dir", u, g)); T(fchownat(AT_FDCWD, ".", u, g, 0));
}
static void times(void) {
    struct timespec t[2] = {{1000000000, 5}, {1100000000, 7}}, omit[2] = {{0, UTIME_OMIT}, {0, UTIME_NOW}};
    struct timeval v[2] = {{900000000, 1}, {900000001, 2}}; struct utimbuf b = {5, 6};
    int fd = open("old", O_RDONLY);
    T(utimensat(AT_FDCWD, "old", t, 0)); T(futimens(fd, omit)); T(utimes("other", v)); T(utime("other", &b));
    T(utimensat(AT_FDCWD, "link", t, AT_SYMLINK_NOFOLLOW)); T(utimensat(AT_FDCWD, "missing", t, 0));
    T(futimes(fd, v)); T(utimensat(AT_FDCWD, "dir", t, 0)); T(futimesat(AT_FDCWD, "other", NULL));
    T(utimensat(fd, "", t, AT_EMPTY_PATH));
}
static void extended_attributes(void) {
    int fd = open("old", O_RDONLY); T(setxattr("old", "user.a", "1", 1, 0));
    T(setxattr("old", "user.a", "22", 2, XATTR_REPLACE)); T(setxattr("old", "user.a", "1", 1, XATTR_CREATE));
    T(lsetxattr("link", "user.b", "1", 1, 0)); T(fsetxattr(fd, "user.c", "3", 1, 0));
    T(removexattr("old", "user.a")); T(removexattr("old", "user.a")); T(fremovexattr(fd, "user.c"));
    T(setxattr("link", "user.d", "4", 1, 0)); T(setxattr("dir", "user.e", "5", 1, 0));
    T(lremovexattr("dir", "user.e")); T(setxattr("missing", "user.x", "", 0, 0));
}

/* Durability and mappings */
static void syncs(void) {
    int fd = T(create("new")), read_only = open("old", O_RDONLY), named = open("old", O_PATH),
        dir = open("dir", O_RDONLY), other = open("/", O_RDONLY); T(write(fd, "x", 1)); T(fsync(fd));
    T(fdatasync(read_only)); T(fsync(named)); T(fsync(dir)); T(fsync(99)); T(syncfs(fd)); T(syncfs(other));
    T(syncfs(99)); sync(); T(sync_file_range(fd, 0, 1, SYNC_FILE_RANGE_WRITE)); T(fdatasync(fd));
}
static void mapped(void) {
    int fd = T(open("old", O_RDWR)); char *m = mmap(NULL, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    T(m != MAP_FAILED); T(close(fd)); memset(m + 50, 'm', 5000); T(msync(m, 10000, MS_SYNC)); m[9000] = 'z';
    T(msync(m + 8192, 100, MS_ASYNC)); T(rename("old", "renamed")); m[3] = 'y'; T(munmap(m, 10000));
    T(open("last", O_WRONLY | O_CREAT, 0644));
}
static void mapped_later_writable(void) {
    int fd = T(open("old", O_RDWR)); char *m = mmap(NULL, 10000, PROT_READ, MAP_SHARED, fd, 0);
    T(mprotect(m, 10000, PROT_READ | PROT_WRITE)); m[0] = 'w'; m[9999] = 'w'; T(fsync(fd)); m[1] = 'x';
}
static void mapped_otherwise(void) {
    int fd = T(open("old", O_RDWR)), r = open("hard", O_RDONLY);
    char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0); p[0] = 'p';
    T(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, r, 0) == MAP_FAILED);
    char *v = mmap(NULL, 4096, PROT_READ | PROT_WRITE, 3, fd, 4096); T(v != MAP_FAILED); v[7] = 'v';
    char *big = mremap(v, 4096, 8192, MREMAP_MAYMOVE); T(big != MAP_FAILED);
    big[5000 > 5900 ? 0 : 4100] = 'r'; int n = T(create("new")); T(ftruncate(n, 8192));
    char *s = mmap(NULL, 8192, PROT_WRITE, MAP_SHARED, n, 0);
    if (fork() == 0) { s[100] = 'c'; _exit(0); } int status; wait(&status);
    T(msync(s, 8192, MS_SYNC | MS_INVALIDATE)); T(unlink("new")); s[0] = 'g';
}
/* One msync over what is mapped in different ways: only the first is written back. */
static void msync_over_several(void) {
    int fd = T(open("old", O_RDWR)), r = open("other", O_RDONLY), outside = open("/etc/passwd", O_RDONLY);
    char *m = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    T(mmap(m, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == m);
    T(mmap(m + 4096, 4096, PROT_READ, MAP_SHARED | MAP_FIXED, r, 0) == m + 4096);
    T(mmap(m + 2 * 4096, 4096, PROT_READ, MAP_SHARED | MAP_FIXED, outside, 0) == m + 2 * 4096);
    T(mmap(m + 3 * 4096, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) == m + 3 * 4096);
    m[1] = 'm'; m[3 * 4096] = 'p'; T(msync(m, 4 * 4096, MS_SYNC)); T(msync(m + 4096, 3 * 4096, MS_SYNC));
}

/* Interfaces that the gate refuses. Not among the forms: without the gate they work. */
static void foreign(void) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
    say("32-bit %ld\n", result);
    say("x32 %d\n", (errno = 0, syscall(0x40000000 | SYS_getpid), errno));
#endif
    say("io_uring %d\n", (errno = 0, syscall(SYS_io_uring_setup, 8, block), errno));
    unsigned long context = 0;
    say("libaio %d\n", (errno = 0, syscall(SYS_io_setup, 8, &context), errno));
}

struct form { const char *name; void (*run)(void); };
#define F(name) {#name, name}
static const struct form forms[] = {
    F(stdin_closed), F(stdout_closed), F(stderr_closed), F(duplicated), F(after_a_fork),
        F(passed_over_a_socket), F(in_a_thread),
    F(create_and_truncate), F(modes_and_umask), F(links_on_the_way), F(dots_and_slashes), F(wrong_paths),
        F(from_a_directory),
    F(unnamed_files), F(paths_through_proc), F(openat2_resolve), F(openat2_arguments), F(descriptor_limit),
        F(changed_root),
    F(writes), F(vectored_writes), F(half_mapped_buffer), F(appends), F(flags_of_pwritev2),
        F(direct_writes), F(large_direct_writes),
        F(refused_before_anything_is_written), F(synchronous_writes),
    F(file_size_limit), F(file_size_signal), F(many_small_writes), F(one_large_write), F(sendfile_forms),
        F(copy_file_range_forms),
    F(splice_forms), F(splice_that_waits), F(cloned_blocks), F(truncates), F(allocations), F(renames),
        F(rename_flags),
    F(renamed_while_open), F(hard_links), F(symbolic_links), F(removals), F(directories), F(special_files),
        F(permissions), F(set_id_bits), F(default_access_list), F(owners),
    F(times), F(extended_attributes), F(syncs), F(mapped), F(mapped_later_writable), F(mapped_otherwise),
    F(msync_over_several),
};

int main(int argc, char **argv) {
    report_fd = fcntl(1, F_DUPFD, 200);
    home = getcwd(NULL, 0);
    for (size_t n = 0; n < sizeof forms / sizeof *forms; n++) {
        if (argc < 2) say("%s\n", forms[n].name);
        else if (strcmp(argv[1], forms[n].name) == 0) forms[n].run();
    }
    if (argc > 1 && strcmp(argv[1], "foreign") == 0) foreign();
    flush_report();
    return 0;
}
