// RMSNorm (Zhang and Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * weight, row by row. The weight is frozen
// and gets no gradient.
#include "device.h"

template <int N, typename T>
__device__ __forceinline__ void add_squares(float& sum, const T* x, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> value = load<N>(x + i);
        for (int k = 0; k < N; k++) sum += value.at[k] * value.at[k];
    }
}

template <int N, typename T>
__device__ __forceinline__ void scale_row(T* y, const T* x, const T* weight, float inverse, int from,
    int to) {
    FOR_SHARE(i, N, from, to) {
        Floats<N> value = load<N>(x + i);
        const Floats<N> w = load<N>(weight + i);
        for (int k = 0; k < N; k++) value.at[k] *= inverse * w.at[k];
        store(y + i, value);
    }
}

template <typename T>
__device__ void rms_norm(T* y, int ldy, float* inverse, const T* x, const T* weight, int rows, int width,
    float eps) {
    SHARED_MEMORY(float, scratch);
    const int row = blockIdx.x;
    if (row >= rows) return;
    const T* from = x + static_cast<u64>(row) * width;
    T* to = y + static_cast<u64>(row) * ldy;
    const int whole = in_vectors<T>(width, aligned(from, to, weight));
    float squares = 0.0f;
    add_squares<VECTOR<T>>(squares, from, 0, whole);
    add_squares<1>(squares, from, whole, width);
    const float r = 1.0f / sqrtf(block_sum(squares, scratch) / width + eps);
    scale_row<VECTOR<T>>(to, from, weight, r, 0, whole);
    scale_row<1>(to, from, weight, r, whole, width);
    if (threadIdx.x == 0) inverse[row] = r;
}

extern "C" __global__ void rms_norm_f32(float* y, int ldy, float* inverse, const float* x,
    const float* weight, int rows, int width, float eps) {
    rms_norm(y, ldy, inverse, x, weight, rows, width, eps);
}

extern "C" __global__ void rms_norm_bf16(bf16* y, int ldy, float* inverse, const bf16* x, const bf16* weight,
    int rows, int width, float eps) {
    rms_norm(y, ldy, inverse, x, weight, rows, width, eps);
}

template <int N, typename T>
__device__ __forceinline__ void add_products(float& sum, const T* dy, const T* weight, const T* x, int from,
    int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> d = load<N>(dy + i), w = load<N>(weight + i), value = load<N>(x + i);
        for (int k = 0; k < N; k++) sum += d.at[k] * w.at[k] * value.at[k];
    }
}

// dx = before + dy * weight * inverse - x * along. `before` may be null. It may also be `dx` itself, because
// the same thread reads an element before it writes it.
template <int N, typename T>
__device__ __forceinline__ void turn_back(T* dx, const T* before, const T* dy, const T* weight, const T* x,
    float inverse, float along, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> d = load<N>(dy + i), w = load<N>(weight + i), value = load<N>(x + i);
        Floats<N> sum = {};
        if (before) sum = load<N>(before + i);
        for (int k = 0; k < N; k++) sum.at[k] += d.at[k] * w.at[k] * inverse - value.at[k] * along;
        store(dx + i, sum);
    }
}

template <typename T>
__device__ void rms_norm_backward(T* dx, const T* residual, const T* dy, int lddy, const T* x,
    const T* weight, const float* inverse, int rows, int width) {
    SHARED_MEMORY(float, scratch);
    const int row = blockIdx.x;
    if (row >= rows) return;
    const u64 at = static_cast<u64>(row) * width;
    const T* slope = dy + static_cast<u64>(row) * lddy;
    const T* before = residual ? residual + at : nullptr;
    const int whole = in_vectors<T>(width, aligned(slope, before, x + at, dx + at, weight));
    float products = 0.0f;
    add_products<VECTOR<T>>(products, slope, weight, x + at, 0, whole);
    add_products<1>(products, slope, weight, x + at, whole, width);
    const float r = inverse[row];
    const float along = block_sum(products, scratch) * r * r * r / width;
    turn_back<VECTOR<T>>(dx + at, before, slope, weight, x + at, r, along, 0, whole);
    turn_back<1>(dx + at, before, slope, weight, x + at, r, along, whole, width);
}

extern "C" __global__ void rms_norm_backward_f32(float* dx, const float* residual, const float* dy, int lddy,
    const float* x, const float* weight, const float* inverse, int rows, int width) {
    rms_norm_backward(dx, residual, dy, lddy, x, weight, inverse, rows, width);
}

extern "C" __global__ void rms_norm_backward_bf16(bf16* dx, const bf16* residual, const bf16* dy, int lddy,
    const bf16* x, const bf16* weight, const float* inverse, int rows, int width) {
    rms_norm_backward(dx, residual, dy, lddy, x, weight, inverse, rows, width);
}
