// savers.c STYLE DIRECTORY: trainers that save with calls that few programs use. Each style has one defect of its
// saves. The style with the same name after `sound-` does the same without it. All train 4 steps and save every
// second one.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// A checkpoint is one record, repeated: 3 pages.
enum { STEPS = 4, RECORD = 24, COUNT = 512, SIZE = RECORD * COUNT, PAGE = 4096 };

static int is_sound;
static char data[SIZE] __attribute__((aligned(PAGE)));

static void fail(const char *what) {
    printf("Error: %s\n", what);
    exit(1);
}

static int must(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return (int)result;
}

static void encode(int step, long weights) {
    char record[RECORD + 1];
    snprintf(record, sizeof record, "%8d%16ld", step, weights);
    for (int n = 0; n < COUNT; n++) memcpy(data + n * RECORD, record, RECORD);
}

static int is_whole(const char *bytes) {
    for (int n = 1; n < COUNT; n++)
        if (memcmp(bytes, bytes + n * RECORD, RECORD)) return 0;
    return bytes[7] >= '0' && bytes[7] <= '9';
}

// Returns 0 for a file that is missing, and fails if it is damaged.
static int read_state(const char *path, int *step, long *weights, int may_be_damaged) {
    static char bytes[SIZE + 1];
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 0;
    long len = read(fd, bytes, sizeof bytes);
    close(fd);
    if (len != SIZE || !is_whole(bytes)) {
        if (may_be_damaged) return 0;
        fail("the checkpoint is damaged");
    }
    return sscanf(bytes, "%8d%16ld", step, weights) == 2;
}

static void sync_path(const char *path) {
    int fd = must(open(path, O_RDONLY), path);
    must(fsync(fd), "fsync");
    close(fd);
}

static void put(int fd) { must(pwrite(fd, data, SIZE, 0), "pwrite"); }

static int create(const char *path, int flags) {
    return must(open(path, O_WRONLY | O_CREAT | O_TRUNC | flags, 0644), path);
}

static void replace(void) {
    int fd = create("new.tmp", 0);
    put(fd);
    must(fsync(fd), "fsync");
    close(fd);
    must(rename("new.tmp", "state"), "rename");
    sync_path(".");
}

// Two slots in one file, written in turn. The sound reader checks the whole slot, the other one its first record.
static void save_slot(int step) {
    if (access("slots", F_OK)) {
        int fd = create("new.tmp", 0);
        must(ftruncate(fd, 2 * SIZE), "ftruncate");
        must(fsync(fd), "fsync");
        close(fd);
        must(rename("new.tmp", "slots"), "rename");
        sync_path(".");
    }
    int fd = must(open("slots", O_WRONLY), "slots");
    must(pwrite(fd, data, SIZE, step / 2 % 2 * SIZE), "pwrite");
    must(fsync(fd), "fsync");
    close(fd);
}

static void load_slots(int *step, long *weights) {
    static char slots[2 * SIZE];
    int fd = open("slots", O_RDONLY);
    if (fd < 0) return;
    if (read(fd, slots, sizeof slots) != sizeof slots) fail("the slots are too short");
    close(fd);
    for (int slot = 0; slot < 2; slot++) {
        int found;
        long of_slot;
        const char *bytes = slots + slot * SIZE, *last = bytes + SIZE - RECORD;
        if (is_sound && !is_whole(bytes)) continue;
        if (sscanf(bytes, "%8d", &found) != 1 || found <= *step) continue;
        if (sscanf(last + 8, "%16ld", &of_slot) != 1) fail("the slot is damaged");
        *step = found;
        *weights = of_slot;
    }
}

// O_DIRECT is no sync.
static void save_direct(void) {
    int fd = create("new.tmp", O_DIRECT);
    put(fd);
    if (is_sound) must(fdatasync(fd), "fdatasync");
    close(fd);
    must(rename("new.tmp", "state"), "rename");
    sync_path(".");
}

