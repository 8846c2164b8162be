// An attention node of any of the three ops -> what the kernels are given, and the choice of kernel.
#include "attn.cuh"
#include "hs_cuda.h"

static int cc_limit; // 0: none

void hs_cuda_limit_capability(int cc) { cc_limit = cc; }

static hs_dev_attn attn_of(const ggml_tensor * dst, const hs_op_params * p, const ggml_tensor * q, const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * table,
    const ggml_tensor * pos_seq, const ggml_tensor * sinks, int window) {
    hs_dev_attn a = {};
    a.n_branch = 1;
    a.b[0] = { hs_dev_cache_of(k, table), hs_dev_cache_of(v, table), sinks ? (const float *) sinks->data : nullptr, nullptr, (int) (q->ne[1] / k->ne[2]), (int) k->ne[2],
        window };
    a.q = (const float *) q->data;
    a.d_qk = (int) q->ne[0];
    a.d_v = (int) v->ne[0];
    a.n_head = (int) q->ne[1];
    a.n_tokens = (int) q->ne[2];
    a.pos = (const int32_t *) pos_seq->data;
    a.seq = a.pos + a.n_tokens;
    a.out = (float *) dst->data;
    a.scale = p->scale;
    a.block_size = p->block_size;
    return a;
}

static void run(ggml_backend_cuda_context & ctx, const hs_dev_attn & a) {
    const int found = ggml_cuda_info().devices[ctx.device].cc, cc = cc_limit > 0 && cc_limit < found ? cc_limit : found;
    if (hs_cuda_decode_takes(a, cc)) {
        hs_cuda_decode(ctx, a);
    } else if (hs_cuda_widen_takes(a, cc)) {
        hs_cuda_widen(ctx, a, run);
    } else if (hs_cuda_prefill_sm90_takes(a, cc)) {
        hs_cuda_prefill_sm90(ctx, a);
    } else if (hs_cuda_prefill_takes(a, cc)) {
        hs_cuda_prefill(ctx, a);
    } else if (hs_cuda_prefill_sparse_sm90_takes(a, cc)) {
        hs_cuda_prefill_sparse_sm90(ctx, a);
    } else if (hs_cuda_prefill_sparse_takes(a, cc)) {
        hs_cuda_prefill_sparse(ctx, a);
    } else {
        hs_cuda_attn_plain(ctx, a);
    }
}

void hs_cuda_attn_full(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p) {
    hs_dev_attn a = attn_of(dst, p, dst->src[HS_FULL_Q], dst->src[HS_FULL_K], dst->src[HS_FULL_V], dst->src[HS_FULL_TABLE], dst->src[HS_FULL_POS_SEQ],
        dst->src[HS_FULL_SINKS], INT32_MAX);
    if (p->emit_scores) {
        a.n_blocks = p->n_blocks_max;
        a.scores = a.out + p->out_elems;
    }
    run(ctx, a);
}

void hs_cuda_attn_window(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p) {
    run(ctx, attn_of(dst, p, dst->src[HS_WINDOW_Q], dst->src[HS_WINDOW_K], dst->src[HS_WINDOW_V], nullptr, dst->src[HS_WINDOW_POS_SEQ], dst->src[HS_WINDOW_SINKS],
        p->window));
}

void hs_cuda_attn_sparse(ggml_backend_cuda_context & ctx, ggml_tensor * dst, const hs_op_params * p) {
    const ggml_tensor * const * src = dst->src;
    hs_dev_attn a = attn_of(dst, p, src[HS_SPARSE_Q], src[HS_SPARSE_K], src[HS_SPARSE_V], src[HS_SPARSE_TABLE], src[HS_SPARSE_POS_SEQ], src[HS_SPARSE_SINKS],
        p->forced ? p->window : 0);
    a.b[0].sel = (const int32_t *) src[HS_SPARSE_SEL]->data;
    a.top_k = (int) src[HS_SPARSE_SEL]->ne[0];
    if (const ggml_tensor * k = src[HS_SPARSE_WIN_K]) {
        const float * sinks = a.b[0].sinks ? a.b[0].sinks + a.n_head : nullptr;
        a.b[1] = { hs_dev_cache_of(k, nullptr), hs_dev_cache_of(src[HS_SPARSE_WIN_V], nullptr), sinks, nullptr, (int) (a.n_head / k->ne[2]), (int) k->ne[2], p->window };
        a.n_branch = 2;
    }
    if (const ggml_tensor * g = src[HS_SPARSE_GATES]) {
        a.gates = (const float *) g->data;
        a.gate_channels = (int) (g->ne[0] / 2 / a.n_head);
    }
    run(ctx, a);
}

// Everything that the builders let through, within the limits of a grid; not on a cache in host memory (a layer on the CPU), which would be copied whole.
bool hs_cuda_attn_supported(const ggml_tensor * node) {
    const ggml_tensor * k = node->src[HS_FULL_K];
    static_assert((int) HS_FULL_K == (int) HS_SPARSE_K && (int) HS_FULL_K == (int) HS_WINDOW_K, "one place for the keys");
    return node->src[0]->ne[1] <= 65535 && !(k->buffer && ggml_backend_buffer_is_host(k->buffer));
}
