// Kernels that access memory out of bounds, and small kernels for measurements. Must not know the tests.
extern "C" __global__ void planted_fill(float *out, float value, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = value;
}

extern "C" __global__ void planted_add(float *out, const float *in, float value, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = in[i] + value;
}

// Bug: writes one element past the end.
extern "C" __global__ void planted_fill_too_far(float *out, float value, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= count) out[i] = value;
}

extern "C" __global__ void planted_read_at(float *out, const float *in, long long index) {
    if (threadIdx.x == 0 && blockIdx.x == 0) out[0] = in[index];
}

extern "C" __global__ void planted_shared_too_far(float *out, int count) {
    float *shared = (float *)simgpu_shared();
    if (threadIdx.x == 0)
        for (int i = 0; i <= count; i++) shared[i] = (float)i;
    __syncthreads();
    out[threadIdx.x] = shared[0];
}

extern "C" __global__ void planted_divide(int *out, int by) { out[threadIdx.x] = 7 / by; }

extern "C" __global__ void planted_recurse(float *out, int depth);
static float deep(volatile float *caller, int depth) {
    volatile float here[64];
    here[depth % 64] = caller[0];
    if (depth == 0) return here[0];
    return deep(here, depth - 1) + here[depth % 64];
}
extern "C" __global__ void planted_recurse(float *out, int depth) { out[0] = deep(out, depth); }

extern "C" __global__ void planted_nothing(float *out) {}

extern "C" __global__ void planted_times_bf16(unsigned short *out, const unsigned short *in, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = in[i];
}

// Has the structure of an RMS norm: a reduction in each warp, then one over the warps.
extern "C" __global__ void planted_norm(float *out, const float *in, int width) {
    float *shared = (float *)simgpu_shared();
    const float *row = in + (long long)blockIdx.x * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += row[i] * row[i];
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += shared[warp];
    float inverse = rsqrtf(sum / width + 1e-5f);
    float *normed = out + (long long)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) normed[i] = row[i] * inverse;
}

// One tensor core product: out[16][8] = a[16][16] * b[16][8], both bf16, row-major.
extern "C" __global__ void planted_mma(float *out, const unsigned short *a, const unsigned short *b) {
    unsigned lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
    auto pair = [](unsigned low, unsigned high) { return low | high << 16; };
    unsigned fa[4], fb[2];
    for (unsigned i = 0; i < 4; i++) {
        const unsigned short *from = a + (group + (i & 1) * 8) * 16 + member * 2 + (i / 2) * 8;
        fa[i] = pair(from[0], from[1]);
    }
    for (unsigned i = 0; i < 2; i++) {
        const unsigned short *from = b + (member * 2 + i * 8) * 8 + group;
        fb[i] = pair(from[0], from[8]);
    }
    float d[4] = {0, 0, 0, 0};
    simgpu_mma_m16n8k16_bf16(d, fa, fb);
    for (unsigned i = 0; i < 4; i++) out[(group + (i / 2) * 8) * 8 + member * 2 + (i & 1)] = d[i];
}
