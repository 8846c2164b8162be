// The grids of cases. Lengths sit on and beside every edge that a kernel may get wrong: block, page, ring, window, tile (64 keys), query tile.
#include "op_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op_cases_list.h"

static void lengths(struct hs_case_list * l, enum hs_op_id op, shape_fn shape) {
    // context lengths: 1, B-1, B, B+1, w-1, w, w+1, page and tile edges; as decode (one token), as prefill from nothing, and as a chunk in between
    static const int edges[] = { 1, 2, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129 };
    for (int i = 0; i < COUNT(edges); i++) {
        add(l, shape(base(op, edges[i] - 1, 1)));
        if (i % 2 == 0 || edges[i] < 40) {
            add(l, shape(base(op, 0, edges[i])));
        }
        if (edges[i] > 7) {
            add(l, shape(base(op, edges[i] - 7, 7)));
        }
    }
}

static void blocks_and_pages(struct hs_case_list * l, enum hs_op_id op, shape_fn shape) {
    static const int sizes[][2] = { { 16, 16 }, { 64, 64 }, { 64, 16 }, { 16, 64 }, { 24, 16 }, { 16, 24 }, { 7, 16 }, { 1, 16 }, { 5, 3 }, { 3, 1 },
        { 100, 64 }, { 200, 32 }, { 33, 50 }, { 17, 8 } }; // { block, page }
    static const int top_k[] = { 1, 2, 4, 64 };            // 64: fewer blocks than K
    for (int i = 0; i < COUNT(sizes); i++) {
        struct hs_case c = base(op, 130, 1);
        c.block = sizes[i][0];
        c.page = sizes[i][1];
        c.top_k = top_k[i % COUNT(top_k)];
        add(l, shape(c));
        c = base(op, 61, 20);
        c.block = sizes[i][0];
        c.page = sizes[i][1];
        c.top_k = top_k[(i + 1) % COUNT(top_k)];
        add(l, shape(c));
    }
}

static void heads(struct hs_case_list * l, enum hs_op_id op, shape_fn shape) {
    static const int dims[][2] = { { 32, 32 }, { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 256, 256 }, { 160, 224 }, { 32, 256 } };
    static const int groups[][2] = { { 1, 1 }, { 4, 4 }, { 2, 1 }, { 6, 2 }, { 4, 1 }, { 10, 2 },
        { 7, 1 }, { 8, 1 }, { 9, 1 }, { 24, 2 }, { 16, 1 }, { 20, 1 }, { 3, 1 }, { 130, 1 } };
    static const enum ggml_type types[][2] = { { F32, F32 }, { F16, F16 }, { Q8, Q8 }, { F16, Q8 }, { Q8, F32 }, { F32, F16 } };
    for (int i = 0; i < COUNT(dims); i++) {
        for (int t = 0; t < COUNT(types); t++) {
            struct hs_case c = t % 2 ? base(op, 40, 9) : base(op, 77, 1);
            c.d_qk = dims[i][0];
            c.d_v = dims[i][1];
            c.type_k = types[t][0];
            c.type_v = types[t][1];
            add(l, shape(c));
        }
    }
    for (int i = 0; i < COUNT(groups); i++) {
        for (int chunk = 0; chunk < 2; chunk++) {
            struct hs_case c = chunk ? base(op, 30, 21) : base(op, 70, 1);
            c.n_head = groups[i][0];
            c.n_head_kv = groups[i][1];
            c.d_qk = c.d_v = 32;
            c.sink = i % 2 ? HS_SINK_ON : HS_SINK_OFF;
            c.type_k = c.type_v = i % 3 ? F32 : F16;
            add(l, shape(c));
            c.type_k = c.type_v = Q8;
            add(l, shape(c));
        }
    }
    struct hs_case c = base(op, 40, 230); // items of more rows than exist at a time in a panel
    c.n_head = 24;
    c.n_head_kv = 12;
    c.d_qk = c.d_v = 32;
    add(l, shape(c));
}

static void contents(struct hs_case_list * l, enum hs_op_id op, shape_fn shape) {
    static const enum ggml_type types[] = { F32, F16, Q8 };
    for (int data = HS_DATA_EQUAL; data <= HS_DATA_LOW; data++) {
        for (int sink = HS_SINK_OFF; sink <= HS_SINK_MIXED; sink++) {
            struct hs_case c = sink == HS_SINK_ON ? base(op, 90, 1) : base(op, 50, 19);
            c.data = data;
            c.sink = sink;
            c.type_k = c.type_v = types[(data + sink) % 3];
            add(l, shape(c));
        }
    }
    for (int sink = HS_SINK_ON; sink <= HS_SINK_MIXED; sink++) {
        struct hs_case c = base(op, 100, 3);
        c.sink = sink;
        add(l, shape(c));
        c = base(op, 0, 1); // the first token of a sequence
        c.sink = sink;
        add(l, shape(c));
    }
}

