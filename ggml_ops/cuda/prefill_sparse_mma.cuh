// Tensor-core products of 8.0 and up, asynchronous copies and barriers in shared memory, as prefill_sparse.cu uses them.
#pragma once

#include "launch.cuh"
#include "numbers.cuh"

// Rows of D halves in shared memory lie in 16-byte pieces; piece c of row r at place c ^ key(r), so that 8 rows at one column meet 8 different banks.
template <int D> static __host__ __device__ constexpr int hs_piece_key(int row) { return D % 64 == 0 ? row & 7 : (row >> 1) & 3; }
template <int D> static __host__ __device__ constexpr int hs_piece_at(int row, int piece) { return row * D * 2 + ((piece ^ hs_piece_key<D>(row)) * 16); }

// Values that are the same in all lanes, in a form in which the compiler knows it.
static __device__ __forceinline__ bool hs_uniform(bool x) { return __all_sync(0xffffffff, x); }
static __device__ __forceinline__ int hs_uniform_int(int x) { return __reduce_max_sync(0xffffffff, x); }

// What is computed from x from here on is computed here, not kept in registers from before a loop.
static __device__ __forceinline__ void hs_here(int & x) { asm volatile("" : "+r"(x)); }

static __device__ __forceinline__ unsigned hs_shared(const void * p) { return (unsigned) __cvta_generic_to_shared(p); }

// Four 8x8 matrices of halves; lane i gives the address of row i % 8 of matrix i / 8.
static __device__ __forceinline__ void hs_ldmatrix(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// Nothing if `on` (the same in all lanes) is 0: r is then undefined.
static __device__ __forceinline__ void hs_ldmatrix_if(unsigned (&r)[4], unsigned at, int on) {
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.s32 p, %5, 0;\n\t@p ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n\t}"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at), "r"(on) : "memory");
}

static __device__ __forceinline__ void hs_ldmatrix_t(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}

// c += a b, 16x8x16; nothing if `on` (the same in all lanes) is 0.
static __device__ __forceinline__ void hs_mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int on) {
    asm("{\n\t.reg .pred p;\n\tsetp.ne.s32 p, %10, 0;\n\t"
        "@p mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n\t}"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(on));
}

// 16 bytes from global to shared memory; zeros (and no read) if size is 0.
static __device__ __forceinline__ void hs_copy16(unsigned dst, const void * src, int size) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)), "r"(size) : "memory");
}

static __device__ __forceinline__ void hs_store16(unsigned dst, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

static __device__ __forceinline__ void hs_barrier_init(unsigned at, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}

// Two arrivals of this thread: one now, for its stores, and one when its copies are done.
static __device__ __forceinline__ void hs_barrier_arrive(unsigned at) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at) : "memory");
    asm volatile("{\n\t.reg .b64 s;\n\tmbarrier.arrive.shared.b64 s, [%0];\n\t}" ::"r"(at) : "memory");
}

static __device__ __forceinline__ void hs_barrier_wait(unsigned at, unsigned parity) {
    unsigned done;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}" : "=r"(done) : "r"(at), "r"(parity) : "memory");
#else
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}" : "=r"(done) : "r"(at), "r"(parity) : "memory");
#endif
    } while (!hs_uniform(done != 0)); // by the whole warp: products behind a loop that lanes leave singly would each be preceded by a synchronisation
}
