// Norm of the gradient and AdamW (Loshchilov and Hutter 2019). Both set a flag if a number is not finite.
#include "device.h"

// Sum of squares of each block's share. Sets bit 0 of `not_finite` if an element of the gradient is not
// finite.
extern "C" __global__ void square_sum(double* partial, unsigned* not_finite, const float* g, u64 count) {
    SHARED_MEMORY(double, scratch);
    double part = 0.0;
    bool finite = true;
    const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        finite &= is_finite(g[i]);
        part += static_cast<double>(g[i]) * g[i];
    }
    if (!finite) atomicOr(not_finite, 1u);
    const double total = block_sum(part, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

extern "C" __global__ void finish_norm(float* norm, const double* partial, int count) {
    SHARED_MEMORY(double, scratch);
    double part = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) part += partial[i];
    const double total = block_sum(part, scratch);
    if (threadIdx.x == 0) norm[0] = static_cast<float>(sqrt(total));
}

// Writes to other buffers than it reads: the caller discards a step that is not finite by not swapping them.
// Sets bit 1 of `not_finite` if an updated parameter is not finite.
extern "C" __global__ void adamw(float* p_out, float* m_out, float* v_out, unsigned* not_finite,
    const float* p, const float* m, const float* v, const float* g, const float* norm, float rate,
    float beta1, float beta2, float epsilon, float decay, float clip_norm, float correction1,
    float correction2, u64 count) {
    const float clip = norm[0] > clip_norm ? clip_norm / norm[0] : 1.0f;
    bool finite = true;
    const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        const float gradient = g[i] * clip;
        const float first = beta1 * m[i] + (1.0f - beta1) * gradient;
        const float second = beta2 * v[i] + (1.0f - beta2) * gradient * gradient;
        const float step = (first / correction1) / (sqrtf(second / correction2) + epsilon);
        const float updated = p[i] - rate * (step + decay * p[i]);
        m_out[i] = first;
        v_out[i] = second;
        p_out[i] = updated;
        finite &= is_finite(updated);
    }
    if (!finite) atomicOr(not_finite, 2u);
}
