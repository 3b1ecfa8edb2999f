/* A program for the tests of the gate: it changes files in every way that the gate intercepts.
 * The tests compile it. Usage: calls MODE [ARGUMENT]; the modes are in main. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Ends the program with exit code 1 if a call has failed. */
static void must(int ok, const char *call) {
    if (!ok) {
        fprintf(stderr, "%s: %s\n", call, strerror(errno));
        exit(1);
    }
}

static int create_file(const char *name, const char *text) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0640);
    must(fd >= 0, name);
    must(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write");
    return fd;
}

static void *thread_writes(void *number) {
    char name[32];
    snprintf(name, sizeof name, "thread-%ld", (long)number);
    int fd = create_file(name, "from a thread\n");
    must(fsync(fd) == 0 && close(fd) == 0, "fsync");
    return NULL;
}

/* Writes to a file through a shared mapping. */
static void write_mapped(const char *name) {
    int fd = open(name, O_RDWR | O_CREAT, 0644);
    must(fd >= 0 && ftruncate(fd, 20000) == 0, "ftruncate");
    char *mapping = mmap(NULL, 20000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(mapping != MAP_FAILED, "mmap");
    memset(mapping + 100, 'm', 9000);
    must(msync(mapping, 20000, MS_SYNC) == 0, "msync");
    memset(mapping + 19000, 'n', 500);
    must(munmap(mapping, 20000) == 0 && fsync(fd) == 0 && close(fd) == 0, "munmap");
}

/* Makes every kind of change to the tree, in the working directory. */
static void every_change(const char *self) {
    int a = create_file("a", "first second third");
    must(pwrite(a, "SECOND", 6, 6) == 6, "pwrite");
    struct iovec parts[2] = {{"one ", 4}, {"two\n", 4}};
    must(lseek(a, 0, SEEK_END) > 0 && writev(a, parts, 2) == 8, "writev");
    must(pwritev(a, parts, 2, 100) == 8, "pwritev");
    must(pwritev2(a, parts, 2, 200, 0) == 8, "pwritev2");
    must(fdatasync(a) == 0, "fdatasync");
    int appended = open("appended", O_WRONLY | O_CREAT | O_APPEND, 0644);
    must(write(appended, "one\n", 4) == 4 && write(appended, "two\n", 4) == 4, "append");
    int b = create_file("b", "");
    must(lseek(a, 0, SEEK_SET) == 0 && sendfile(b, a, NULL, 50) == 50, "sendfile");
    off_t from = 6;
    must(sendfile(b, a, &from, 6) == 6 && from == 12, "sendfile at an offset");
    loff_t in = 0, out = 300;
    must(syscall(SYS_copy_file_range, a, &in, b, &out, 20, 0) == 20, "copy_file_range");
    must(in == 20 && out == 320, "offsets of copy_file_range");
    int pipes[2];
    must(pipe(pipes) == 0 && write(pipes[1], "through a pipe", 14) == 14, "pipe");
    must(splice(pipes[0], NULL, b, NULL, 14, 0) == 14, "splice");
    must(ftruncate(b, 310) == 0 && truncate("a", 150) == 0, "truncate");
    must(fallocate(b, 0, 400, 100) == 0, "fallocate");
    must(fallocate(b, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10, 20) == 0, "punch");
    must(mkdir("dir", 0755) == 0 && mkdirat(AT_FDCWD, "dir/inner", 0700) == 0, "mkdir");
    must(link("a", "dir/linked") == 0 && symlink("../a", "dir/symbolic") == 0, "link");
    must(rename("b", "dir/b") == 0, "rename");
    must(syscall(SYS_renameat2, AT_FDCWD, "a", AT_FDCWD, "dir/b", 2) == 0, "exchange");
    close(create_file("gone", "gone"));
    must(unlink("gone") == 0 && rmdir("dir/inner") == 0, "unlink");
    int unnamed = open("dir", O_TMPFILE | O_RDWR, 0644);
    must(unnamed >= 0 && write(unnamed, "unnamed", 7) == 7, "O_TMPFILE");
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", unnamed);
    must(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0, "linkat");
    int dir = open("dir", O_RDONLY | O_DIRECTORY);
    must(dir >= 0 && fsync(dir) == 0, "fsync of a directory");
    close(openat(dir, "below", O_WRONLY | O_CREAT, 0644));
    must(chmod("a", 0600) == 0, "chmod");
    must(syscall(SYS_io_uring_setup, 8, path) == -1 && errno == ENOSYS, "io_uring");
    write_mapped("mapped");
    pthread_t threads[4];
    for (long n = 0; n < 4; n++)
        must(pthread_create(&threads[n], NULL, thread_writes, (void *)n) == 0, "thread");
    for (int n = 0; n < 4; n++) pthread_join(threads[n], NULL);
    pid_t child = fork();
    if (child == 0) {
        close(create_file("from-a-fork", "from a fork\n"));
        execl(self, self, "one", "from-an-exec", NULL);
        _exit(1);
    }
    int status;
    must(waitpid(child, &status, 0) == child && status == 0, "child");
    must(setsid() != (pid_t)-2, "setsid");
    sync();
}

static volatile sig_atomic_t signals;
static void count(int number) {
    (void)number;
    signals++;
}

/* Appends numbered lines while a timer interrupts it: at least so many lines, and until so many signals came. Prints
 * both numbers. */
static void write_under_signals(long lines, long min_signals, long interval_us, int flags) {
    struct sigaction action = {.sa_handler = count, .sa_flags = flags};
    must(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    struct itimerspec every = {{0, interval_us * 1000}, {0, interval_us * 1000}};
    must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
    must(timer_settime(timer, 0, &every, NULL) == 0, "timer_settime");
    int fd = -1;
    while (fd < 0) fd = open("lines", O_WRONLY | O_CREAT | O_APPEND, 0644);
    char line[24];
    long n = 0;
    for (; n < lines || signals < min_signals; n++) {
        int length = snprintf(line, sizeof line, "%014ld\n", n);
        ssize_t written;
        while ((written = write(fd, line, length)) < 0 && errno == EINTR) {}
        must(written == length, "write");
    }
    /* A signal could end the write of the output too. */
    must(timer_delete(timer) == 0, "timer_delete");
    printf("signals %d lines %ld\n", (int)signals, n);
}

/* Creates the file whose open call the test delays. */
static void *slow(void *arg) {
    (void)arg;
    close(create_file("slow", "slow"));
    return NULL;
}

/* Prints whether this thread's calls end long before the delayed call of another thread. */
static void parallel(void) {
    pthread_t thread;
    must(pthread_create(&thread, NULL, slow, NULL) == 0, "thread");
    struct timespec a, b, c;
    clock_gettime(CLOCK_MONOTONIC, &a);
    usleep(50000);
    for (int n = 0; n < 20; n++) close(create_file("quick", "quick"));
    clock_gettime(CLOCK_MONOTONIC, &b);
    pthread_join(thread, NULL);
    clock_gettime(CLOCK_MONOTONIC, &c);
    printf("quick first: %s\n", c.tv_sec - b.tv_sec + (c.tv_nsec - b.tv_nsec) / 1e9 > 0.2 ? "yes" : "no");
}

/* Writes 64 KiB once, then reads the file and queries its status. Prints the result of each call. */
static void big(void) {
    static char bytes[65536];
    memset(bytes, 'x', sizeof bytes);
    int fd = open("big", O_RDWR | O_CREAT, 0644);
    if (fd < 0) {
        printf("open: %s\n", strerror(errno));
        return;
    }
    ssize_t written = write(fd, bytes, sizeof bytes);
    printf("write: %zd %s\n", written, written < 0 ? strerror(errno) : "");
    lseek(fd, 0, SEEK_SET);
    ssize_t read_bytes = read(fd, bytes, sizeof bytes);
    printf("read: %zd %s\n", read_bytes, read_bytes < 0 ? strerror(errno) : "");
    struct stat status_buffer;
    printf("stat: %s\n", stat("big", &status_buffer) < 0 ? strerror(errno) : "there");
    fflush(stdout);
    must(rename("big", "renamed") == 0 || errno, "rename");
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "every-change")) every_change(argv[0]);
    else if (!strcmp(mode, "one")) close(create_file(argv[2], "one file\n"));
    else if (!strcmp(mode, "signals"))
        write_under_signals(atol(argv[2]), atol(argv[3]), atol(argv[4]), strcmp(argv[5], "restart") ? 0 : SA_RESTART);
    else if (!strcmp(mode, "parallel")) parallel();
    else if (!strcmp(mode, "big")) big();
    else if (!strcmp(mode, "forever")) for (;;) { close(create_file("forever", "x")); usleep(1000); }
    else return 2;
    return 0;
}
