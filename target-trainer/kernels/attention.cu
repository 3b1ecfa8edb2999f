// Causal attention with grouped queries (Ainslie et al. 2023) over packed sequences, for any head size up to
// 256. A warp processes one row: first each lane computes the score of one of 32 positions, then each lane
// sums its columns. This file uses no tensor cores; `flash.cu` does, for the usual head sizes.
//
// A row of `qkv` is q[heads * d], k[kv_heads * d], v[kv_heads * d]. Sequence s is the rows starts[s] to
// starts[s + 1].
#include "device.h"

// Columns of one lane: 32 lanes cover the largest head size, 256.
constexpr int COLUMNS = 8;

template <typename T> __device__ __forceinline__ float dot(const T* a, const float* b, int d) {
    float sum = 0.0f;
    for (int i = 0; i < d; i++) sum += widen(a[i]) * b[i];
    return sum;
}

// Copies a row into the warp's own shared memory.
template <typename T>
__device__ __forceinline__ void copy_to_shared(float* to, const T* from, int d, int lane) {
    for (int i = lane; i < d; i += 32) to[i] = widen(from[i]);
}

// Shared: WARPS * (d + 32) floats.
template <typename T>
__device__ void attention(T* out, int ldo, float* lse, const T* qkv, int ldqkv, const int* starts, int rows,
    int heads, int kv_heads, int d, float scale) {
    SHARED_MEMORY(float, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* query = shared + warp * (d + 32);
    float* scores = query + d;
    const int head = blockIdx.y, first = starts[blockIdx.z], length = starts[blockIdx.z + 1] - first;
    const T* keys = qkv + static_cast<u64>(first) * ldqkv + (heads + head / (heads / kv_heads)) * d;
    const T* values = keys + kv_heads * d;
    const int end = min(length, static_cast<int>(blockIdx.x + 1) * TILE);
    for (int row = blockIdx.x * TILE + warp; row < end; row += WARPS) {
        __syncwarp();
        copy_to_shared(query, qkv + static_cast<u64>(first + row) * ldqkv + head * d, d, lane);
        __syncwarp();
        float running_max = MINUS_INFINITY, sum = 0.0f, acc[COLUMNS] = {};
        for (int from = 0; from <= row; from += 32) {
            const int count = min(32, row + 1 - from);
            __syncwarp();
            if (lane < count) {
                scores[lane] = dot(keys + static_cast<u64>(from + lane) * ldqkv, query, d) * scale;
            }
            __syncwarp();
            float new_max = running_max;
            for (int i = 0; i < count; i++) new_max = fmaxf(new_max, scores[i]);
            const float rescale = expf(running_max - new_max);
            sum *= rescale;
            for (int c = 0; c < COLUMNS; c++) acc[c] *= rescale;
            for (int i = 0; i < count; i++) {
                const float p = expf(scores[i] - new_max);
                const T* value = values + static_cast<u64>(from + i) * ldqkv;
                sum += p;
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    if (lane + 32 * c < d) acc[c] += p * widen(value[lane + 32 * c]);
                }
            }
            running_max = new_max;
        }
        T* to = out + static_cast<u64>(first + row) * ldo + head * d;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (lane + 32 * c < d) to[lane + 32 * c] = narrow<T>(acc[c] / sum);
        }
        if (lane == 0) lse[static_cast<u64>(head) * rows + first + row] = running_max + logf(sum);
    }
}

extern "C" __global__ void attention_f32(float* out, int ldo, float* lse, const float* qkv, int ldqkv,
    const int* starts, int rows, int heads, int kv_heads, int head_dim, float scale) {
    attention(out, ldo, lse, qkv, ldqkv, starts, rows, heads, kv_heads, head_dim, scale);
}

extern "C" __global__ void attention_bf16(bf16* out, int ldo, float* lse, const bf16* qkv, int ldqkv,
    const int* starts, int rows, int heads, int kv_heads, int head_dim, float scale) {
    attention(out, ldo, lse, qkv, ldqkv, starts, rows, heads, kv_heads, head_dim, scale);
}

