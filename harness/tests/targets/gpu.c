/* A trainer whose only value is in GPU memory. Usage: gpu STYLE ROOT.
 * The styles "ignores", "trusts" and "overruns" have one defect each: the first ignores errors, the second
 * does not check results, and the kernel of the third writes beyond its buffer. With any other style the
 * trainer is correct: it exits with 16 when the driver fails, and resumes. It has no watchdog. Its kernels
 * are those of the simulation's own tests. With the style "pauses" it looks at the GPU for a second after the
 * steps 3 and 5, so that a fault that begins at one of these steps comes before the end on a busy machine too. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *style;

static void *symbol(void *library, const char *name) {
    void *address = library ? dlsym(library, name) : NULL;
    if (!address) {
        printf("no %s\n", name);
        exit(17);
    }
    return address;
}

/* Exits with 17 if there is no device, and with 16 for other errors. */
static void check(const char *function_name, int code) {
    if (code == 0 || !strcmp(style, "ignores")) return;
    printf("%s failed with CUDA error %d\n", function_name, code);
    exit(code == 100 ? 17 : 16);
}

/* Prints what NVML reports about the GPU, when it changes. */
static void watch(void) {
    static void *library, *device;
    static unsigned last_degrees;
    if (!library) {
        library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        int (*init)(void) = symbol(library, "nvmlInit_v2");
        int (*by_index)(unsigned, void **) = symbol(library, "nvmlDeviceGetHandleByIndex_v2");
        if (init() || by_index(0, &device)) printf("NVML does not answer\n");
    }
    int (*temperature)(void *, int, unsigned *) = symbol(library, "nvmlDeviceGetTemperature");
    int (*errors)(void *, int, int, unsigned long long *) = symbol(library, "nvmlDeviceGetTotalEccErrors");
    unsigned degrees = 0;
    unsigned long long corrected = 0;
    int code = temperature(device, 0, &degrees);
    errors(device, 0, 1, &corrected);
    if (degrees != last_degrees || code)
        printf("watched: error %d, %u C, %llu corrected\n", code, degrees, corrected);
    last_degrees = degrees;
}

/* Uses the GPU, but makes no progress. */
static void pause_training(int (*synchronise)(void)) {
    for (int i = 0; i < 200; i++) {
        struct timespec pause = {0, 5 * 1000 * 1000};
        nanosleep(&pause, NULL);
        watch();
        check("cuCtxSynchronize", synchronise());
    }
}

static void save(long step, long value) {
    FILE *file = fopen("ckpt/temporary", "w");
    fprintf(file, "%ld %ld\n", step, value);
    fclose(file);
    rename("ckpt/temporary", "ckpt/latest");
    printf("saved step %ld\n", step);
}

static const char PTX[] =
    ".version 8.0\n.target sm_80\n.address_size 64\n"
    ".visible .entry planted_fill(.param .u64 a, .param .f32 b, .param .u32 c) { ret; }\n"
    ".visible .entry planted_fill_too_far(.param .u64 a, .param .f32 b, .param .u32 c) { ret; }\n";

int main(int argc, char **argv) {
    if (argc < 3 || chdir(argv[2])) return 2;
    style = argv[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    int (*init)(unsigned) = symbol(driver, "cuInit");
    int (*retain)(void **, int) = symbol(driver, "cuDevicePrimaryCtxRetain");
    int (*set_current)(void *) = symbol(driver, "cuCtxSetCurrent");
    int (*allocate)(unsigned long long *, size_t) = symbol(driver, "cuMemAlloc_v2");
    int (*to_device)(unsigned long long, const void *, size_t) = symbol(driver, "cuMemcpyHtoD_v2");
    int (*to_host)(void *, unsigned long long, size_t) = symbol(driver, "cuMemcpyDtoH_v2");
    int (*synchronise)(void) = symbol(driver, "cuCtxSynchronize");

    int (*load)(void **, const void *) = symbol(driver, "cuModuleLoadData");
    int (*function)(void **, void *, const char *) = symbol(driver, "cuModuleGetFunction");
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *,
                  void **, void **) = symbol(driver, "cuLaunchKernel");

    long step = 0, value = 1;
    FILE *latest = fopen("ckpt/latest", "r");
    if (latest && fscanf(latest, "%ld %ld", &step, &value) != 2) return 3;
    printf("resumed from step %ld\n", step);
    int pauses = step == 0 && !strcmp(style, "pauses");

    void *context, *module = NULL, *kernel = NULL;
    unsigned long long buffer = 0, filled = 0;
    check("cuInit", init(0));
    check("cuDevicePrimaryCtxRetain", retain(&context, 0));
    check("cuCtxSetCurrent", set_current(context));
    check("cuMemAlloc", allocate(&buffer, sizeof value));
    check("cuMemAlloc", allocate(&filled, 4096));
    check("cuModuleLoadData", load(&module, PTX));
    const char *name = strcmp(style, "overruns") ? "planted_fill" : "planted_fill_too_far";
    check("cuModuleGetFunction", function(&kernel, module, name));
    while (step < 12) {
        struct timespec pause = {0, 20 * 1000 * 1000};
        nanosleep(&pause, NULL);
        step++;
        value = (value * 31 + step) % 1000003;
        watch();
        float expected = (float)step, computed[1024];
        int value_count = 1024;
        void *arguments[] = {&filled, &expected, &value_count};
        check("cuLaunchKernel", launch(kernel, 5, 1, 1, 256, 1, 1, 0, NULL, arguments, NULL));
        check("cuMemcpyHtoD", to_device(buffer, &value, sizeof value));
        check("cuCtxSynchronize", synchronise());
        check("cuMemcpyDtoH", to_host(&value, buffer, sizeof value));
        check("cuMemcpyDtoH", to_host(computed, filled, sizeof computed));
        for (int i = 0; i < value_count; i++) {
            if (computed[i] == expected) continue;
            value++;
            if (strcmp(style, "trusts")) {
                printf("the GPU computes wrongly\n");
                exit(16);
            }
        }
        printf("step %ld loss %ld\n", step, value);
        if (step % 3 == 0) save(step, value);
        if (pauses && (step == 3 || step == 5)) pause_training(synchronise);
    }
    printf("finished with %ld\n", value);
    return 0;
}
