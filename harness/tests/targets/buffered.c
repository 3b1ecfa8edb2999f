/* A saver whose output goes through the buffer of the C library, as a pipe gets it: nothing is written before the
 * end. `buffered DIR [flush]`: three saves by a rename; with `flush`, each line is written at once. Run by
 * `engine_cases.rs`. */

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void save(const char *directory, int step) {
    char temporary[4096], final[4096], text[16];
    snprintf(temporary, sizeof temporary, "%s/new", directory);
    snprintf(final, sizeof final, "%s/ckpt", directory);
    int length = snprintf(text, sizeof text, "%d", step);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (write(fd, text, length) != length || fsync(fd) != 0 || close(fd) != 0) _exit(1);
    if (rename(temporary, final) != 0) _exit(1);
    fd = open(directory, O_RDONLY);
    if (fsync(fd) != 0 || close(fd) != 0) _exit(1);
}

int main(int count, char **arguments) {
    char path[4096];
    int step = 0;
    snprintf(path, sizeof path, "%s/ckpt", arguments[1]);
    FILE *saved = fopen(path, "r");
    if (saved != NULL && (fscanf(saved, "%d", &step) != 1 || fclose(saved) != 0)) return 1;
    printf("resumed from step %d\n", step);
    while (step < 3) {
        save(arguments[1], ++step);
        printf("saved step %d\n", step);
        if (count > 2) fflush(stdout);
    }
    return 0;
}