static void sequences(struct hs_case_list * l, enum hs_op_id op, shape_fn shape) {
    static const int tokens[][3][2] = { { { 63, 1 }, { 16, 1 }, { 0, 1 } }, { { 40, 5 }, { 0, 5 }, { 100, 5 } }, { { 0, 17 }, { 33, 1 }, { 64, 30 } },
        { { 128, 2 }, { 15, 1 }, { 1, 12 } } };
    for (int i = 0; i < COUNT(tokens); i++) {
        for (int mix = 0; mix < 2; mix++) {
            struct hs_case c = base(op, 0, 0);
            c.n_seq = 3;
            for (int s = 0; s < 3; s++) {
                c.past[s] = tokens[i][s][0];
                c.fresh[s] = tokens[i][s][1];
            }
            c.interleave = mix;
            c.n_head = 6;
            c.n_head_kv = i % 2 ? 1 : 3;
            c.type_k = c.type_v = i % 2 ? F16 : F32;
            add(l, shape(c));
        }
    }
}

static void common(struct hs_case_list * l, enum hs_op_id op, shape_fn shape) {
    lengths(l, op, shape);
    blocks_and_pages(l, op, shape);
    heads(l, op, shape);
    contents(l, op, shape);
    sequences(l, op, shape);
}

static void full_cases(struct hs_case_list * l) {
    common(l, HS_OP_ATTN_FULL, as_is);
    static const int lens[][2] = { { 99, 1 }, { 60, 40 }, { 300, 1 }, { 0, 130 } };
    for (int i = 0; i < COUNT(lens); i++) { // without scores, and longer than a few tiles
        struct hs_case c = base(HS_OP_ATTN_FULL, lens[i][0], lens[i][1]);
        c.block = c.top_k = 0;
        add(l, c);
        c.block = 64;
        c.page = 64;
        c.top_k = 2;
        add(l, c);
    }
}

static void select_cases(struct hs_case_list * l) {
    static const int edges[] = { 1, 15, 16, 17, 47, 48, 49, 300 };
    static const int top_k[] = { 1, 2, 3, 4, 16, 40 };
    for (int i = 0; i < COUNT(edges); i++) {
        for (int k = 0; k < COUNT(top_k); k++) {
            struct hs_case c = base(HS_OP_SELECT_BLOCKS, edges[i] - 1, k % 2 ? 1 : 9);
            c.top_k = top_k[k];
            c.block = k == 3 ? 1 : 16;
            c.data = i % 2 ? HS_DATA_EQUAL : HS_DATA_NORMAL;
            add(l, c);
        }
    }
    struct hs_case c = base(HS_OP_SELECT_BLOCKS, 1200, 5);
    c.block = 1;
    c.top_k = 200;
    add(l, c);
    c.data = HS_DATA_EQUAL;
    add(l, c);
    c.data = HS_DATA_HUGE;
    c.n_seq = 2;
    c.past[1] = 7;
    c.fresh[1] = 5;
    c.interleave = true;
    add(l, c);
}