// sum(out * dout) of each row and head, which the backward pass of softmax subtracts. One warp for each row
// and head.
template <typename T>
__device__ void attention_delta(float* delta, const T* out, int ldo, const T* dout, int lddo, int rows,
    int heads, int d) {
    const int row = blockIdx.x, head = blockIdx.y;
    if (row >= rows || head >= heads) return;
    const T* a = out + static_cast<u64>(row) * ldo + head * d;
    const T* b = dout + static_cast<u64>(row) * lddo + head * d;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < d; i += 32) sum += widen(a[i]) * widen(b[i]);
    for (int half = 16; half > 0; half /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, half);
    if (threadIdx.x == 0) delta[static_cast<u64>(head) * rows + row] = sum;
}

extern "C" __global__ void attention_delta_f32(float* delta, const float* out, int ldo, const float* dout,
    int lddo, int rows, int heads, int head_dim) {
    attention_delta(delta, out, ldo, dout, lddo, rows, heads, head_dim);
}

extern "C" __global__ void attention_delta_bf16(float* delta, const bf16* out, int ldo, const bf16* dout,
    int lddo, int rows, int heads, int head_dim) {
    attention_delta(delta, out, ldo, dout, lddo, rows, heads, head_dim);
}

// Shared: WARPS * (2 d + 32) floats.
template <typename T>
__device__ void attention_backward_q(T* dqkv, int ldd, const T* qkv, int ldqkv, const T* dout, int lddo,
    const float* lse, const float* delta, const int* starts, int rows, int heads, int kv_heads, int d,
    float scale) {
    SHARED_MEMORY(float, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* query = shared + warp * (2 * d + 32);
    float* dout_row = query + d;
    float* ds = dout_row + d;
    const int head = blockIdx.y, first = starts[blockIdx.z], length = starts[blockIdx.z + 1] - first;
    const T* keys = qkv + static_cast<u64>(first) * ldqkv + (heads + head / (heads / kv_heads)) * d;
    const T* values = keys + kv_heads * d;
    const int end = min(length, static_cast<int>(blockIdx.x + 1) * TILE);
    for (int row = blockIdx.x * TILE + warp; row < end; row += WARPS) {
        const u64 packed_row = first + row, head_row = static_cast<u64>(head) * rows + packed_row;
        __syncwarp();
        copy_to_shared(query, qkv + packed_row * ldqkv + head * d, d, lane);
        copy_to_shared(dout_row, dout + packed_row * lddo + head * d, d, lane);
        float acc[COLUMNS] = {};
        for (int from = 0; from <= row; from += 32) {
            const int count = min(32, row + 1 - from);
            __syncwarp();
            if (lane < count) {
                const u64 partner_offset = static_cast<u64>(from + lane) * ldqkv;
                const float p = expf(dot(keys + partner_offset, query, d) * scale - lse[head_row]);
                ds[lane] = p * (dot(values + partner_offset, dout_row, d) - delta[head_row]);
            }
            __syncwarp();
            for (int i = 0; i < count; i++) {
                const T* key = keys + static_cast<u64>(from + i) * ldqkv;
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    if (lane + 32 * c < d) acc[c] += ds[i] * widen(key[lane + 32 * c]);
                }
            }
        }
        T* to = dqkv + packed_row * ldd + head * d;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (lane + 32 * c < d) to[lane + 32 * c] = narrow<T>(acc[c] * scale);
        }
    }
}

extern "C" __global__ void attention_backward_q_f32(float* dqkv, int ldd, const float* qkv, int ldqkv,
    const float* dout, int lddo, const float* lse, const float* delta, const int* starts, int rows, int heads,
    int kv_heads, int head_dim, float scale) {
    attention_backward_q(dqkv, ldd, qkv, ldqkv, dout, lddo, lse, delta, starts, rows, heads, kv_heads,
        head_dim, scale);
}

