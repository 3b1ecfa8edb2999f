// Types and block-wide operations that all kernels share. NVRTC compiles this source for a GPU, and a C++
// compiler (with SIMGPU_HOST defined) for the simulated GPU.
#pragma once

#ifdef SIMGPU_HOST
#define SHARED_MEMORY(T, name) T* name = reinterpret_cast<T*>(simgpu_shared())
#else
extern __shared__ __align__(16) unsigned char shared_memory[];
#define SHARED_MEMORY(T, name) T* name = reinterpret_cast<T*>(shared_memory)
#endif

typedef unsigned long long u64;

#define MINUS_INFINITY __uint_as_float(0xff800000u)

// The upper half of a float. Defined here so that NVRTC needs no NVIDIA header.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

// Rounds to nearest even; NaN stays NaN.
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
#ifdef SIMGPU_HOST
    const unsigned bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    y.bits = static_cast<unsigned short>(nan ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}

// Two bf16 values in one register, the first in the lower half.
__device__ __forceinline__ unsigned pack(float low, float high) {
#ifdef SIMGPU_HOST
    return to_bf16(low).bits | static_cast<unsigned>(to_bf16(high).bits) << 16;
#else
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) { return to_bf16(x); }

// Rows of a tile of queries or keys, and warps of a block, in every attention kernel.
constexpr int TILE = 64;
constexpr int WARPS = 4;

// Tests the bits, so that fast-math flags can't remove the test.
__device__ __forceinline__ bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// Sum over the block in a fixed order; every thread gets the same result. `scratch` holds a value for each
// thread. The number of threads of the block must be a power of two.
template <typename A> __device__ __forceinline__ A block_sum(A value, A* scratch) {
    const int thread = threadIdx.x;
    __syncthreads();
    scratch[thread] = value;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) scratch[thread] += scratch[thread + half];
    }
    __syncthreads();
    return scratch[0];
}

// N floats for calculation. In memory they are one element (N = 1) or 16 bytes.
template <int N> struct Floats {
    float values[N];
};

template <int N> __device__ __forceinline__ Floats<N> load(const float* p) {
    if constexpr (N == 1) {
        return {p[0]};
    } else {
        static_assert(N == 4, "16 bytes");
        const float4 v = *reinterpret_cast<const float4*>(p);
        return {v.x, v.y, v.z, v.w};
    }
}

template <int N> __device__ __forceinline__ Floats<N> load(const bf16* p) {
    if constexpr (N == 1) {
        return {widen(p[0])};
    } else {
        static_assert(N == 8, "16 bytes");
        const uint4 v = *reinterpret_cast<const uint4*>(p);
        const unsigned pairs[4] = {v.x, v.y, v.z, v.w};
        Floats<N> x;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x.values[2 * i] = __uint_as_float(pairs[i] << 16);
            x.values[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
        }
        return x;
    }
}

template <int N> __device__ __forceinline__ void store(float* p, const Floats<N>& x) {
    if constexpr (N == 1) {
        p[0] = x.values[0];
    } else {
        *reinterpret_cast<float4*>(p) = make_float4(x.values[0], x.values[1], x.values[2], x.values[3]);
    }
}

template <int N> __device__ __forceinline__ void store(bf16* p, const Floats<N>& x) {
    if constexpr (N == 1) {
        p[0] = to_bf16(x.values[0]);
    } else {
        *reinterpret_cast<uint4*>(p) =
            make_uint4(pack(x.values[0], x.values[1]), pack(x.values[2], x.values[3]),
                pack(x.values[4], x.values[5]), pack(x.values[6], x.values[7]));
    }
}

template <typename... P>
__device__ __forceinline__ bool aligned(const P*... p) {
    return ((reinterpret_cast<u64>(p) | ...) & 15) == 0;
}

// Number of elements of a row that are processed 16 bytes at a time; the rest is processed one by one.
// `aligned`: all rows concerned begin at multiples of 16 bytes.
template <typename T> constexpr int VECTOR = 16 / sizeof(T);
template <typename T>
__device__ __forceinline__ int in_vectors(int width, bool aligned) {
    return aligned ? width / VECTOR<T> * VECTOR<T> : 0;
}

// Loops over a thread's share of [from, to) when each thread processes N elements at a time.
#define FOR_SHARE(i, N, from, to) for (int i = (from) + threadIdx.x * N; i < (to); i += blockDim.x * N)

// Tensor cores: d += a * b for a warp, [16, 16] * [16, 8]. Fragments are those of mma.m16n8k16 in the PTX
// ISA.
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0,
    unsigned b1) {
#ifdef SIMGPU_HOST
    const unsigned b[2] = {b0, b1};
    simgpu_mma_m16n8k16_bf16(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

#ifndef SIMGPU_HOST
__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
#endif

// Loads four 8 x 8 matrices from shared memory, [16, 16] in total. With DOWN_FIRST, matrix 1 is below matrix
// 0 and matrices 2 and 3 are to their right: the layout of a left factor. Otherwise matrix 1 is to the right
// of matrix 0 and matrices 2 and 3 are below: two right factors whose columns are stored as rows.
template <bool DOWN_FIRST>
__device__ __forceinline__ void load_fragments(unsigned (&r)[4], const bf16* tile, int stride, int lane) {
#ifdef SIMGPU_HOST
    for (int m = 0; m < 4; m++) {
        const int below = DOWN_FIRST ? m % 2 : m / 2, right = DOWN_FIRST ? m / 2 : m % 2;
        memcpy(&r[m], tile + (below * 8 + lane / 4) * stride + right * 8 + lane % 4 * 2, sizeof r[m]);
    }
#else
    const int below = DOWN_FIRST ? lane / 8 % 2 : lane / 16, right = DOWN_FIRST ? lane / 16 : lane / 8 % 2;
    const unsigned from = shared_address(tile + (below * 8 + lane % 8) * stride + right * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
#endif
}

// Loads the same four matrices, each transposed: for a right factor that is stored row-major.
__device__ __forceinline__ void load_transposed(unsigned (&r)[4], const bf16* tile, int stride, int lane) {
#ifdef SIMGPU_HOST
    for (int m = 0; m < 4; m++) {
        const bf16* element = tile + (m % 2 * 8 + lane % 4 * 2) * stride + m / 2 * 8 + lane / 4;
        r[m] = element[0].bits | static_cast<unsigned>(element[stride].bits) << 16;
    }
#else
    const unsigned from = shared_address(tile + (lane % 16) * stride + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
#endif
}

// Begins an asynchronous copy of 16 bytes into shared memory; writes zeros if `in_range` is false. Both
// addresses must be multiples of 16. `wait_copies` waits for the copies of its own thread only.
__device__ __forceinline__ void begin_copy(void* to, const void* from, bool in_range) {
#ifdef SIMGPU_HOST
    if (in_range) memcpy(to, from, 16); else memset(to, 0, 16);
#else
    const int bytes = in_range ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ void wait_copies() {
#ifndef SIMGPU_HOST
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
