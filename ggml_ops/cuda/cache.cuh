// Keys and values of one sequence and KV head as a kernel reads them: pages through the table, or a ring.
#pragma once

#include "launch.cuh"

struct hs_dev_cache {
    const char * data;
    const int32_t * table; // page table [max_pages, n_seq], or NULL: rings
    int64_t max_pages, nb1, nb2, nb3;
    int32_t n_slots;
    ggml_type type;
    int64_t n_pages; // of the pool (rings: sequences)
    int32_t n_seq, d, n_head_kv;
};

static inline hs_dev_cache hs_dev_cache_of(const ggml_tensor * t, const ggml_tensor * table) {
    if (!t) {
        return {};
    }
    return { (const char *) t->data, table ? (const int32_t *) table->data : nullptr, table ? table->ne[0] : 0, (int64_t) t->nb[1], (int64_t) t->nb[2],
        (int64_t) t->nb[3], (int32_t) t->ne[1], t->type, t->ne[3], (int32_t) (table ? table->ne[1] : t->ne[3]), (int32_t) t->ne[0], (int32_t) t->ne[2] };
}

static __device__ __forceinline__ const char * hs_dev_row(const hs_dev_cache & c, int seq, int head_kv, int j) {
    const int page = c.table ? c.table[seq * c.max_pages + j / c.n_slots] : seq;
    return c.data + page * c.nb3 + head_kv * c.nb2 + j % c.n_slots * c.nb1;
}

// Four elements from index x (a multiple of 4) of a row, as f32.
static __device__ __forceinline__ float4 hs_dev_load4(ggml_type type, const char * row, int x) {
    if (type == GGML_TYPE_F32) {
        return *(const float4 *) (row + x * 4);
    }
    if (type == GGML_TYPE_F16) {
        const half2 * h = (const half2 *) (row + x * 2);
        const float2 a = __half22float2(h[0]), b = __half22float2(h[1]);
        return make_float4(a.x, a.y, b.x, b.y);
    }
    const char * block = row + x / 32 * 34; // q8_0: one half, 32 bytes; blocks lie on 2-byte boundaries
    const float d = __half2float(*(const half *) block);
    const char2 * q = (const char2 *) (block + 2 + x % 32);
    return make_float4(d * q[0].x, d * q[0].y, d * q[1].x, d * q[1].y);
}