static void sparse_cases(struct hs_case_list * l) {
    lengths(l, HS_OP_ATTN_SPARSE, with_window);
    lengths(l, HS_OP_ATTN_SPARSE, with_forced);
    blocks_and_pages(l, HS_OP_ATTN_SPARSE, as_is);
    blocks_and_pages(l, HS_OP_ATTN_SPARSE, with_forced);
    heads(l, HS_OP_ATTN_SPARSE, with_window);
    contents(l, HS_OP_ATTN_SPARSE, with_window);
    contents(l, HS_OP_ATTN_SPARSE, with_forced);
    sequences(l, HS_OP_ATTN_SPARSE, with_window);
    sequences(l, HS_OP_ATTN_SPARSE, with_forced);
    // heads, KV heads, KV heads of the window
    static const int kv[][3] = { { 4, 2, 4 }, { 4, 4, 1 }, { 6, 2, 3 }, { 6, 3, 2 }, { 16, 1, 4 }, { 8, 2, 2 } };
    for (int i = 0; i < COUNT(kv); i++) {
        for (int gate = HS_GATE_OFF; gate <= HS_GATE_CHANNEL; gate++) {
            for (int chunk = 0; chunk < 2; chunk++) {
                struct hs_case c = chunk ? base(HS_OP_ATTN_SPARSE, 25, 40) : base(HS_OP_ATTN_SPARSE, 120, 1);
                c.n_head = kv[i][0];
                c.n_head_kv = kv[i][1];
                c.n_head_kv_win = kv[i][2];
                c.gate = gate;
                c.sink = (i + gate) % 3;
                add(l, fit_ring(c));
            }
        }
    }
    for (int sel = HS_SEL_SHORT; sel <= HS_SEL_EMPTY; sel++) {
        for (int sink = HS_SINK_OFF; sink <= HS_SINK_MIXED; sink++) {
            for (int kind = 0; kind < 3; kind++) { // alone, with the window branch, with the forced window
                for (int chunk = 0; chunk < 2; chunk++) {
                    struct hs_case c = chunk ? base(HS_OP_ATTN_SPARSE, 50, 33) : base(HS_OP_ATTN_SPARSE, 99, 1);
                    c.sel = sel;
                    c.sink = sink;
                    add(l, kind == 1 ? with_window(c) : kind == 2 ? with_forced(c) : c);
                }
            }
        }
    }
}

static void window_cases(struct hs_case_list * l) {
    lengths(l, HS_OP_ATTN_WINDOW, fit_ring);
    heads(l, HS_OP_ATTN_WINDOW, fit_ring);
    contents(l, HS_OP_ATTN_WINDOW, fit_ring);
    sequences(l, HS_OP_ATTN_WINDOW, fit_ring);
    static const int windows[] = { 1, 2, 3, 16, 63, 64, 65, 128, 500 };
    static const int extra[] = { 0, 1, 40 }; // ring larger than needed
    for (int i = 0; i < COUNT(windows); i++) {
        for (int x = 0; x < COUNT(extra); x++) {
            struct hs_case c = x % 2 ? base(HS_OP_ATTN_WINDOW, 150, 1) : base(HS_OP_ATTN_WINDOW, 90, 31); // most rings have wrapped by then
            c.window = windows[i];
            c = fit_ring(c);
            c.ring += extra[x];
            add(l, c);
        }
    }
}

// Tokens on both sides of the kernels' token tiles (1, 4, 8, 16, 64), rows on both sides of the pieces dealt out to threads.
static void linear_cases(struct hs_case_list * l) {
    static const enum ggml_type types[] = { GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, Q8 };
    static const int tokens[] = { 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 130 };
    static const int shapes[][1 + HS_LINEAR_MAX] = { { 32, 16 }, { 64, 32, 16 }, { 576, 48, 16, 16 }, { 96, 208, 64, 64, 16, 16 }, { 1024, 16 }, { 2048, 64, 16 } };
    for (int t = 0; t < COUNT(types); t++) {
        for (int i = 0; i < COUNT(tokens) + COUNT(shapes); i++) {
            const int * s = shapes[i % COUNT(shapes)];
            struct hs_case c = base(HS_OP_LINEAR, 0, i < COUNT(tokens) ? tokens[i] : i % 2 ? 1 : 6);
            c.type_k = c.type_v = types[t];
            c.n_in = s[0];
            memcpy(c.n_out, s + 1, sizeof(c.n_out));
            c.data = i % 5 == 4 ? HS_DATA_HUGE : i % 5 == 3 ? HS_DATA_TINY : i % 7 == 5 ? HS_DATA_EQUAL : HS_DATA_NORMAL;
            c.norm = i % 2 == 1;
            add(l, c);
            memset(c.n_out + 1, 0, sizeof(c.n_out) - sizeof(c.n_out[0]));
            c.add = true;
            add(l, c);
            c.add = false;
            c.swiglu = true;
            c.norm = i % 3 == 1;
            c.n_out[1] = c.n_out[0];
            c.data = c.data == HS_DATA_HUGE ? HS_DATA_NORMAL : c.data; // silu(1e4) is 0 or x: nothing to compare
            add(l, c);
        }
    }
}

