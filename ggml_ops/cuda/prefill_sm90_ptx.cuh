// Hopper's instructions as functions: mbarrier, bulk tensor copies, wgmma. No ggml here: a test program can include it alone.
//
// Operands in shared memory lie as boxes of 128-byte rows (64 halves), each box 1024-byte aligned, in the 128-byte swizzle: the 16-byte chunk c of
// row r stands at chunk c ^ (r % 8). A matrix descriptor holds, in units of 16 bytes: the start address (bits 0-13), the leading byte offset (16-29),
// the stride byte offset (32-45), and the swizzle mode (62-63: 1 = 128 bytes). PTX ISA, "Matrix descriptor format" and "Strides" of wgmma:
//   K-major (Q, and K as B: a row of the box is a query or a key): stride = 1024, from 8 rows to the next 8; the leading offset is not used (1).
//     A step of 16 along K is 32 bytes within the box's row: start + 2. After 4 steps the next box.
//   MN-major (V as B, transposed: a row of the box is a key = an index of K, 64 channels: of N): leading = from 64 channels to the next 64 (a
//     column of boxes); stride = 1024, from 8 keys to the next 8. A step of 16 along K is 16 rows = 2048 bytes: start + 128.
#pragma once

#include <cuda.h>
#include <cuda_fp16.h>
#include <stdint.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HS_SM90A
#endif

static __host__ __device__ constexpr uint64_t hs_desc(int leading, int stride) {
    return (uint64_t) (leading >> 4) << 16 | (uint64_t) (stride >> 4) << 32 | (uint64_t) 1 << 62;
}

#ifdef HS_SM90A

static __device__ __forceinline__ uint32_t hs_smem(const void * p) { return (uint32_t) __cvta_generic_to_shared(p); }
static __device__ __forceinline__ uint64_t hs_desc_at(uint64_t desc, uint32_t address) { return desc | (address & 0x3ffff) >> 4; }

// --- barriers ---

static __device__ __forceinline__ void hs_mbar_init(uint64_t * bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(hs_smem(bar)), "r"(count) : "memory");
}
static __device__ __forceinline__ void hs_mbar_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
static __device__ __forceinline__ void hs_mbar_arrive(uint64_t * bar) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}\n" :: "r"(hs_smem(bar)) : "memory");
}
static __device__ __forceinline__ void hs_mbar_expect(uint64_t * bar, int bytes) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}\n" :: "r"(hs_smem(bar)), "r"(bytes) : "memory");
}
// Until the phase of this parity is over: parity 0 of a fresh barrier waits for its first completion, parity 1 passes.
static __device__ __forceinline__ void hs_mbar_wait(uint64_t * bar, int parity) {
    asm volatile("{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}\n"
        :: "r"(hs_smem(bar)), "r"(parity) : "memory");
}
static __device__ __forceinline__ void hs_bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
static __device__ __forceinline__ void hs_bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
static __device__ __forceinline__ void hs_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int N> static __device__ __forceinline__ void hs_regs_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> static __device__ __forceinline__ void hs_regs_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }

// --- a box of a 4-dimensional tensor map -> shared memory; completes its bytes on the barrier ---

static __device__ __forceinline__ void hs_tma_load(uint32_t dst, const CUtensorMap * map, uint64_t * bar, int x, int row, int head, int page) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
        :: "r"(dst), "l"(map), "r"(hs_smem(bar)), "r"(x), "r"(row), "r"(head), "r"(page) : "memory");
}

// --- wgmma ---

static __device__ __forceinline__ void hs_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void hs_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> static __device__ __forceinline__ void hs_wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }
// Keeps the compiler from moving accesses of accumulators across: they belong to the tensor cores until the wait.
template <int N> static __device__ __forceinline__ void hs_wgmma_pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        asm volatile("" : "+f"(d[i]) :: "memory");
    }
}

template <int M, int N> static __device__ __forceinline__ void hs_wgmma_pin(float (&d)[M][N]) {
#pragma unroll
    for (int i = 0; i < M; i++) {
        hs_wgmma_pin(d[i]);
    }
}

#define HS_F4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define HS_F16(d, i) HS_F4(d, i), HS_F4(d, (i) + 4), HS_F4(d, (i) + 8), HS_F4(d, (i) + 12)
#define HS_F32(d) HS_F16(d, 0), HS_F16(d, 16)
#define HS_F64(d) HS_F16(d, 0), HS_F16(d, 16), HS_F16(d, 32), HS_F16(d, 48)

// hs_wgmma: d [64 x N] = (add ? d : 0) + a [64 x 16] b [16 x N], both from shared memory, K-major, or a in registers. hs_wgmma_t: d += a b, a in
// registers, b MN-major.
// Thread's part: rows r = 16 * warp + lane / 4 and r + 8. Accumulators: d[4 i + 0, 1] = row r, columns 8 i + 2 (lane % 4) + 0, 1; d[4 i + 2, 3] = the
// same of row r + 8. a in registers: pairs of halves (row r, columns 2 (lane % 4) + 0, 1), (row r + 8, same), (row r, columns + 8), (row r + 8,
// columns + 8): four consecutive pairs of the accumulators of two 8-column tiles, so weights become an operand in place.
static __device__ __forceinline__ void hs_wgmma(float (&d)[32], uint64_t a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
        : HS_F32(d) : "l"(a), "l"(b), "r"(add));
}
static __device__ __forceinline__ void hs_wgmma(float (&d)[32], const uint32_t * a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : HS_F32(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
static __device__ __forceinline__ void hs_wgmma_t(float (&d)[32], const uint32_t * a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
        : HS_F32(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void hs_wgmma(float (&d)[64], uint64_t a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
        : HS_F64(d) : "l"(a), "l"(b), "r"(add));
}
static __device__ __forceinline__ void hs_wgmma_t(float (&d)[64], const uint32_t * a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
        : HS_F64(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif // HS_SM90A
