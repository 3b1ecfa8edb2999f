// FlashAttention (Dao 2023) on tensor cores: causal, grouped queries, packed sequences. Computes the same as
// `attention.cu`, for bf16 and the usual head sizes. A block processes 64 rows, each of its four warps 16 of
// them. Scores stay in registers. There are no atomics, so sums have a fixed order.
//
// Tiles in shared memory have 8 columns of padding, so that the 8 rows of a fragment are in 32 different
// banks.
#include "device.h"

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.693147180559945309417f;

template <int D> constexpr int STRIDE = D + 8;

// A block's sequence (first row, number of rows), the query heads for each kv head, and the first column of
// its query, key and value within a row of `qkv`.
struct BlockPosition {
    int first, length;
    int group, query, key, value;
};

template <int D>
__device__ __forceinline__ BlockPosition block_position(const int* starts, int heads, int kv_heads,
    int kv_head) {
    const int first = starts[blockIdx.z];
    BlockPosition w;
    w.first = first;
    w.length = starts[blockIdx.z + 1] - first;
    w.group = heads / kv_heads;
    w.query = blockIdx.y * D;
    w.key = (heads + kv_head) * D;
    w.value = w.key + kv_heads * D;
    return w;
}

// Begins to copy ROWS rows, starting at `row`, into a tile. Rows past the end of the sequence become zeros.
// Copies 16 bytes at a time if the addresses are aligned.
template <int D, int ROWS = TILE>
__device__ __forceinline__ void begin_tile(bf16* tile, const bf16* from, int ld, int row, int length) {
    constexpr int VECTORS = D / 8, STEP = WARPS * 32 / VECTORS;
    const bool vectors = ((reinterpret_cast<u64>(from) | static_cast<u64>(ld) * sizeof(bf16)) & 15) == 0;
    const int column = threadIdx.x % VECTORS * 8, first = threadIdx.x / VECTORS;
    const bf16* source = from + static_cast<u64>(row + first) * ld + column;
    bf16* to = tile + first * STRIDE<D> + column;
#pragma unroll 1
    for (int sequence_row = row + first; sequence_row < row + ROWS; sequence_row += STEP) {
        const bool in_range = sequence_row < length;
        if (vectors) {
            begin_copy(to, in_range ? source : from, in_range);
        } else {
#pragma unroll 1
            for (int c = 0; c < 8; c++) to[c].bits = in_range ? source[c].bits : 0;
        }
        source += static_cast<u64>(STEP) * ld;
        to += STEP * STRIDE<D>;
    }
}

__device__ __forceinline__ void wait_for_tiles() {
    wait_copies();
    __syncthreads();
}

template <int D> __device__ __forceinline__ void clear(float (&sum)[D / 8][4]) {
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum[n][i] = 0.0f;
    }
}

// Loads the warp's 16 rows of a tile as left factors.
template <int D>
__device__ __forceinline__ void load_rows(unsigned (&rows)[D / 16][4], const bf16* tile, int warp, int lane) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        load_fragments<true>(rows[k], tile + warp * 16 * STRIDE<D> + k * 16, STRIDE<D>, lane);
    }
}

// d = the warp's rows times 16 rows of a tile: [16, D] * [16, D]^T.
template <int D>
__device__ __forceinline__ void multiply_rows(float (&d)[2][4], const unsigned (&rows)[D / 16][4],
    const bf16* tile, int lane) {
    clear<16>(d);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned b[4];
        load_fragments<false>(b, tile + k * 16, STRIDE<D>, lane);
        multiply_add(d[0], rows[k], b[0], b[1]);
        multiply_add(d[1], rows[k], b[2], b[3]);
    }
}

// As `multiply_rows`, with the left factor in shared memory.
template <int D>
__device__ __forceinline__ void multiply_tiles(float (&d)[2][4], const bf16* left, const bf16* right,
    int lane) {
    clear<16>(d);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned a[4], b[4];
        load_fragments<true>(a, left + k * 16, STRIDE<D>, lane);
        load_fragments<false>(b, right + k * 16, STRIDE<D>, lane);
        multiply_add(d[0], a, b[0], b[1]);
        multiply_add(d[1], a, b[2], b[3]);
    }
}

