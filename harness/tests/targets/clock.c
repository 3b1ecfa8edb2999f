/* Prints the clocks in every way in which a program can ask for them: in the main thread, another thread, a child,
   and after an exec. Each line: where, how, seconds. Then waits until a time of the wall clock in every way that the
   gate follows. Each line: how, result, milliseconds by the monotonic clock. With the argument `other`: only what the
   gate does not follow. With `until N`: prints the seconds, and again after the clock is N ahead or more. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void line(const char *where, const char *how, long seconds) { printf("%s %s %ld\n", where, how, seconds); }

static void clocks(const char *where) {
    struct timespec now;
    struct timeval day;
    clock_gettime(CLOCK_REALTIME, &now);
    line(where, "realtime", now.tv_sec);
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    line(where, "coarse", now.tv_sec);
    clock_gettime(CLOCK_TAI, &now);
    line(where, "tai", now.tv_sec);
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    line(where, "syscall", now.tv_sec);
    gettimeofday(&day, NULL);
    line(where, "gettimeofday", day.tv_sec);
    line(where, "time", time(NULL));
    clock_gettime(CLOCK_MONOTONIC, &now);
    line(where, "monotonic", now.tv_sec);
    clock_gettime(CLOCK_BOOTTIME, &now);
    line(where, "boottime", now.tv_sec);
    fflush(stdout);
}

static struct timespec from_now(clockid_t clock, long millis) {
    struct timespec time;
    clock_gettime(clock, &time);
    time.tv_nsec += millis * 1000000;
    time.tv_sec += time.tv_nsec / 1000000000;
    time.tv_nsec %= 1000000000;
    return time;
}

static long began;

static long monotonic_millis(void) {
    struct timespec now = from_now(CLOCK_MONOTONIC, 0);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void wait_line(const char *how, int result) {
    printf("%s %d %ld\n", how, result, monotonic_millis() - began);
    fflush(stdout);
    began = monotonic_millis();
}

static int sleep_until(struct timespec until) { return clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL); }

/* Whether a short sleep until a time of the wall clock takes as long as it should. */
static int sleeps_rightly(void) {
    long before = monotonic_millis();
    if (sleep_until(from_now(CLOCK_REALTIME, 100)) != 0) return 0;
    long passed = monotonic_millis() - before;
    return passed >= 100 && passed < 5000;
}

static void *in_thread(void *unused) {
    (void)unused;
    clocks("thread");
    return sleeps_rightly() ? &began : NULL;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static sem_t semaphore;
static int has_changed;

static void *waker(void *unused) {
    usleep(200000);
    pthread_mutex_lock(&mutex);
    has_changed = 1;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&mutex);
    usleep(200000);
    sem_post(&semaphore);
    return unused;
}

static void on_signal(int number) { (void)number; }

static int timer_expirations(clockid_t clock) {
    unsigned long count = 0;
    struct itimerspec value = {{0, 0}, from_now(clock, 300)}, old = {{7, 7}, {7, 7}};
    int timer = timerfd_create(clock, 0);
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &value, &old) != 0 || old.it_value.tv_sec != 0) return -1;
    if (read(timer, &count, sizeof count) != sizeof count) return -2;
    close(timer);
    return (int)count;
}

static void *idle(void *unused) {
    for (;;) pause();
    return unused;
}

static void waits(void) {
    pthread_t thread;
    struct timespec until;
    began = monotonic_millis();
    wait_line("sleep", sleep_until(from_now(CLOCK_REALTIME, 300)));
    wait_line("past", sleep_until(from_now(CLOCK_REALTIME, 0)));
    until = from_now(CLOCK_REALTIME, 300);
    pthread_mutex_lock(&mutex);
    wait_line("cond", pthread_cond_timedwait(&changed, &mutex, &until));
    until = from_now(CLOCK_REALTIME, 20000);
    pthread_create(&thread, NULL, waker, NULL);
    while (!has_changed)
        if (pthread_cond_timedwait(&changed, &mutex, &until) != 0) break;
    pthread_mutex_unlock(&mutex);
    wait_line("cond-woken", has_changed);
    wait_line("sem-woken", sem_timedwait(&semaphore, &until));
    pthread_join(thread, NULL);
    until = from_now(CLOCK_REALTIME, 300);
    began = monotonic_millis();
    sem_timedwait(&semaphore, &until);
    wait_line("sem", errno);
    wait_line("timerfd", timer_expirations(CLOCK_REALTIME));
    wait_line("timerfd-monotonic", timer_expirations(CLOCK_MONOTONIC));
    /* A handler interrupts the sleep, also with SA_RESTART. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 200000}}, NULL);
    wait_line("interrupted", sleep_until(from_now(CLOCK_REALTIME, 20000)));
    /* A stop does not. */
    pid_t parent = getpid();
    if (fork() == 0) {
        usleep(100000);
        kill(parent, SIGSTOP);
        usleep(100000);
        kill(parent, SIGCONT);
        _exit(0);
    }
    pthread_create(&thread, NULL, idle, NULL);
    wait_line("stopped", sleep_until(from_now(CLOCK_REALTIME, 500)));
    wait(NULL);
}

static void settings(void) {
    struct timespec now = from_now(CLOCK_REALTIME, 0);
    struct timeval day = {now.tv_sec, 0};
    struct timex adjusted = {0};
    began = monotonic_millis();
    wait_line("clock_settime", clock_settime(CLOCK_REALTIME, &now) ? errno : 0);
    wait_line("settimeofday", syscall(SYS_settimeofday, &day, NULL) ? errno : 0);
    wait_line("adjtimex", syscall(SYS_adjtimex, &adjusted) < 0 ? errno : 0);
}

static int others(void) {
    timer_t timer;
    struct itimerspec value = {{0, 0}, from_now(CLOCK_MONOTONIC, 90000)};
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, TIMER_ABSTIME, &value, NULL);
    timer_create(CLOCK_REALTIME, &event, &timer);
    timer_settime(timer, TIMER_ABSTIME, &value, NULL);
    syscall(SYS_mq_timedreceive, -1, NULL, 0, NULL, &value.it_value);
    syscall(SYS_mq_timedreceive, -1, NULL, 0, NULL, NULL);
    unsigned word = 0;
    syscall(SYS_futex, &word, 6 /* FUTEX_LOCK_PI */, 0, &value.it_value, NULL, 0);
    return 0;
}

/* Sleeps until the clock is so much ahead of now. */
static int until_ahead(long seconds) {
    struct timespec until = from_now(CLOCK_REALTIME, 0);
    line("until", "before", until.tv_sec);
    fflush(stdout);
    until.tv_sec += seconds;
    sleep_until(until);
    line("until", "after", time(NULL));
    return 0;
}

int main(int count, char **arguments) {
    pthread_t thread;
    void *slept = NULL;
    int status = 0;
    if (count > 2) return until_ahead(atol(arguments[2]));
    if (count > 1 && strcmp(arguments[1], "other") == 0) return others();
    if (count > 1) {
        sem_init(&semaphore, 0, 0);
        clocks("exec");
        waits();
        settings();
        return 0;
    }
    clocks("main");
    pthread_create(&thread, NULL, in_thread, NULL);
    pthread_join(thread, &slept);
    if (fork() == 0) {
        clocks("child");
        _exit(sleeps_rightly() ? 0 : 1);
    }
    wait(&status);
    if (slept == NULL || status != 0) return 2;
    execl(arguments[0], arguments[0], "exec", NULL);
    return 1;
}
