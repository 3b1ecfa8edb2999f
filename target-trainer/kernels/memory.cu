// Embedding look-up, copies of rows and of adapter matrices, checksum, cast.
#include "device.h"

template <typename T> __device__ __forceinline__ void copy_row(T* to, const T* from, int width) {
    const int vector_end = in_vectors<T>(width, aligned(to, from));
    FOR_SHARE(i, VECTOR<T>, 0, vector_end) {
        *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
    }
    FOR_SHARE(i, 1, vector_end, width) to[i] = from[i];
}

template <typename T>
__device__ void embed(T* x, int ldx, const T* table, const unsigned* tokens, int rows, int width) {
    const int row = blockIdx.x;
    if (row >= rows) return;
    copy_row(x + static_cast<u64>(row) * ldx, table + static_cast<u64>(tokens[row]) * width, width);
}

extern "C" __global__ void embed_f32(float* x, int ldx, const float* table, const unsigned* tokens, int rows,
    int width) {
    embed(x, ldx, table, tokens, rows, width);
}

extern "C" __global__ void embed_bf16(bf16* x, int ldx, const bf16* table, const unsigned* tokens, int rows,
    int width) {
    embed(x, ldx, table, tokens, rows, width);
}

// out[i] = x[indices[i]].
template <typename T>
__device__ void gather_rows(T* out, int ldo, const T* x, int ldx, const int* indices, int count, int width) {
    const int row = blockIdx.x;
    if (row >= count) return;
    copy_row(out + static_cast<u64>(row) * ldo, x + static_cast<u64>(indices[row]) * ldx, width);
}

extern "C" __global__ void gather_rows_f32(float* out, int ldo, const float* x, int ldx, const int* indices,
    int count, int width) {
    gather_rows(out, ldo, x, ldx, indices, count, width);
}

extern "C" __global__ void gather_rows_bf16(bf16* out, int ldo, const bf16* x, int ldx, const int* indices,
    int count, int width) {
    gather_rows(out, ldo, x, ldx, indices, count, width);
}

// dx[indices[i]] = d[i]. `indices` must not name a row twice.
template <typename T>
__device__ void scatter_rows(T* dx, int ldx, const T* d, int ldd, const int* indices, int count, int width) {
    const int row = blockIdx.x;
    if (row >= count) return;
    copy_row(dx + static_cast<u64>(indices[row]) * ldx, d + static_cast<u64>(row) * ldd, width);
}

extern "C" __global__ void scatter_rows_f32(float* dx, int ldx, const float* d, int ldd, const int* indices,
    int count, int width) {
    scatter_rows(dx, ldx, d, ldd, indices, count, width);
}

extern "C" __global__ void scatter_rows_bf16(bf16* dx, int ldx, const bf16* d, int ldd, const int* indices,
    int count, int width) {
    scatter_rows(dx, ldx, d, ldd, indices, count, width);
}

// One matrix of the adapter. `from`: offset in the flat list of parameters, in elements. `to`: address of its
// copy in device memory. The layout is written by `copy_table` in src/model/cuda/frozen_layout.rs.
struct Block {
    u64 from;
    u64 to;
    int rows;
    int cols;
    int ld;
    int pad;
};

template <typename T> __device__ void spread(const Block* blocks, const float* params) {
    const Block block = blocks[blockIdx.x];
    T* to = reinterpret_cast<T*>(block.to);
    const int count = block.rows * block.cols;
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < count; i += gridDim.y * blockDim.x) {
        const int row = i / block.cols, col = i % block.cols;
        to[static_cast<u64>(row) * block.ld + col] = narrow<T>(params[block.from + i]);
    }
}

extern "C" __global__ void spread_f32(const Block* blocks, const float* params) {
    spread<float>(blocks, params);
}

extern "C" __global__ void spread_bf16(const Block* blocks, const float* params) {
    spread<bf16>(blocks, params);
}

// Adds sum(words[i] * (2 * (i + salt) + 1)) to `sum`: every factor is odd, so one changed bit changes the
// sum. The sum is of integers, so the order of blocks does not matter.
extern "C" __global__ void checksum(u64* sum, const unsigned* words, u64 count, u64 salt) {
    SHARED_MEMORY(u64, scratch);
    u64 part = 0;
    const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        part += words[i] * (2 * (i + salt) + 1);
    }
    const u64 total = block_sum(part, scratch);
    if (threadIdx.x == 0) atomicAdd(sum, total);
}

extern "C" __global__ void cast_bf16(bf16* out, const float* in, u64 count) {
    const u64 stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
        out[i] = to_bf16(in[i]);
    }
}