// sum += weights * 16 rows of a tile: [16, 16] * [16, D].
template <int D>
__device__ __forceinline__ void add_weighted_rows(float (&sum)[D / 8][4], const unsigned (&weights)[4],
    const bf16* tile, int lane) {
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        unsigned b[4];
        load_transposed(b, tile + n * 16, STRIDE<D>, lane);
        multiply_add(sum[2 * n], weights, b[0], b[1]);
        multiply_add(sum[2 * n + 1], weights, b[2], b[3]);
    }
}

// Converts two adjacent products to a left factor. Their fragments have the same layout and differ in
// precision only.
__device__ __forceinline__ void to_left_factor(unsigned (&a)[4], const float (&d)[2][4]) {
    a[0] = pack(d[0][0], d[0][1]);
    a[1] = pack(d[0][2], d[0][3]);
    a[2] = pack(d[1][0], d[1][1]);
    a[3] = pack(d[1][2], d[1][3]);
}

// Writes the warp's 16 rows to global memory. Goes through the warp's part of a tile that is no longer read,
// so that it can write 16 bytes at a time instead of pairs. `low` scales rows 0 to 7 of the fragment, `high`
// rows 8 to 15.
template <int D>
__device__ __forceinline__ void store_rows(bf16* to, int ld, int row, int length,
    const float (&sum)[D / 8][4], float low, float high, bf16* tile, int warp, int lane) {
    constexpr int VECTORS = D / 8;
    bf16* warp_tile = tile + warp * 16 * STRIDE<D>;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        bf16* pair = warp_tile + lane / 4 * STRIDE<D> + n * 8 + lane % 4 * 2;
        *reinterpret_cast<unsigned*>(pair) = pack(sum[n][0] * low, sum[n][1] * low);
        *reinterpret_cast<unsigned*>(pair + 8 * STRIDE<D>) = pack(sum[n][2] * high, sum[n][3] * high);
    }
    __syncwarp();
    const bool vectors = ((reinterpret_cast<u64>(to) | static_cast<u64>(ld) * sizeof(bf16)) & 15) == 0;
    for (int i = lane; i < 16 * VECTORS; i += 32) {
        const int tile_row = i / VECTORS, column = i % VECTORS * 8, target = row + warp * 16 + tile_row;
        if (target >= length) continue;
        const bf16* source = warp_tile + tile_row * STRIDE<D> + column;
        bf16* destination = to + static_cast<u64>(target) * ld + column;
        if (vectors) {
            *reinterpret_cast<uint4*>(destination) = *reinterpret_cast<const uint4*>(source);
        } else {
#pragma unroll 1
            for (int c = 0; c < 8; c++) destination[c] = source[c];
        }
    }
    __syncwarp();
}

// Running maximum and sum of softmax for a lane's two rows, lane / 4 and lane / 4 + 8.
struct Softmax {
    float running_max[2], sum[2];
};

// Reduces over the four lanes that share a row; `row_sum` does the same for sums.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Replaces base-2 scores by softmax weights (not yet divided by their sum). If the maximum grows, rescales
// the sums so far.
template <int D>
__device__ __forceinline__ void update_softmax(float (&scores)[TILE / 16][2][4], Softmax& softmax,
    float (&acc)[D / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float new_max = softmax.running_max[half];
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            const float(&score)[4] = scores[n / 2][n % 2];
            new_max = fmaxf(new_max, fmaxf(score[2 * half], score[2 * half + 1]));
        }
        new_max = row_max(new_max);
        const float rescale = exp2f(softmax.running_max[half] - new_max);
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            float(&score)[4] = scores[n / 2][n % 2];
            score[2 * half] = exp2f(score[2 * half] - new_max);
            score[2 * half + 1] = exp2f(score[2 * half + 1] - new_max);
            sum += score[2 * half] + score[2 * half + 1];
        }
        softmax.running_max[half] = new_max;
        softmax.sum[half] = softmax.sum[half] * rescale + sum;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            acc[n][2 * half] *= rescale;
            acc[n][2 * half + 1] *= rescale;
        }
    }
}