// Properties: an op that is given everything must equal full attention.
static void property_cases(struct hs_case_list * l) {
    static const int lens[][2] = { { 0, 1 }, { 99, 1 }, { 0, 60 }, { 70, 30 } };
    static const enum ggml_type types[] = { F32, F16, Q8 };
    for (int i = 0; i < COUNT(lens); i++) {
        for (int t = 0; t < COUNT(types); t++) {
            for (int sink = HS_SINK_OFF; sink <= HS_SINK_ON; sink++) {
                struct hs_case c = base(HS_OP_ATTN_SPARSE, lens[i][0], lens[i][1]);
                c.type_k = c.type_v = types[t];
                c.sink = sink;
                c.against = HS_AGAINST_FULL;
                c.top_k = 10;
                add(l, c);
                c.top_k = 7; // K * B = 112 >= the context
                add(l, with_forced(c));
                c.op = HS_OP_ATTN_WINDOW;
                c.window = lens[i][0] + lens[i][1];
                add(l, fit_ring(c));
            }
        }
    }
}

struct hs_case * hs_cases(int * n) {
    struct hs_case_list l = { 0 };
    full_cases(&l);
    select_cases(&l);
    sparse_cases(&l);
    window_cases(&l);
    linear_cases(&l);
    property_cases(&l);
    hs_cases_of_tiles(&l);
    if (l.failed) {
        free(l.at);
        return NULL;
    }
    *n = l.n;
    return l.at;
}

int hs_case_tokens(const struct hs_case * c) {
    int n = 0;
    for (int s = 0; s < c->n_seq; s++) {
        n += c->fresh[s];
    }
    return n;
}

int hs_case_context(const struct hs_case * c) {
    int n = 1;
    for (int s = 0; s < c->n_seq; s++) {
        n = c->past[s] + c->fresh[s] > n ? c->past[s] + c->fresh[s] : n;
    }
    return n;
}

double hs_case_tolerance(const struct hs_case * c, bool cpu) {
    // f16 and q8_0 caches too: kernel and reference read the same rounded cache, so only f32 arithmetic lies between them. Measured on the
    // CPU: below 3e-13, so its limit is tighter than SPEC 8's 1e-6, or a small mistake would pass.
    // Logits near 1e4 have a spacing of 1e-3 in f32, which exp turns into a relative error of 1e-3 of every weight.
    // q8_0: integer kernels round queries and weights to 16 bits; below 2e-9.
    const bool q8 = c->op != HS_OP_LINEAR && (c->type_k == GGML_TYPE_Q8_0 || c->type_v == GGML_TYPE_Q8_0);
    return c->data == HS_DATA_LOW ? 1e-5 : c->data == HS_DATA_HUGE || !cpu ? 1e-6 : q8 ? 1e-8 : 1e-10;
}

void hs_case_name(const struct hs_case * c, char * out, size_t size) {
    static const char * data[] = { "normal", "equal", "huge", "tiny", "low" }, * sink[] = { "off", "on", "mixed" };
    static const char * gate[] = { "off", "head", "channel" }, * sel[] = { "full", "short", "empty" };
    if (c->op == HS_OP_LINEAR) {
        snprintf(out, size, "%s(in=%d,out=%d-%d-%d-%d-%d,w=%s,tokens=%d,norm=%d,add=%d,swiglu=%d,data=%s)", hs_op_table[c->op].name, c->n_in,
            c->n_out[0], c->n_out[1], c->n_out[2], c->n_out[3], c->n_out[4], ggml_type_name(c->type_k), c->fresh[0], c->norm, c->add, c->swiglu,
            data[c->data]);
        return;
    }
    char seq[96] = "";
    for (int s = 0; s < c->n_seq; s++) {
        const size_t n = strlen(seq);
        snprintf(seq + n, sizeof(seq) - n, "%s%d+%d", s ? "/" : "", c->past[s], c->fresh[s]);
    }
    snprintf(out, size, "%s(d=%d-%d,h=%d,kv=%d-%d,k=%s,v=%s,P=%d,R=%d,B=%d,K=%d,w=%d,seq=%s,mix=%d,forced=%d,data=%s,sink=%s,gate=%s,sel=%s,as=%s)",
        hs_op_table[c->op].name, c->d_qk, c->d_v, c->n_head, c->n_head_kv, c->n_head_kv_win, ggml_type_name(c->type_k), ggml_type_name(c->type_v),
        c->page, c->ring, c->block, c->top_k, c->window, seq, c->interleave, c->forced, data[c->data], sink[c->sink], gate[c->gate], sel[c->sel],
        c->against == HS_AGAINST_FULL ? "full" : "ref");
}
