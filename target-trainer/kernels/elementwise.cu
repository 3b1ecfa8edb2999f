// Rotary position embedding (Su et al. 2021) and SwiGLU (Shazeer 2020).
#include "device.h"

// `table`: cosines [max_position][head_dim / 2], then sines. Element i of a head's first half is rotated with
// element i of its second half. `direction` is 1 in the forward pass and -1 in the backward pass.
template <typename T>
__device__ void rope(T* x, int ld, const float* table, const int* positions, int rows, int heads,
    int head_dim, int max_position, float direction) {
    const int row = blockIdx.x;
    if (row >= rows) return;
    const int half = head_dim / 2;
    const float* cosines = table + static_cast<u64>(positions[row]) * half;
    const float* sines = cosines + static_cast<u64>(max_position) * half;
    T* from = x + static_cast<u64>(row) * ld;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        T* head = from + (i / half) * head_dim;
        const int index = i % half;
        const float c = cosines[index], s = direction * sines[index];
        const float a = widen(head[index]), b = widen(head[index + half]);
        head[index] = narrow<T>(a * c - b * s);
        head[index + half] = narrow<T>(b * c + a * s);
    }
}

extern "C" __global__ void rope_f32(float* x, int ld, const float* table, const int* positions, int rows,
    int heads, int head_dim, int max_position, float direction) {
    rope(x, ld, table, positions, rows, heads, head_dim, max_position, direction);
}

extern "C" __global__ void rope_bf16(bf16* x, int ld, const float* table, const int* positions, int rows,
    int heads, int head_dim, int max_position, float direction) {
    rope(x, ld, table, positions, rows, heads, head_dim, max_position, direction);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int N, typename T>
__device__ __forceinline__ void swiglu_row(T* out, const T* gate, const T* up, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> g = load<N>(gate + i);
        Floats<N> product = load<N>(up + i);
        for (int k = 0; k < N; k++) product.values[k] *= g.values[k] * sigmoid(g.values[k]);
        store(out + i, product);
    }
}

// A row of `gate_up` is gate[width], then up[width].
template <typename T>
__device__ void swiglu(T* out, int ldo, const T* gate_up, int ld, int rows, int width) {
    const int row = blockIdx.x;
    if (row >= rows) return;
    const T* gate = gate_up + static_cast<u64>(row) * ld;
    const T* up = gate + width;
    T* to = out + static_cast<u64>(row) * ldo;
    const int vector_end = in_vectors<T>(width, aligned(gate, up, to));
    swiglu_row<VECTOR<T>>(to, gate, up, 0, vector_end);
    swiglu_row<1>(to, gate, up, vector_end, width);
}

extern "C" __global__ void swiglu_f32(float* out, int ldo, const float* gate_up, int ld, int rows,
    int width) {
    swiglu(out, ldo, gate_up, ld, rows, width);
}

extern "C" __global__ void swiglu_bf16(bf16* out, int ldo, const bf16* gate_up, int ld, int rows, int width) {
    swiglu(out, ldo, gate_up, ld, rows, width);
}

template <int N, typename T>
__device__ __forceinline__ void swiglu_row_backward(T* dgate, T* dup, const T* dout, const T* gate,
    const T* up, int from, int to) {
    FOR_SHARE(i, N, from, to) {
        const Floats<N> g = load<N>(gate + i), u = load<N>(up + i), d = load<N>(dout + i);
        Floats<N> gate_gradient, up_gradient;
        for (int k = 0; k < N; k++) {
            const float s = sigmoid(g.values[k]);
            gate_gradient.values[k] = d.values[k] * u.values[k] * s * (1.0f + g.values[k] * (1.0f - s));
            up_gradient.values[k] = d.values[k] * g.values[k] * s;
        }
        store(dgate + i, gate_gradient);
        store(dup + i, up_gradient);
    }
}

template <typename T>
__device__ void swiglu_backward(T* dgate_up, int ldd, const T* dout, int lddo, const T* gate_up, int ld,
    int rows, int width) {
    const int row = blockIdx.x;
    if (row >= rows) return;
    const T* gate = gate_up + static_cast<u64>(row) * ld;
    const T* up = gate + width;
    const T* dout_row = dout + static_cast<u64>(row) * lddo;
    T* dgate = dgate_up + static_cast<u64>(row) * ldd;
    T* dup = dgate + width;
    const int vector_end = in_vectors<T>(width, aligned(gate, up, dout_row, dgate, dup));
    swiglu_row_backward<VECTOR<T>>(dgate, dup, dout_row, gate, up, 0, vector_end);
    swiglu_row_backward<1>(dgate, dup, dout_row, gate, up, vector_end, width);
}

extern "C" __global__ void swiglu_backward_f32(float* dgate_up, int ldd, const float* dout, int lddo,
    const float* gate_up, int ld, int rows, int width) {
    swiglu_backward(dgate_up, ldd, dout, lddo, gate_up, ld, rows, width);
}

extern "C" __global__ void swiglu_backward_bf16(bf16* dgate_up, int ldd, const bf16* dout, int lddo,
    const bf16* gate_up, int ld, int rows, int width) {
    swiglu_backward(dgate_up, ldd, dout, lddo, gate_up, ld, rows, width);
}
