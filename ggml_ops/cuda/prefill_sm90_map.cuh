// Host side of the Hopper kernels: tensor maps of the caches, and whether their code is there.
#pragma once

#include "attn.cuh"

#include <cuda.h>

typedef CUresult (*hs_encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
    const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// A function of the driver, found at run time: the library must load where there is no driver.
static inline hs_encode_fn hs_encoder() {
    void * f = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found);
#endif
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? (hs_encode_fn) f : nullptr;
}

// A pool (or rings) as [page][KV head][slot][channel], read in boxes of 64 slots x 64 channels, 128-byte swizzle; slots past the last read as zeros.
static inline bool hs_sm90_map(const hs_dev_cache & c, int d, int n_head_kv, CUtensorMap * map) {
    static const hs_encode_fn encode = hs_encoder();
    const cuuint64_t dims[] = { (cuuint64_t) d, (cuuint64_t) c.n_slots, (cuuint64_t) n_head_kv, (cuuint64_t) c.n_pages };
    const cuuint64_t strides[] = { (cuuint64_t) c.nb1, (cuuint64_t) c.nb2, (cuuint64_t) c.nb3 };
    const cuuint32_t box[] = { 64, 64, 1, 1 }, one[] = { 1, 1, 1, 1 };
    return encode && encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, (void *) c.data, dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// Was a kernel compiled for this device's instructions, and not only a plain sm_90 or older? Such a body has no static shared memory.
template <typename F> static bool hs_sm90_code_here(F * kernel, size_t bytes) {
    cudaFuncAttributes f = {};
    if (cudaFuncGetAttributes(&f, kernel) != cudaSuccess) {
        (void) cudaGetLastError();
        return false;
    }
    return f.sharedSizeBytes >= bytes;
}