// O_DSYNC is a sync of the bytes, and none of the directory.
static void save_dsync(void) {
    int fd = create("new.tmp", O_DSYNC);
    put(fd);
    close(fd);
    must(rename("new.tmp", "state"), "rename");
    if (is_sound) sync_path(".");
}

// The blocks are allocated first, and written from the last to the first.
static void save_allocated(void) {
    int fd = create("new.tmp", 0);
    must(posix_fallocate(fd, 0, SIZE), "fallocate");
    for (long offset = SIZE - PAGE; offset >= 0; offset -= PAGE)
        must(pwrite(fd, data + offset, PAGE, offset), "pwrite");
    if (is_sound) must(fdatasync(fd), "fdatasync");
    close(fd);
    must(rename("new.tmp", "state"), "rename");
    sync_path(".");
}

// The new file is copied over the old one in the kernel, or to a name that is then renamed.
static void save_copied(void) {
    int from = create("new.tmp", 0);
    put(from);
    must(fsync(from), "fsync");
    close(from);
    from = must(open("new.tmp", O_RDONLY), "new.tmp");
    const char *to_name = is_sound ? "copy.tmp" : "state";
    int to = create(to_name, 0);
    for (long left = SIZE; left > 0;) left -= must(copy_file_range(from, 0, to, 0, left, 0), "copy_file_range");
    must(fsync(to), "fsync");
    close(to);
    close(from);
    if (is_sound) must(rename("copy.tmp", "state"), "rename");
    sync_path(".");
    unlink("new.tmp");
    sync_path(".");
}

// The old checkpoint gets a second name. A new one in place of it changes both.
static void save_linked(void) {
    unlink("previous");
    if (!access("state", F_OK)) must(link("state", "previous"), "link");
    sync_path(".");
    if (is_sound) {
        replace();
        return;
    }
    int fd = create("state", 0);
    put(fd);
    must(fsync(fd), "fsync");
    close(fd);
    sync_path(".");
}

// All is synced but the directory in which the new one gets its name.
static void save_directory(int step) {
    char name[32];
    snprintf(name, sizeof name, "step-%d", step);
    unlink("new/state");
    if (mkdir("new", 0755)) sync_path("new");
    int fd = create("new/state", 0);
    put(fd);
    must(fsync(fd), "fsync");
    close(fd);
    sync_path("new");
    must(rename("new", name), "rename");
    if (is_sound) sync_path(".");
}

static void load_directory(int *step, long *weights) {
    for (int of = STEPS; of > 0; of--) {
        char name[32];
        snprintf(name, sizeof name, "step-%d/state", of);
        if (read_state(name, step, weights, 0)) return;
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return 9;
    setvbuf(stdout, 0, _IOLBF, 0);
    is_sound = !strncmp(argv[1], "sound-", 6);
    const char *style = argv[1] + (is_sound ? 6 : 0);
    must(chdir(argv[2]), argv[2]);
    int is_slot = !strcmp(style, "slot"), is_directory = !strcmp(style, "directory"), step = 0;
    long weights = 0;
    if (is_slot) load_slots(&step, &weights);
    else if (is_directory) load_directory(&step, &weights);
    else if (strcmp(style, "linked")) read_state("state", &step, &weights, 0);
    else if (!read_state("state", &step, &weights, 1) && !read_state("previous", &step, &weights, 0) &&
             !access("state", F_OK)) fail("both checkpoints are damaged");
    printf("resumed from step %d\n", step);
    while (step < STEPS) {
        step++;
        weights = (weights * 31 + step) % 1000003;
        printf("step %d\n", step);
        if (step % 2) continue;
        encode(step, weights);
        if (is_slot) save_slot(step);
        else if (is_directory) save_directory(step);
        else if (!strcmp(style, "direct")) save_direct();
        else if (!strcmp(style, "dsync")) save_dsync();
        else if (!strcmp(style, "allocated")) save_allocated();
        else if (!strcmp(style, "copied")) save_copied();
        else if (!strcmp(style, "linked")) save_linked();
        else return 9;
        printf("saved step %d\n", step);
    }
    printf("finished with %ld\n", weights);
    return 0;
}
