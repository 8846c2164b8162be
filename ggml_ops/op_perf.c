// Timing: the 7B's attention shape (32 query heads, 8 KV heads, 128 wide), decode and prefill.
#include "op_perf.h"

#include "ggml-cpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define REPEATS_MIN 3
#define REPEATS_MAX 15
#define BUDGET_US 1000000.0 // no more repeats after this

static int by_value(const void * a, const void * b) {
    const double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

// Median time of a graph in microseconds.
static double time_graph(ggml_backend_t backend, struct ggml_cgraph * graph) {
    double t[REPEATS_MAX], spent = 0.0;
    int n = 0;
    ggml_backend_graph_compute(backend, graph);
    for (; n < REPEATS_MAX && (n < REPEATS_MIN || spent < BUDGET_US); n++) {
        const int64_t start = ggml_time_us();
        ggml_backend_graph_compute(backend, graph);
        t[n] = (double) (ggml_time_us() - start);
        spent += t[n];
    }
    qsort(t, (size_t) n, sizeof(t[0]), by_value);
    return t[n / 2];
}

// Keys that the queries of a case see, summed over queries.
static double visible_keys(const struct hs_case * c) {
    double n = 0.0;
    for (int i = 0; i < c->fresh[0]; i++) {
        const double t = c->past[0] + i + 1, selected = (double) c->top_k * c->block;
        n += c->op == HS_OP_ATTN_WINDOW ? fmin(t, c->window) : c->op == HS_OP_ATTN_SPARSE ? fmin(t, selected) + fmin(t, c->window) : t;
    }
    return n;
}

static void print_line(const char * name, const struct hs_case * c, double us) {
    const double keys = visible_keys(c), bytes = keys / c->fresh[0] * c->n_head_kv *
        (double) (ggml_row_size(c->type_k, c->d_qk) + ggml_row_size(c->type_v, c->d_v));
    printf("%-44s %10.0f us", name, us);
    if (c->op == HS_OP_SELECT_BLOCKS) { // neither K and V nor products
        printf("  %7.1f ns a row", 1e3 * us / ((double) c->fresh[0] * c->n_head_kv));
    } else if (c->fresh[0] == 1) {
        printf("  %7.1f GB/s of K and V", bytes / us * 1e-3);
    } else {
        printf("  %7.1f GFLOP/s", 2.0 * keys * c->n_head * (c->d_qk + c->d_v) / us * 1e-3);
    }
    printf("\n");
    fflush(stdout);
}

// ggml_flash_attn_ext on the same numbers of heads, keys and queries (contiguous cache, causal mask for more than one query).
static void time_ggml(ggml_backend_t backend, const struct hs_case * c) {
    const int64_t n_kv = c->past[0] + c->fresh[0], n_tokens = c->fresh[0];
    const struct ggml_init_params ip = { 32 * ggml_tensor_overhead() + ggml_graph_overhead(), NULL, true };
    struct ggml_context * ctx = ggml_init(ip);
    if (!ctx) {
        return;
    }
    struct ggml_tensor * q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, c->d_qk, n_tokens, c->n_head);
    struct ggml_tensor * k = ggml_new_tensor_3d(ctx, c->type_k, c->d_qk, n_kv, c->n_head_kv);
    struct ggml_tensor * v = ggml_new_tensor_3d(ctx, c->type_v, c->d_v, n_kv, c->n_head_kv);
    struct ggml_tensor * mask = n_tokens > 1 ? ggml_new_tensor_2d(ctx, GGML_TYPE_F16, n_kv, n_tokens) : NULL;
    struct ggml_tensor * out = ggml_flash_attn_ext(ctx, q, k, v, mask, 1.0f / sqrtf((float) c->d_qk), 0.0f, 0.0f);
    struct ggml_cgraph * graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, out);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
    ggml_fp16_t * m = mask ? malloc(ggml_nbytes(mask)) : NULL;
    if (buffer && (!mask || m)) {
        ggml_backend_buffer_clear(buffer, 0);
        for (int64_t i = 0; i < n_tokens && mask; i++) {
            for (int64_t j = 0; j < n_kv; j++) {
                m[i * n_kv + j] = ggml_fp32_to_fp16(j <= c->past[0] + i ? 0.0f : -INFINITY);
            }
        }
        if (mask) {
            ggml_backend_tensor_set(mask, m, 0, ggml_nbytes(mask));
        }
        print_line("  ggml_flash_attn_ext, same shape", c, time_graph(backend, graph));
    }
    free(m);
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
}

int hs_perf(ggml_backend_t backend, int threads, const regex_t * only) {
    static const struct { enum hs_op_id op; int past, fresh; } shapes[] = {
        { HS_OP_ATTN_FULL, 1023, 1 }, { HS_OP_ATTN_FULL, 4095, 1 }, { HS_OP_ATTN_FULL, 16383, 1 }, { HS_OP_ATTN_FULL, 0, 512 },
        { HS_OP_ATTN_FULL, 3584, 512 },
        { HS_OP_SELECT_BLOCKS, 16383, 1 }, { HS_OP_SELECT_BLOCKS, 3584, 512 },
        { HS_OP_ATTN_SPARSE, 4095, 1 }, { HS_OP_ATTN_SPARSE, 16383, 1 }, { HS_OP_ATTN_SPARSE, 3584, 512 },
        { HS_OP_ATTN_WINDOW, 4095, 1 }, { HS_OP_ATTN_WINDOW, 3584, 512 },
    };
    static const enum ggml_type types[] = { GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_F32 };
    int rc = 0;
    if (ggml_backend_is_cpu(backend)) {
        ggml_backend_cpu_set_n_threads(backend, threads);
        printf("CPU, level %s, %d threads\n", hs_cpu_level(), threads);
    }
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (size_t t = 0; t < (shapes[i].op == HS_OP_SELECT_BLOCKS ? 1 : sizeof(types) / sizeof(types[0])); t++) {
            const bool sparse = shapes[i].op == HS_OP_ATTN_SPARSE, window = shapes[i].op == HS_OP_ATTN_WINDOW;
            const struct hs_case c = { .op = shapes[i].op, .d_qk = 128, .d_v = 128, .n_head = 32, .n_head_kv = 8, .n_head_kv_win = sparse ? 8 : 0,
                .type_k = types[t], .type_v = types[t], .page = 64, .block = 64, .top_k = 16, .window = 128,
                .ring = sparse || window ? 127 + shapes[i].fresh : 0, .n_seq = 1, .past = { shapes[i].past }, .fresh = { shapes[i].fresh },
                .gate = sparse ? HS_GATE_HEAD : HS_GATE_OFF };
            char name[64];
            snprintf(name, sizeof(name), "%s %s, %d new at %d", hs_op_table[c.op].name, ggml_type_name(c.type_k), c.fresh[0], c.past[0]);
            if (only && regexec(only, name, 0, NULL, 0) != 0) {
                continue;
            }
            struct hs_inputs in = { 0 };
            struct hs_case_graph g = { 0 };
            if (hs_inputs_make(&c, &in) == 0 && hs_graph_build(&g, backend, &in, c.op, HS_IMPL_KERNEL)) {
                print_line(name, &c, time_graph(backend, g.graph));
            } else {
                printf("%-44s %s\n", name, g.error[0] ? g.error : "out of memory");
                rc = 1;
            }
            hs_graph_free(&g);
            hs_inputs_free(&in);
            if (c.op == HS_OP_ATTN_FULL) {
                time_ggml(backend, &c);
            }
        }
    }
    return rc;
}
