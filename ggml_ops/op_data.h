// The inputs of a case: made on the host from its name, the same for every backend.
#pragma once

#include "op_cases.h"

struct hs_inputs {
    struct hs_case c;
    uint64_t seed;
    int n_tokens, n_pages, max_pages, n_blocks;
    // Cache slots that hold no visible position are NaN in every type, and so are scores of invisible blocks: reading them shows.
    float * q, * sinks, * gates, * scores; // sinks: [n_head, 2], the first row alone for ops with one softmax
    int32_t * table, * pos_seq, * sel;
    void * k_pages, * v_pages, * k_ring, * v_ring;
    float * x, * norm, * add;    // linear: [n_in, n_tokens], [n_in], [n_out[0], n_tokens]
    void * w[HS_LINEAR_MAX];     // linear: packed matrices
};

// 0 on success; -1: out of memory. The window op's rings hold the rows that its pages hold, so that it can be compared with full attention.
int hs_inputs_make(const struct hs_case * c, struct hs_inputs * in);
void hs_inputs_free(struct hs_inputs * in);