// Shared: a tile of keys (first used for the queries) and a tile of values. The values are copied while the
// scores are computed, and the next keys are copied while the values are summed.
template <int D>
__device__ __forceinline__ void flash(bf16* out, int ldo, float* lse, const bf16* qkv, int ldqkv,
    const int* starts, int rows, int heads, int kv_heads, float scale) {
    SHARED_MEMORY(bf16, keys);
    bf16* values = keys + TILE * STRIDE<D>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, row = blockIdx.x * TILE;
    const BlockPosition w = block_position<D>(starts, heads, kv_heads, head / (heads / kv_heads));
    if (row >= w.length) return;
    const bf16* base = qkv + static_cast<u64>(w.first) * ldqkv;
    begin_tile<D>(keys, base + w.query, ldqkv, row, w.length);
    wait_for_tiles();
    unsigned query[D / 16][4];
    load_rows<D>(query, keys, warp, lane);
    __syncthreads();
    begin_tile<D>(keys, base + w.key, ldqkv, 0, w.length);
    const int lane_row = warp * 16 + lane / 4;
    Softmax softmax = {{MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}};
    float acc[D / 8][4];
    clear<D>(acc);
    for (int from = 0; from <= row; from += TILE) {
        wait_for_tiles();
        begin_tile<D>(values, base + w.value, ldqkv, from, w.length);
        float scores[TILE / 16][2][4];
#pragma unroll
        for (int part = 0; part < TILE / 16; part++) {
            multiply_rows<D>(scores[part], query, keys + part * 16 * STRIDE<D>, lane);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float& score = scores[part][i / 4][i % 4];
                const int key = part * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
                // Only the last tile has keys at later positions than a query.
                const bool is_later = from == row && key > lane_row + i % 4 / 2 * 8;
                score = is_later ? MINUS_INFINITY : score * (scale * LOG2_E);
            }
        }
        wait_for_tiles();
        if (from < row) begin_tile<D>(keys, base + w.key, ldqkv, from + TILE, w.length);
        update_softmax<D>(scores, softmax, acc);
#pragma unroll
        for (int part = 0; part < TILE / 16; part++) {
            unsigned weights[4];
            to_left_factor(weights, scores[part]);
            add_weighted_rows<D>(acc, weights, values + part * 16 * STRIDE<D>, lane);
        }
    }
    const float low = row_sum(softmax.sum[0]), high = row_sum(softmax.sum[1]);
    float* head_lse = lse + static_cast<u64>(head) * rows + w.first + row;
    if (lane % 4 == 0 && row + lane_row < w.length) {
        head_lse[lane_row] = softmax.running_max[0] * LN_2 + logf(low);
    }
    if (lane % 4 == 0 && row + lane_row + 8 < w.length) {
        head_lse[lane_row + 8] = softmax.running_max[1] * LN_2 + logf(high);
    }
    // The tile of keys can be reused: all warps have passed the barrier after their last scores.
    store_rows<D>(out + static_cast<u64>(w.first) * ldo + head * D, ldo, row, w.length, acc, 1.0f / low,
        1.0f / high, keys, warp, lane);
}

// Turns the two products of one score, q k^T (in `p`) and dout v^T (in `ds`), into the softmax weight and the
// gradient of the score. `lse` is base 2. Both results are zero if `is_visible` is false, that is, if the key
// is at a later position.
__device__ __forceinline__ void score_gradient(float& p, float& ds, float scale, float lse, float delta,
    bool is_visible) {
    p = is_visible ? exp2f(p * (scale * LOG2_E) - lse) : 0.0f;
    ds = p * (ds - delta);
}

