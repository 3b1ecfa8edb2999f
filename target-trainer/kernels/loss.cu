// Cross-entropy fused with its backward pass: a row of logits becomes its gradient in place.
#include "device.h"

// Computes the maximum and the sum of exponentials in one pass: the sum is rescaled whenever the maximum
// grows.
template <int N, typename T>
__device__ __forceinline__ void add_exponentials(float& most, float& sum, const T* logits, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> x = load<N>(logits + i);
        float highest = most;
        for (int k = 0; k < N; k++) highest = fmaxf(highest, x.at[k]);
        const bool any = highest > MINUS_INFINITY;
        if (any) sum *= expf(most - highest);
        for (int k = 0; k < N; k++) {
            if (any) sum += expf(x.at[k] - highest);
            // A NaN must reach the result, but fmaxf ignores it.
            if (x.at[k] != x.at[k]) sum = x.at[k];
        }
        most = highest;
    }
}

template <int N, typename T>
__device__ __forceinline__ void become_gradient(T* logits, float highest, float total, int target,
    float scale, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        Floats<N> x = load<N>(logits + i);
        for (int k = 0; k < N; k++) {
            x.at[k] = (expf(x.at[k] - highest) / total - (i + k == target ? 1.0f : 0.0f)) * scale;
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
    T* own = logits + static_cast<u64>(row) * ld;
    const int whole = in_vectors<T>(vocabulary, aligned(own));
    float most = MINUS_INFINITY, sum = 0.0f;
    add_exponentials<VECTOR<T>>(most, sum, own, 0, whole);
    add_exponentials<1>(most, sum, own, whole, vocabulary);
    scratch[thread] = most;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) scratch[thread] = fmaxf(scratch[thread], scratch[thread + half]);
    }
    __syncthreads();
    const float highest = scratch[0];
    const float total = block_sum(highest > MINUS_INFINITY ? sum * expf(most - highest) : sum, scratch);
    const int target = static_cast<int>(targets[row]);
    const float wanted = widen(own[target]), scale = scales[row];
    // All threads read the target's logit before one of them overwrites it.
    __syncthreads();
    become_gradient<VECTOR<T>>(own, highest, total, target, scale, 0, whole);
    become_gradient<1>(own, highest, total, target, scale, whole, vocabulary);
    if (thread == 0) losses[row] = logf(total) + highest - wanted;
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
