// A launch that may begin before the kernel before it in the stream has ended (decode_ptx.cuh: let_next_begin, wait_for_previous).
#pragma once

#include "decode_ptx.cuh"

// early: false for an ordinary launch. The kernel must call wait_for_previous in all threads before it touches what earlier kernels write or read.
template <typename... P, typename... A>
static void hs_launch_early(ggml_backend_cuda_context & ctx, bool early, void (*kernel)(P...), dim3 blocks, int threads, size_t shared,
    const A &... args) {
    // Code for 9.0 waits for the kernel before it by itself; code for older devices, on whatever device it runs, does not.
    const bool waits = ggml_cuda_highest_compiled_arch(ggml_cuda_info().devices[ctx.device].cc) >= HS_CC_EARLY_LAUNCH;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = ctx.stream();
    config.attrs = &attribute;
    config.numAttrs = early && waits ? 1 : 0;
    CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, args...));
}
