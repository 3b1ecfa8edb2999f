// RMSNorm (Zhang and Sennrich 2019): y = x / sqrt(mean(x^2) + eps) * weight, row by row. The weight is frozen
// and gets no gradient.
#include "device.h"

template <int N, typename T>
__device__ __forceinline__ void add_squares(float& sum, const T* x, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> value = load<N>(x + i);
        for (int k = 0; k < N; k++) sum += value.values[k] * value.values[k];
    }
}

template <int N, typename T>
__device__ __forceinline__ void scale_row(T* y, const T* x, const T* weight, float inverse, int from,
    int to) {
    FOR_SHARE(i, N, from, to) {
        Floats<N> value = load<N>(x + i);
        const Floats<N> w = load<N>(weight + i);
        for (int k = 0; k < N; k++) value.values[k] *= inverse * w.values[k];
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
    const int vector_end = in_vectors<T>(width, aligned(from, to, weight));
    float squares = 0.0f;
    add_squares<VECTOR<T>>(squares, from, 0, vector_end);
    add_squares<1>(squares, from, vector_end, width);
    const float r = 1.0f / sqrtf(block_sum(squares, scratch) / width + eps);
    scale_row<VECTOR<T>>(to, from, weight, r, 0, vector_end);
    scale_row<1>(to, from, weight, r, vector_end, width);
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
        for (int k = 0; k < N; k++) sum += d.values[k] * w.values[k] * value.values[k];
    }
}

// dx = residual + dy * weight * inverse - x * x_scale. `residual` may be null. It may also be `dx` itself,
// because the same thread reads an element before it writes it.
template <int N, typename T>
__device__ __forceinline__ void write_input_gradient(T* dx, const T* residual, const T* dy, const T* weight,
    const T* x, float inverse, float x_scale, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> d = load<N>(dy + i), w = load<N>(weight + i), value = load<N>(x + i);
        Floats<N> sum = {};
        if (residual) sum = load<N>(residual + i);
        for (int k = 0; k < N; k++) {
            sum.values[k] += d.values[k] * w.values[k] * inverse - value.values[k] * x_scale;
        }
        store(dx + i, sum);
    }
}

template <typename T>
__device__ void rms_norm_backward(T* dx, const T* residual, const T* dy, int lddy, const T* x,
    const T* weight, const float* inverse, int rows, int width) {
    SHARED_MEMORY(float, scratch);
    const int row = blockIdx.x;
    if (row >= rows) return;
    const u64 offset = static_cast<u64>(row) * width;
    const T* dy_row = dy + static_cast<u64>(row) * lddy;
    const T* residual_row = residual ? residual + offset : nullptr;
    const bool all_aligned = aligned(dy_row, residual_row, x + offset, dx + offset, weight);
    const int vector_end = in_vectors<T>(width, all_aligned);
    float products = 0.0f;
    add_products<VECTOR<T>>(products, dy_row, weight, x + offset, 0, vector_end);
    add_products<1>(products, dy_row, weight, x + offset, vector_end, width);
    const float r = inverse[row];
    const float x_scale = block_sum(products, scratch) * r * r * r / width;
    write_input_gradient<VECTOR<T>>(dx + offset, residual_row, dy_row, weight, x + offset, r, x_scale, 0,
        vector_end);
    write_input_gradient<1>(dx + offset, residual_row, dy_row, weight, x + offset, r, x_scale, vector_end,
        width);
}

extern "C" __global__ void rms_norm_backward_f32(float* dx, const float* residual, const float* dy, int lddy,
    const float* x, const float* weight, const float* inverse, int rows, int width) {
    rms_norm_backward(dx, residual, dy, lddy, x, weight, inverse, rows, width);
}

extern "C" __global__ void rms_norm_backward_bf16(bf16* dx, const bf16* residual, const bf16* dy, int lddy,
    const bf16* x, const bf16* weight, const float* inverse, int rows, int width) {
    rms_norm_backward(dx, residual, dy, lddy, x, weight, inverse, rows, width);
}
