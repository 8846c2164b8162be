// The instructions that the kernel of few queries is made of: copies into shared memory that nothing waits for, matrices of 8 x 8 halves, products of them.
#pragma once

#include "launch.cuh"

template <int N> static __device__ __forceinline__ void copy_async(unsigned to, const char * from, bool real) {
    const int bytes = real ? N : 0; // the rest is zeros
    if constexpr (N == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(bytes), "n"(N) : "memory");
    }
}
static __device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> static __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

static __device__ __forceinline__ void prefetch(const void * at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

static __device__ __forceinline__ void load_matrices(unsigned (&x)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
static __device__ __forceinline__ void load_matrices_trans(unsigned (&x)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
static __device__ __forceinline__ unsigned transposed(unsigned x) {
    unsigned y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
static __device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ unsigned pack(float x, float y) {
    const half2 h = __floats2half2_rn(x, y);
    return *(const unsigned *) &h;
}
static __device__ __forceinline__ float clamp_f16(float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); }

// A kernel that is launched early runs beside the one before it in the stream from when all thread blocks of that one have begun (let_next_begin), and sees
// its results only after wait_for_previous, which waits for its end. Nothing on devices before 9.0, where launches are in order.
#define HS_CC_EARLY_LAUNCH 900
static __device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= HS_CC_EARLY_LAUNCH
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
static __device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= HS_CC_EARLY_LAUNCH
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