// Shared: a tile of keys (first used for the queries) and a tile of values (first used for the gradient of
// the output).
template <int D>
__device__ __forceinline__ void flash_backward_q(bf16* dqkv, int ldd, const bf16* qkv, int ldqkv,
    const bf16* dout, int lddo, const float* lse, const float* delta, const int* starts, int rows, int heads,
    int kv_heads, float scale) {
    SHARED_MEMORY(bf16, keys);
    bf16* values = keys + TILE * STRIDE<D>;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, row = blockIdx.x * TILE;
    const BlockPosition w = block_position<D>(starts, heads, kv_heads, head / (heads / kv_heads));
    if (row >= w.length) return;
    const bf16* base = qkv + static_cast<u64>(w.first) * ldqkv;
    begin_tile<D>(keys, base + w.query, ldqkv, row, w.length);
    begin_tile<D>(values, dout + static_cast<u64>(w.first) * lddo + head * D, lddo, row, w.length);
    wait_for_tiles();
    unsigned query[D / 16][4], dout_rows[D / 16][4];
    load_rows<D>(query, keys, warp, lane);
    load_rows<D>(dout_rows, values, warp, lane);
    const int lane_row = row + warp * 16 + lane / 4;
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query_row = lane_row + half * 8;
        const u64 head_row = static_cast<u64>(head) * rows + w.first + query_row;
        row_lse[half] = query_row < w.length ? lse[head_row] * LOG2_E : 0.0f;
        row_delta[half] = query_row < w.length ? delta[head_row] : 0.0f;
    }
    float acc[D / 8][4];
    clear<D>(acc);
    for (int from = 0; from <= row; from += TILE) {
        __syncthreads();
        begin_tile<D>(keys, base + w.key, ldqkv, from, w.length);
        begin_tile<D>(values, base + w.value, ldqkv, from, w.length);
        wait_for_tiles();
#pragma unroll 1
        for (int part = 0; part < TILE; part += 16) {
            // All of these keys are at later positions than all of the warp's queries.
            if (from + part > row + warp * 16) break;
            float p[2][4], ds[2][4];
            multiply_rows<D>(p, query, keys + part * STRIDE<D>, lane);
            multiply_rows<D>(ds, dout_rows, values + part * STRIDE<D>, lane);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int half = i % 4 / 2, key = from + part + i / 4 * 8 + lane % 4 * 2 + i % 2;
                score_gradient(p[i / 4][i % 4], ds[i / 4][i % 4], scale, row_lse[half], row_delta[half],
                    key <= lane_row + half * 8);
            }
            unsigned weights[4];
            to_left_factor(weights, ds);
            add_weighted_rows<D>(acc, weights, keys + part * STRIDE<D>, lane);
        }
    }
    __syncthreads();
    store_rows<D>(dqkv + static_cast<u64>(w.first) * ldd + w.query, ldd, row, w.length, acc, scale, scale,
        keys, warp, lane);
}

// A block processes 64 keys and their values. It loops over the query heads of its group, then over the tiles
// of queries. Shared: 64 rows for queries (first used for the keys), 64 rows for the values, then lse and
// delta of the queries. Small heads keep the values in registers, and the gradient of the output reuses the
// rows of the values. Large heads have too few registers for that: there queries and gradient share the first
// 64 rows, 32 rows each.
template <int D>
__device__ __forceinline__ void flash_backward_kv(bf16* dqkv, int ldd, const bf16* qkv, int ldqkv,
    const bf16* dout, int lddo, const float* lse, const float* delta, const int* starts, int rows, int heads,
    int kv_heads, float scale) {
    constexpr bool LARGE = D > 64;
    constexpr int QUERIES = LARGE ? TILE / 2 : TILE;
    SHARED_MEMORY(bf16, queries);
    bf16* douts = queries + QUERIES * STRIDE<D>;
    bf16* values = queries + TILE * STRIDE<D>;
    float* lses = reinterpret_cast<float*>(values + TILE * STRIDE<D>);
    float* deltas = lses + TILE;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y, row = blockIdx.x * TILE;
    const BlockPosition w = block_position<D>(starts, heads, kv_heads, kv_head);
    if (row >= w.length) return;
    const bf16* base = qkv + static_cast<u64>(w.first) * ldqkv;
    begin_tile<D>(queries, base + w.key, ldqkv, row, w.length);
    begin_tile<D>(values, base + w.value, ldqkv, row, w.length);
    wait_for_tiles();
    unsigned key[D / 16][4], value[D / 16][4];
    load_rows<D>(key, queries, warp, lane);
    if constexpr (!LARGE) load_rows<D>(value, values, warp, lane);
    const int lane_row = row + warp * 16 + lane / 4;
    float dk[D / 8][4], dv[D / 8][4];
    clear<D>(dk);
    clear<D>(dv);
    for (int head = kv_head * w.group; head < (kv_head + 1) * w.group; head++) {
        const u64 head_offset = static_cast<u64>(head) * rows + w.first;
        for (int from = row; from < w.length; from += QUERIES) {
            __syncthreads();
            begin_tile<D, QUERIES>(queries, base + head * D, ldqkv, from, w.length);
            begin_tile<D, QUERIES>(douts, dout + static_cast<u64>(w.first) * lddo + head * D, lddo, from,
                w.length);
            if (threadIdx.x < QUERIES) {
                const int query_row = from + threadIdx.x;
                lses[threadIdx.x] = query_row < w.length ? lse[head_offset + query_row] * LOG2_E : 0.0f;
                deltas[threadIdx.x] = query_row < w.length ? delta[head_offset + query_row] : 0.0f;
            }
            wait_for_tiles();
#pragma unroll 1
            for (int part = 0; part < QUERIES; part += 16) {
                // All of these queries are at earlier positions than all of the warp's keys.
                if (from + part < row + warp * 16) continue;
                // The scores are transposed: a row is a key, a column is a query.
                float p[2][4], ds[2][4];
                multiply_rows<D>(p, key, queries + part * STRIDE<D>, lane);
                if constexpr (LARGE) {
                    multiply_tiles<D>(ds, values + warp * 16 * STRIDE<D>, douts + part * STRIDE<D>, lane);
                } else {
                    multiply_rows<D>(ds, value, douts + part * STRIDE<D>, lane);
                }
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int query = part + i / 4 * 8 + lane % 4 * 2 + i % 2;
                    score_gradient(p[i / 4][i % 4], ds[i / 4][i % 4], scale, lses[query], deltas[query],
                        lane_row + i % 4 / 2 * 8 <= from + query);
                }
                unsigned weights[4];
                to_left_factor(weights, p);
                add_weighted_rows<D>(dv, weights, douts + part * STRIDE<D>, lane);
                to_left_factor(weights, ds);
                add_weighted_rows<D>(dk, weights, queries + part * STRIDE<D>, lane);
            }
        }
    }
    __syncthreads();
    bf16* to = dqkv + static_cast<u64>(w.first) * ldd;
    store_rows<D>(to + w.key, ldd, row, w.length, dk, scale, scale, queries, warp, lane);
    store_rows<D>(to + w.value, ldd, row, w.length, dv, 1.0f, 1.0f, values, warp, lane);
}

