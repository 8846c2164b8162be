// Inputs of a case. Every value is a function of (seed, what, where), so a row is the same wherever a page table or a ring puts it.
#include "op_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum tag { TAG_Q = 1, TAG_K, TAG_V, TAG_WIN_K, TAG_WIN_V, TAG_SINK, TAG_GATE, TAG_SCORE, TAG_SEL, TAG_PAGE, TAG_X, TAG_W, TAG_NORM, TAG_ADD };

#define LOW_KEY 8.0f
#define HUGE_KEY (127.0f / 32.0f)

static uint64_t mix(uint64_t x) { // the finaliser of splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t next(uint64_t * state) {
    *state = mix(*state);
    return *state;
}

static double uniform(uint64_t * state) { // (0, 1)
    return ((double) (next(state) >> 11) + 0.5) * 0x1p-53;
}

static float normal(uint64_t * state) {
    const double u = uniform(state), v = uniform(state);
    return (float) (sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

static uint64_t key(const struct hs_inputs * in, enum tag tag, int64_t a, int64_t b, int64_t c) {
    return mix(mix(mix(mix(in->seed + (uint64_t) tag) + (uint64_t) a) + (uint64_t) b) + (uint64_t) c);
}

// One row of a cache: position j of a sequence and KV head.
static void cache_row(const struct hs_inputs * in, enum tag tag, int seq, int head_kv, int64_t j, int d, float * row) {
    const bool is_key = tag == TAG_K || tag == TAG_WIN_K;
    uint64_t state = is_key && in->c.data == HS_DATA_EQUAL ? key(in, tag, 0, 0, 0) : key(in, tag, seq, head_kv, j);
    for (int x = 0; x < d; x++) {
        row[x] = normal(&state);
    }
    if (is_key && in->c.data == HS_DATA_LOW) {
        row[0] = LOW_KEY; // meets a large negative q[0]
    }
    // With logits of 1e4 the rounding of an operand to f16 would be worth several units: both are values that f16 holds, of q8_0 keys too
    // (the largest of a block makes its factor 2^-5).
    for (int x = 0; is_key && in->c.data == HS_DATA_HUGE && x < d; x++) {
        row[x] = x % 32 == 0 || row[x] > HUGE_KEY ? HUGE_KEY : row[x] < -HUGE_KEY ? -HUGE_KEY : row[x];
        row[x] = ggml_fp16_to_fp32(ggml_fp32_to_fp16(row[x]));
    }
}

// A cache of one type: pages (the table says where) or rings. Unwritten slots stay NaN.
static void * make_cache(const struct hs_inputs * in, enum tag tag, enum ggml_type type, int d, int n_head_kv, bool ring) {
    const struct hs_case * c = &in->c;
    const int64_t n_slots = ring ? c->ring : c->page, n_pages = ring ? c->n_seq : in->n_pages;
    const size_t row_size = ggml_row_size(type, d), size = row_size * (size_t) (n_slots * n_head_kv * n_pages);
    char * cache = malloc(size);
    if (!cache) {
        return NULL;
    }
    memset(cache, 0xff, size);
    for (int s = 0; s < c->n_seq; s++) {
        const int64_t end = c->past[s] + c->fresh[s], first = ring && end > c->ring ? end - c->ring : 0;
        for (int64_t j = first; j < end; j++) {
            const int64_t page = ring ? s : in->table[s * in->max_pages + j / n_slots];
            for (int g = 0; g < n_head_kv; g++) {
                float row[256];
                cache_row(in, tag, s, g, j, d, row);
                ggml_quantize_chunk(type, row, cache + row_size * (size_t) ((page * n_head_kv + g) * n_slots + j % n_slots), 0, 1, d, NULL);
            }
        }
    }
    return cache;
}

// Scattered pages: a random permutation; entries behind the end of a sequence point at a page that nobody wrote.
static void make_table(struct hs_inputs * in) {
    int * page = malloc((size_t) in->n_pages * sizeof(*page));
    if (!page) {
        return;
    }
    uint64_t state = key(in, TAG_PAGE, 0, 0, 0);
    for (int i = 0; i < in->n_pages; i++) {
        const int at = (int) (next(&state) % (uint64_t) (i + 1));
        page[i] = page[at];
        page[at] = i;
    }
    int used = 1; // page[0] stays unwritten
    for (int s = 0; s < in->c.n_seq; s++) {
        const int n = (in->c.past[s] + in->c.fresh[s] + in->c.page - 1) / in->c.page;
        for (int i = 0; i < in->max_pages; i++) {
            in->table[s * in->max_pages + i] = i < n ? page[used++] : page[0];
        }
    }
    free(page);
}

static void make_tokens(struct hs_inputs * in) {
    const struct hs_case * c = &in->c;
    int done[HS_CASE_MAX_SEQ] = { 0 }, i = 0, s = 0;
    while (i < in->n_tokens) {
        if (done[s] == c->fresh[s]) {
            s = (s + 1) % c->n_seq;
            continue;
        }
        in->pos_seq[i] = c->past[s] + done[s]++;
        in->pos_seq[in->n_tokens + i++] = s;
        s = c->interleave ? (s + 1) % c->n_seq : s;
    }
}

static void make_queries(struct hs_inputs * in) {
    const struct hs_case * c = &in->c;
    const float factor = c->data == HS_DATA_HUGE ? 1e4f : c->data == HS_DATA_TINY ? 1e-4f : 1.0f;
    for (int i = 0; i < in->n_tokens; i++) {
        for (int h = 0; h < c->n_head; h++) {
            float * q = in->q + ((int64_t) i * c->n_head + h) * c->d_qk;
            uint64_t state = key(in, TAG_Q, in->pos_seq[i], in->pos_seq[in->n_tokens + i], h);
            for (int x = 0; x < c->d_qk; x++) {
                q[x] = factor * normal(&state);
                q[x] = c->data == HS_DATA_HUGE ? ggml_fp16_to_fp32(ggml_fp32_to_fp16(q[x])) : q[x];
            }
            if (c->data == HS_DATA_LOW) {
                q[0] = -1e4f * sqrtf((float) c->d_qk) / LOW_KEY;
            }
        }
    }
    uint64_t state = key(in, TAG_SINK, 0, 0, 0);
    for (int h = 0; h < 2 * c->n_head; h++) {
        in->sinks[h] = c->sink == HS_SINK_MIXED && h % 3 != 1 ? HS_SINK_ABSENT : normal(&state);
    }
    state = key(in, TAG_GATE, 0, 0, 0);
    for (int64_t x = 0; x < (int64_t) 2 * c->n_head * c->d_v * in->n_tokens; x++) {
        in->gates[x] = 3.0f * normal(&state);
    }
}

// Scores of every (token, KV head): visible blocks have values, ties among them for HS_DATA_EQUAL.
static void make_scores(struct hs_inputs * in) {
    const struct hs_case * c = &in->c;
    for (int i = 0; i < in->n_tokens; i++) {
        for (int g = 0; g < c->n_head_kv; g++) {
            float * s = in->scores + ((int64_t) i * c->n_head_kv + g) * in->n_blocks;
            uint64_t state = key(in, TAG_SCORE, i, g, 0);
            for (int b = 0; b < in->n_blocks; b++) {
                const float factor = c->data == HS_DATA_HUGE ? 1e4f : 1.0f;
                const float x = c->data == HS_DATA_EQUAL ? -(float) (next(&state) % 3) : factor * normal(&state);
                s[b] = b <= in->pos_seq[i] / c->block ? x : NAN;
            }
        }
    }
}

// A random selection of visible blocks, ascending.
static void make_selection(struct hs_inputs * in) {
    const struct hs_case * c = &in->c;
    for (int i = 0; i < in->n_tokens; i++) {
        for (int g = 0; g < c->n_head_kv; g++) {
            int32_t * sel = in->sel + ((int64_t) i * c->n_head_kv + g) * c->top_k;
            uint64_t state = key(in, TAG_SEL, i, g, 0);
            const int n_visible = in->pos_seq[i] / c->block + 1;
            int want = n_visible < c->top_k ? n_visible : c->top_k, n = 0;
            want = c->sel == HS_SEL_EMPTY ? 0 : c->sel == HS_SEL_SHORT ? (int) (next(&state) % (uint64_t) (want + 1)) : want;
            for (int b = 0; b < n_visible; b++) { // each block with the probability that fills the rest
                if (next(&state) % (uint64_t) (n_visible - b) < (uint64_t) (want - n)) {
                    sel[n++] = b;
                }
            }
            for (; n < c->top_k; n++) {
                sel[n] = HS_BLOCK_NONE;
            }
        }
    }
}

// Activations of very different sizes from block to block, some blocks zero, some with one large value; EQUAL: all tokens the same.
static void make_x(struct hs_inputs * in) {
    const struct hs_case * c = &in->c;
    const float size = c->data == HS_DATA_HUGE ? 1e4f : c->data == HS_DATA_TINY ? 1e-4f : 1.0f;
    for (int i = 0; i < in->n_tokens; i++) {
        for (int b = 0; b < c->n_in / 32; b++) {
            uint64_t state = key(in, TAG_X, c->data == HS_DATA_EQUAL ? 0 : i, b, 0);
            const uint64_t kind = next(&state) % 8;
            for (int d = 0; d < 32; d++) {
                in->x[(int64_t) i * c->n_in + b * 32 + d] = kind == 0 ? 0.0f : size * normal(&state) * (kind == 1 && d == 7 ? 50.0f : 1.0f);
            }
        }
    }
}

// Matrix i, quantised by ggml row by row and packed.
static void * make_matrix(const struct hs_inputs * in, int i) {
    const struct hs_case * c = &in->c;
    const size_t row_size = ggml_row_size(c->type_k, c->n_in), size = row_size * (size_t) c->n_out[i];
    char * rows = malloc(size), * packed = malloc(size);
    float * row = malloc((size_t) c->n_in * sizeof(*row));
    for (int r = 0; rows && packed && row && r < c->n_out[i]; r++) {
        uint64_t state = key(in, TAG_W, i, r, 0);
        for (int d = 0; d < c->n_in; d++) {
            row[d] = (normal(&state) + (r % 3 == 1 ? 0.7f : 0.0f)) / sqrtf((float) c->n_in);
        }
        ggml_quantize_chunk(c->type_k, row, rows + (size_t) r * row_size, 0, 1, c->n_in, NULL);
    }
    if (rows && packed && row) {
        hs_linear_pack(c->type_k, c->n_in, 0, c->n_out[i], rows, packed);
    }
    free(row);
    free(rows);
    return packed;
}

static int make_linear(struct hs_inputs * in) {
    in->x = malloc((size_t) in->n_tokens * (size_t) in->c.n_in * sizeof(float));
    in->norm = malloc((size_t) in->c.n_in * sizeof(float));
    in->add = malloc((size_t) in->n_tokens * (size_t) in->c.n_out[0] * sizeof(float));
    bool ok = in->x && in->norm && in->add;
    uint64_t norm = key(in, TAG_NORM, 0, 0, 0), more = key(in, TAG_ADD, 0, 0, 0);
    for (int i = 0; ok && i < in->c.n_in; i++) {
        in->norm[i] = 1.0f + 0.3f * normal(&norm);
    }
    for (int i = 0; ok && i < in->n_tokens * in->c.n_out[0]; i++) {
        in->add[i] = normal(&more);
    }
    for (int i = 0; i < HS_LINEAR_MAX && in->c.n_out[i] > 0; i++) {
        in->w[i] = make_matrix(in, i);
        ok = ok && in->w[i];
    }
    if (ok) {
        make_x(in);
    }
    return ok ? 0 : -1;
}

int hs_inputs_make(const struct hs_case * c, struct hs_inputs * in) {
    char name[512];
    *in = (struct hs_inputs) { .c = *c, .n_tokens = hs_case_tokens(c) };
    hs_case_name(c, name, sizeof(name));
    for (const char * p = name; *p; p++) {
        in->seed = mix(in->seed + (unsigned char) *p);
    }
    if (c->op == HS_OP_LINEAR) {
        return make_linear(in);
    }
    in->max_pages = hs_case_context(c) / c->page + 2; // longer than any sequence needs
    in->n_pages = 1 + in->max_pages * c->n_seq;
    in->n_blocks = c->block > 0 ? (in->max_pages * c->page + c->block - 1) / c->block : 0;
    const size_t t = (size_t) in->n_tokens, h = (size_t) c->n_head, g = (size_t) c->n_head_kv, f = sizeof(float);
    in->q = malloc(t * h * (size_t) c->d_qk * f);
    in->sinks = malloc(2 * h * f);
    in->gates = malloc(2 * t * h * (size_t) c->d_v * f);
    in->scores = malloc((t * g * (size_t) in->n_blocks + 1) * f);
    in->table = malloc((size_t) (in->max_pages * c->n_seq) * sizeof(int32_t));
    in->pos_seq = malloc(2 * t * sizeof(int32_t));
    in->sel = malloc((t * g * (size_t) c->top_k + 1) * sizeof(int32_t));
    if (!in->q || !in->sinks || !in->gates || !in->scores || !in->table || !in->pos_seq || !in->sel) {
        return -1;
    }
    make_table(in);
    make_tokens(in);
    make_queries(in);
    if (c->block > 0) {
        make_scores(in);
        make_selection(in);
    }
    in->k_pages = make_cache(in, TAG_K, c->type_k, c->d_qk, c->n_head_kv, false);
    in->v_pages = make_cache(in, TAG_V, c->type_v, c->d_v, c->n_head_kv, false);
    const bool own = c->op != HS_OP_ATTN_WINDOW; // the sparse op's ring is a cache of its own
    const int n_head_kv = own ? c->n_head_kv_win : c->n_head_kv;
    if (c->ring > 0 && n_head_kv > 0) {
        in->k_ring = make_cache(in, own ? TAG_WIN_K : TAG_K, c->type_k, c->d_qk, n_head_kv, true);
        in->v_ring = make_cache(in, own ? TAG_WIN_V : TAG_V, c->type_v, c->d_v, n_head_kv, true);
    }
    return in->k_pages && in->v_pages && (n_head_kv == 0 || c->ring == 0 || (in->k_ring && in->v_ring)) ? 0 : -1;
}

void hs_inputs_free(struct hs_inputs * in) {
    void * all[] = { in->q, in->sinks, in->gates, in->scores, in->table, in->pos_seq, in->sel, in->k_pages, in->v_pages, in->k_ring, in->v_ring, in->x,
        in->norm, in->add, in->w[0], in->w[1], in->w[2], in->w[3], in->w[4] };
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        free(all[i]);
    }
    *in = (struct hs_inputs) { 0 };
}
