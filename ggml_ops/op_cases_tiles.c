// Cases at the shapes of kernels that work in tiles (tensor cores): pages and blocks of 64, wide heads, groups, several sequences in a tile.
#include "op_cases_list.h"

// Few tokens at the shapes that models ship with: keys shared by several thread blocks, groups of 1 to 16 heads.
static void decode_cases(struct hs_case_list * l) {
    static const int rep[] = { 1, 4, 5, 8, 9, 16 };
    for (int i = 0; i < COUNT(rep); i++) {
        for (int q8 = 0; q8 < 2; q8++) {
            for (int o = 0; o < 4; o++) { // full, window, sparse with window, sparse forced
                struct hs_case c = base(o == 0 ? HS_OP_ATTN_FULL : o == 1 ? HS_OP_ATTN_WINDOW : HS_OP_ATTN_SPARSE, 700 + 61 * i, i % 2 ? 3 : 1);
                c.d_qk = c.d_v = 128;
                c.n_head = 2 * rep[i];
                c.type_k = c.type_v = q8 ? Q8 : F16;
                c.page = c.block = 64;
                c.top_k = 4;
                c.window = 128;
                c.sink = i % 3;
                add(l, o == 1 ? fit_ring(c) : o == 2 ? with_window(c) : o == 3 ? with_forced(c) : c);
            }
        }
    }
    struct hs_case c = base(HS_OP_ATTN_FULL, 40000, 1); // all splits busy, more than one thread block of scores
    c.n_head = 2;
    c.n_head_kv = 1;
    c.page = c.block = 64;
    add(l, c);
    c.type_k = c.type_v = Q8;
    add(l, c);
    for (int n = 2000; n <= 20000; n *= 3) { // selection: rows beyond registers
        c = base(HS_OP_SELECT_BLOCKS, n, 2);
        c.block = 1;
        c.top_k = 16;
        add(l, c);
        c.data = HS_DATA_EQUAL;
        add(l, c);
    }
}

// Many queries on pages and blocks of 64 (the shapes of the tensor-core kernels): edges of their tiles, groups, several sequences in a tile.
static void full_tile_cases(struct hs_case_list * l) {
    static const int lens[][2] = { { 0, 32 }, { 0, 33 }, { 0, 64 }, { 0, 65 }, { 0, 127 }, { 0, 128 }, { 0, 129 }, { 0, 192 }, { 0, 257 }, { 63, 65 }, { 64, 64 },
        { 65, 63 }, { 100, 157 }, { 127, 33 }, { 128, 40 }, { 300, 90 } };
    static const int dims[][2] = { { 128, 128 }, { 64, 64 }, { 192, 128 }, { 256, 256 } };
    static const int groups[][2] = { { 4, 1 }, { 2, 2 }, { 6, 2 }, { 16, 1 }, { 5, 1 }, { 14, 2 }, { 24, 2 } };
    for (int i = 0; i < COUNT(lens) * COUNT(dims); i++) {
        struct hs_case c = base(HS_OP_ATTN_FULL, lens[i / COUNT(dims)][0], lens[i / COUNT(dims)][1]);
        c.page = c.block = 64;
        c.d_qk = dims[i % COUNT(dims)][0];
        c.d_v = dims[i % COUNT(dims)][1];
        c.n_head = groups[i % COUNT(groups)][0];
        c.n_head_kv = groups[i % COUNT(groups)][1];
        c.sink = i % 3;
        c.data = i % 5 == 4 ? HS_DATA_EQUAL + i / 5 % (HS_DATA_LOW - HS_DATA_EQUAL + 1) : HS_DATA_NORMAL;
        add(l, c);
        c.block = c.top_k = 0; // no scores
        add(l, c);
    }
    static const int tokens[][3][2] = { { { 63, 30 }, { 0, 70 }, { 200, 40 } }, { { 0, 128 }, { 128, 5 }, { 64, 64 } }, { { 130, 1 }, { 0, 1 }, { 10, 60 } } };
    for (int i = 0; i < COUNT(tokens) * 4; i++) {
        struct hs_case c = base(HS_OP_ATTN_FULL, 0, 0);
        c.n_seq = 3;
        for (int s = 0; s < 3; s++) {
            c.past[s] = tokens[i / 4][s][0];
            c.fresh[s] = tokens[i / 4][s][1];
        }
        c.interleave = i % 2;
        c.page = c.block = 64;
        c.d_qk = c.d_v = i / 2 % 2 ? 64 : 128;
        c.n_head = i % 3 ? 8 : 3;
        c.n_head_kv = i % 3 ? 2 : 1;
        c.sink = i % 3;
        add(l, c);
    }
    struct hs_case c = base(HS_OP_ATTN_FULL, 0, 560); // more tiles than multiprocessors: a thread block goes through several
    c.page = c.block = 64;
    c.n_head = 32;
    add(l, c);
}

