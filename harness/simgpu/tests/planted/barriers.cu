// A sum over a block: correct, and with a missing barrier. Also barriers that not all threads reach.
// Must not know the tests.
extern "C" __global__ void planted_sum(float *out, const float *in, int count) {
    float *shared = (float *)simgpu_shared();
    int i = threadIdx.x;
    shared[i] = i < count ? in[blockIdx.x * count + i] : 0.0f;
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        __syncthreads();
        if (i < step) shared[i] += shared[i + step];
    }
    __syncthreads();
    if (i == 0) out[blockIdx.x] = shared[0];
}

extern "C" __global__ void planted_sum_without_barrier(float *out, const float *in, int count) {
    float *shared = (float *)simgpu_shared();
    int i = threadIdx.x;
    shared[i] = i < count ? in[blockIdx.x * count + i] : 0.0f;
    for (int step = blockDim.x / 2; step > 0; step /= 2) {
        if (i < step) shared[i] += shared[i + step];
        __syncthreads();
    }
    if (i == 0) out[blockIdx.x] = shared[0];
}

// Bug: no barrier. Each thread reads its left neighbour: the result is right only in ascending thread order.
extern "C" __global__ void planted_shift_without_barrier(float *out, const float *in, int count) {
    float *shared = (float *)simgpu_shared();
    int i = threadIdx.x;
    shared[i] = in[i % count];
    out[blockIdx.x * blockDim.x + i] = i == 0 ? 0.0f : shared[i - 1];
}

extern "C" __global__ void planted_divergent(float *out) {
    if (threadIdx.x % 2 == 0) return;
    __syncthreads();
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void planted_mixed(float *out) {
    float value = 1.0f;
    if (threadIdx.x == 0) __syncwarp();
    else value = __shfl_xor_sync(0xffffffffu, value, 1);
    out[threadIdx.x] = value;
}
