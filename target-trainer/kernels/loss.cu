// Cross-entropy fused with its backward pass: a row of logits becomes its gradient in place.
#include "device.h"

// Computes the maximum and the sum of exponentials in one pass: the sum is rescaled whenever the maximum
// grows.
template <int N, typename T>
__device__ __forceinline__ void add_exponentials(float& running_max, float& sum, const T* logits, int from,
    int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> x = load<N>(logits + i);
        float new_max = running_max;
        for (int k = 0; k < N; k++) new_max = fmaxf(new_max, x.values[k]);
        const bool any = new_max > MINUS_INFINITY;
        if (any) sum *= expf(running_max - new_max);
        for (int k = 0; k < N; k++) {
            if (any) sum += expf(x.values[k] - new_max);
            // A NaN must reach the result, but fmaxf ignores it.
            if (x.values[k] != x.values[k]) sum = x.values[k];
        }
        running_max = new_max;
    }
}

template <int N, typename T>
__device__ __forceinline__ void write_gradient(T* logits, float max_logit, float total, int target,
    float scale, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        Floats<N> x = load<N>(logits + i);
        for (int k = 0; k < N; k++) {
            x.values[k] = (expf(x.values[k] - max_logit) / total - (i + k == target ? 1.0f : 0.0f)) * scale;
        }
        store(logits + i, x);
    }
}

template <typename T>
__device__ void cross_entropy(T* logits, int ld, float* losses, const unsigned* targets, const float* scales,
    int rows, int vocabulary) {
    SHARED_MEMORY(float, scratch);
    const int row = blockIdx.x, thread = threadIdx.x;
    if (row >= rows) return;
    T* row_logits = logits + static_cast<u64>(row) * ld;
    const int vector_end = in_vectors<T>(vocabulary, aligned(row_logits));
    float thread_max = MINUS_INFINITY, sum = 0.0f;
    add_exponentials<VECTOR<T>>(thread_max, sum, row_logits, 0, vector_end);
    add_exponentials<1>(thread_max, sum, row_logits, vector_end, vocabulary);
    scratch[thread] = thread_max;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) scratch[thread] = fmaxf(scratch[thread], scratch[thread + half]);
    }
    __syncthreads();
    const float max_logit = scratch[0];
    const float part = max_logit > MINUS_INFINITY ? sum * expf(thread_max - max_logit) : sum;
    const float total = block_sum(part, scratch);
    const int target = static_cast<int>(targets[row]);
    const float target_logit = widen(row_logits[target]), scale = scales[row];
    // All threads read the target's logit before one of them overwrites it.
    __syncthreads();
    write_gradient<VECTOR<T>>(row_logits, max_logit, total, target, scale, 0, vector_end);
    write_gradient<1>(row_logits, max_logit, total, target, scale, vector_end, vocabulary);
    if (thread == 0) losses[row] = logf(total) + max_logit - target_logit;
}

extern "C" __global__ void cross_entropy_f32(float* logits, int ld, float* losses, const unsigned* targets,
    const float* scales, int rows, int vocabulary) {
    cross_entropy(logits, ld, losses, targets, scales, rows, vocabulary);
}

extern "C" __global__ void cross_entropy_bf16(bf16* logits, int ld, float* losses, const unsigned* targets,
    const float* scales, int rows, int vocabulary) {
    cross_entropy(logits, ld, losses, targets, scales, rows, vocabulary);
}

// out[0] += sum(values * weights). One block, which sums in a fixed order.
extern "C" __global__ void weighted_sum(float* out, const float* values, const float* weights, int count) {
    SHARED_MEMORY(double, scratch);
    double part = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) part += static_cast<double>(values[i]) * weights[i];
    const double total = block_sum(part, scratch);
    if (threadIdx.x == 0) out[0] = static_cast<float>(out[0] + total);
}