// Many queries on tensor cores: whole and partial tiles of rows, steps of keys and pages that do not meet, every head shape and both types.
static void prefill_cases(struct hs_case_list * l) {
    static const int dims[][2] = { { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 256, 256 } };
    static const int pages[][2] = { { 64, 64 }, { 16, 64 }, { 48, 16 }, { 50, 32 }, { 7, 128 }, { 64, 48 } }; // { page, block }
    static const int lens[][2] = { { 0, 65 }, { 60, 40 }, { 190, 70 }, { 300, 33 } };
    static const int groups[][2] = { { 4, 4 }, { 4, 1 }, { 7, 1 }, { 9, 1 }, { 24, 2 }, { 64, 1 } };
    for (int i = 0; i < COUNT(dims); i++) {
        for (int x = 0; x < 12; x++) {
            struct hs_case c = base(HS_OP_ATTN_FULL, lens[x % COUNT(lens)][0], lens[x % COUNT(lens)][1]);
            c.d_qk = dims[i][0];
            c.d_v = dims[i][1];
            c.page = pages[x % COUNT(pages)][0];
            c.block = pages[x % COUNT(pages)][1];
            c.n_head = groups[(x + i) % COUNT(groups)][0];
            c.n_head_kv = groups[(x + i) % COUNT(groups)][1];
            c.type_k = c.type_v = x % 2 ? Q8 : F16;
            c.sink = x % 3;
            add(l, c);
            c.type_k = c.type_v = x % 2 ? F16 : Q8;
            add(l, c);
            c.op = HS_OP_ATTN_WINDOW;
            c.window = x % 2 ? 128 : 37;
            add(l, fit_ring(c));
        }
    }
    for (int x = 0; x < 4; x++) { // enough tiles of 128 rows for the large tile; sequences mixed in it
        struct hs_case c = base(HS_OP_ATTN_FULL, 60, 40);
        c.d_qk = c.d_v = 128;
        c.n_head = c.n_head_kv = 200;
        c.page = x < 2 ? 16 : 64;
        c.block = 64;
        if (x % 2) {
            c.n_seq = 3;
            c.past[1] = 130;
            c.fresh[1] = 17;
            c.fresh[2] = 11;
            c.interleave = x == 3;
        }
        add(l, c);
    }
}

// Sparse attention of many tokens: several tiles of them, the shape that ships, a wide group, sequences mixed in a tile.
static void sparse_tile_cases(struct hs_case_list * l) {
    static const int dims[][2] = { { 64, 64 }, { 96, 96 }, { 128, 128 }, { 192, 128 }, { 256, 256 } };
    for (int i = 0; i < COUNT(dims) * 4; i++) {
        struct hs_case c = base(HS_OP_ATTN_SPARSE, 700, i / 4 == 2 ? 150 : 70);
        c.d_qk = dims[i / 4][0];
        c.d_v = dims[i / 4][1];
        c.n_head = 8;
        c.block = c.page = 64;
        c.top_k = 5;
        c.window = 128;
        c.sink = i % 3;
        c.gate = (i + 1) % 3;
        c.type_k = c.type_v = i % 2 ? Q8 : F16;
        add(l, i % 4 < 2 ? with_window(c) : with_forced(c));
        if (i / 4 == 2) {
            c.n_head = 32;
            c.fresh[0] = 40;
            add(l, i % 4 < 2 ? with_window(c) : with_forced(c));
            c.n_head = 8;
            c.n_seq = 3;
            c.past[1] = 0;
            c.past[2] = 300;
            c.fresh[1] = c.fresh[2] = 50;
            c.interleave = i % 2;
            add(l, i % 4 < 2 ? with_window(c) : with_forced(c));
        }
    }
}

// Enough tokens for whole caches to be widened first: q8_0 with a window branch, and with several sequences.
static void wide_cases(struct hs_case_list * l) {
    for (int i = 0; i < 2; i++) {
        struct hs_case c = base(HS_OP_ATTN_SPARSE, 90, i ? 260 : 520);
        c.type_k = c.type_v = Q8;
        c.block = c.page = 64;
        c.window = 70;
        c.n_seq = 1 + i;
        c.fresh[1] = 260;
        c.interleave = i;
        add(l, with_window(c));
    }
}

void hs_cases_of_tiles(struct hs_case_list * l) {
    decode_cases(l);
    full_tile_cases(l);
    prefill_cases(l);
    sparse_tile_cases(l);
    wide_cases(l);
}