// The entry points. Each has the name of the plain kernel with the head size behind it, and the parameters of
// the plain kernel, so that both are launched alike. The head size is a constant: `head_dim` is not read.
#define FORWARD_PARAMETERS                                                                                  \
    bf16 *out, int ldo, float *lse, const bf16 *qkv, int ldqkv, const int *starts, int rows, int heads,      \
        int kv_heads, int head_dim, float scale
#define FORWARD_ARGUMENTS out, ldo, lse, qkv, ldqkv, starts, rows, heads, kv_heads, scale
#define BACKWARD_PARAMETERS                                                                                 \
    bf16 *dqkv, int ldd, const bf16 *qkv, int ldqkv, const bf16 *dout, int lddo, const float *lse,           \
        const float *delta, const int *starts, int rows, int heads, int kv_heads, int head_dim, float scale
#define BACKWARD_ARGUMENTS dqkv, ldd, qkv, ldqkv, dout, lddo, lse, delta, starts, rows, heads, kv_heads, scale

// Defines the kernel NAME ## D, which calls FUNCTION<D>. SIGNATURE is FORWARD or BACKWARD; launch bounds come
// last. The tests and the simulated GPU's build script find kernels by the lines that begin with `ENTRY(`.
#define ENTRY(NAME, D, FUNCTION, SIGNATURE, ...)                                                            \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) NAME##D(SIGNATURE##_PARAMETERS) {              \
        FUNCTION<D>(SIGNATURE##_ARGUMENTS);                                                                 \
    }

ENTRY(attention_bf16_d, 16, flash, FORWARD, 128)
ENTRY(attention_bf16_d, 32, flash, FORWARD, 128)
ENTRY(attention_bf16_d, 64, flash, FORWARD, 128)
ENTRY(attention_bf16_d, 128, flash, FORWARD, 128)
ENTRY(attention_backward_q_bf16_d, 16, flash_backward_q, BACKWARD, 128)
ENTRY(attention_backward_q_bf16_d, 32, flash_backward_q, BACKWARD, 128)
ENTRY(attention_backward_q_bf16_d, 64, flash_backward_q, BACKWARD, 128)
ENTRY(attention_backward_q_bf16_d, 128, flash_backward_q, BACKWARD, 128)
ENTRY(attention_backward_kv_bf16_d, 16, flash_backward_kv, BACKWARD, 128, 6)
ENTRY(attention_backward_kv_bf16_d, 32, flash_backward_kv, BACKWARD, 128)
ENTRY(attention_backward_kv_bf16_d, 64, flash_backward_kv, BACKWARD, 128)
ENTRY(attention_backward_kv_bf16_d, 128, flash_backward_kv, BACKWARD, 128)