extern "C" __global__ void attention_backward_q_bf16(bf16* dqkv, int ldd, const bf16* qkv, int ldqkv,
    const bf16* dout, int lddo, const float* lse, const float* delta, const int* starts, int rows, int heads,
    int kv_heads, int head_dim, float scale) {
    attention_backward_q(dqkv, ldd, qkv, ldqkv, dout, lddo, lse, delta, starts, rows, heads, kv_heads,
        head_dim, scale);
}

// A warp processes one key: it loops over the query heads of its group, then over the queries, always in the
// same order. Shared: WARPS * (2 d + 64) floats.
template <typename T>
__device__ void attention_backward_kv(T* dqkv, int ldd, const T* qkv, int ldqkv, const T* dout, int lddo,
    const float* lse, const float* delta, const int* starts, int rows, int heads, int kv_heads, int d,
    float scale) {
    SHARED_MEMORY(float, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* key = shared + warp * (2 * d + 64);
    float* value = key + d;
    float* ps = value + d;
    float* ds = ps + 32;
    const int kv_head = blockIdx.y, group = heads / kv_heads;
    const int first = starts[blockIdx.z], length = starts[blockIdx.z + 1] - first;
    const int end = min(length, static_cast<int>(blockIdx.x + 1) * TILE);
    for (int row = blockIdx.x * TILE + warp; row < end; row += WARPS) {
        const T* key_row = qkv + static_cast<u64>(first + row) * ldqkv + (heads + kv_head) * d;
        __syncwarp();
        copy_to_shared(key, key_row, d, lane);
        copy_to_shared(value, key_row + kv_heads * d, d, lane);
        float dk[COLUMNS] = {}, dv[COLUMNS] = {};
        for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
            for (int from = row; from < length; from += 32) {
                const int count = min(32, length - from);
                __syncwarp();
                if (lane < count) {
                    const u64 packed_row = first + from + lane;
                    const u64 head_row = static_cast<u64>(head) * rows + packed_row;
                    const T* query = qkv + packed_row * ldqkv + head * d;
                    const float p = expf(dot(query, key, d) * scale - lse[head_row]);
                    ps[lane] = p;
                    ds[lane] = p * (dot(dout + packed_row * lddo + head * d, value, d) - delta[head_row]);
                }
                __syncwarp();
                for (int i = 0; i < count; i++) {
                    const T* query = qkv + static_cast<u64>(first + from + i) * ldqkv + head * d;
                    const T* dout_row = dout + static_cast<u64>(first + from + i) * lddo + head * d;
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        if (lane + 32 * c < d) {
                            dk[c] += ds[i] * widen(query[lane + 32 * c]);
                            dv[c] += ps[i] * widen(dout_row[lane + 32 * c]);
                        }
                    }
                }
            }
        }
        T* to = dqkv + static_cast<u64>(first + row) * ldd + (heads + kv_head) * d;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (lane + 32 * c < d) {
                to[lane + 32 * c] = narrow<T>(dk[c] * scale);
                to[kv_heads * d + lane + 32 * c] = narrow<T>(dv[c]);
            }
        }
    }
}

extern "C" __global__ void attention_backward_kv_f32(float* dqkv, int ldd, const float* qkv, int ldqkv,
    const float* dout, int lddo, const float* lse, const float* delta, const int* starts, int rows, int heads,
    int kv_heads, int head_dim, float scale) {
    attention_backward_kv(dqkv, ldd, qkv, ldqkv, dout, lddo, lse, delta, starts, rows, heads, kv_heads,
        head_dim, scale);
}

extern "C" __global__ void attention_backward_kv_bf16(bf16* dqkv, int ldd, const bf16* qkv, int ldqkv,
    const bf16* dout, int lddo, const float* lse, const float* delta, const int* starts, int rows, int heads,
    int kv_heads, int head_dim, float scale) {
    attention_backward_kv(dqkv, ldd, qkv, ldqkv, dout, lddo, lse, delta, starts, rows, heads, kv_heads,
        head_dim, scale);
}
