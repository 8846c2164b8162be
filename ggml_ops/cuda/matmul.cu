// Quantised weights times many tokens: the matrix is widened to f16 and multiplied by cuBLAS. ggml multiplies such weights in 8-bit integers, without
// Hopper's wgmma (190 TFLOP/s on an H100 for Q4_K; cuBLAS 600 to 750 in f16); widening costs one pass over the matrix, which from a few hundred tokens on is
// less than what it saves. Activations are f16 after division by 16, so that values up to a million do not overflow; sums are f32. Products with experts
// and few tokens stay with ggml.
#include "launch.cuh"

#include "convert.cuh"

#define HS_MATMUL_TOKENS 384
#define HS_MATMUL_SCALE 16.0f
#define HS_MATMUL_BYTES ((int64_t) 512 << 20) // of a widened matrix at most: an output matrix for all tokens of a prompt would take gigabytes

static __global__ void narrow_kernel(const float4 * x, half2 * y, int64_t n) {
    for (int64_t i = (int64_t) blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t) gridDim.x * blockDim.x) {
        const float4 v = x[i];
        const float s = 1.0f / HS_MATMUL_SCALE, top = 65504.0f;
        const auto narrow = [&](float a) { return a != a ? a : fminf(fmaxf(a * s, -top), top); }; // NaN stays: it must not hide
        const half2 out[2] = { __floats2half2_rn(narrow(v.x), narrow(v.y)), __floats2half2_rn(narrow(v.z), narrow(v.w)) };
        *(uint2 *) (y + 2 * i) = *(const uint2 *) out;
    }
}

bool hs_cuda_matmul_takes(const ggml_tensor * node, int cc) {
    if (node->op != GGML_OP_MUL_MAT || node->ne[1] < HS_MATMUL_TOKENS || cc < 900) {
        return false;
    }
    const ggml_tensor * w = node->src[0], * x = node->src[1];
    const bool flat = ggml_is_contiguous(w) && w->ne[2] == 1 && w->ne[3] == 1 && ggml_is_contiguous(x) && x->ne[2] == 1 && x->ne[3] == 1 &&
                      ggml_is_contiguous(node);
    return flat && x->type == GGML_TYPE_F32 && node->type == GGML_TYPE_F32 && x->ne[0] % 8 == 0 && ggml_is_quantized(w->type) &&
           ggml_get_to_fp16_cuda(w->type) && 2 * ggml_nelements(w) <= HS_MATMUL_BYTES;
}

void hs_cuda_matmul(ggml_backend_cuda_context & ctx, ggml_tensor * node) {
    const ggml_tensor * w = node->src[0], * x = node->src[1];
    const int64_t n_in = w->ne[0], n_out = w->ne[1], n = x->ne[1];
    ggml_cuda_pool_alloc<half> w16(ctx.pool(), n_in * n_out), x16(ctx.pool(), n_in * n);
    ggml_get_to_fp16_cuda(w->type)(w->data, w16.get(), n_in * n_out, ctx.stream());
    narrow_kernel<<<8 * ggml_cuda_info().devices[ctx.device].nsm, 256, 0, ctx.stream()>>>((const float4 *) x->data, (half2 *) x16.get(), n_in * n / 4);
    const float alpha = HS_MATMUL_SCALE, beta = 0.0f;
    CUBLAS_CHECK(cublasSetStream(ctx.cublas_handle(), ctx.stream()));
    CUBLAS_CHECK(cublasGemmEx(ctx.cublas_handle(), CUBLAS_OP_T, CUBLAS_OP_N, (int) n_out, (int) n, (int) n_in, &alpha, w16.get(), CUDA_R_16F, (int) n_in, x16.get(),
        CUDA_R_16F, (int) n_in, &beta, node->data, CUDA_R_32F, (int) n_out, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT_TENSOR_OP));
}
