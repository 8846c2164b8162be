// The cases that every backend must pass: shapes, contents and tolerances of one op each.
#pragma once

#include "hs_ops.h"

#define HS_CASE_MAX_SEQ 4
#define HS_CASE_THREADS_MAX 3 // n_threads_max of the nodes under test: runs with more threads show that the extra ones keep out

enum hs_case_data {
    HS_DATA_NORMAL, // logits about N(0, 1)
    HS_DATA_EQUAL,  // every key the same: all scores tie
    HS_DATA_HUGE,   // logits about N(0, 1e4)
    HS_DATA_TINY,   // logits about N(0, 1e-4)
    HS_DATA_LOW,    // logits about -1e4 + N(0, 1)
};
enum hs_case_sink { HS_SINK_OFF, HS_SINK_ON, HS_SINK_MIXED };             // mixed: some heads are HS_SINK_ABSENT
enum hs_case_gate { HS_GATE_OFF, HS_GATE_HEAD, HS_GATE_CHANNEL };
enum hs_case_sel { HS_SEL_FULL, HS_SEL_SHORT, HS_SEL_EMPTY };             // top_k visible blocks; any number of them; none
enum hs_case_against { HS_AGAINST_REF, HS_AGAINST_FULL };                 // the op's own reference, or that of full attention (a property)

struct hs_case {
    enum hs_op_id op;
    int d_qk, d_v, n_head, n_head_kv;
    int n_head_kv_win;              // attn_sparse: 0 = no window branch
    enum ggml_type type_k, type_v;
    int page, ring, block, top_k, window; // attn_full: block 0 = no scores; top_k > 0: select_blocks follows in the same graph
    int n_seq;
    int past[HS_CASE_MAX_SEQ], fresh[HS_CASE_MAX_SEQ]; // tokens in the cache before the ubatch, tokens in the ubatch
    bool interleave;                // tokens of the sequences in turn
    bool forced;
    enum hs_case_data data;
    enum hs_case_sink sink;
    enum hs_case_gate gate;
    enum hs_case_sel sel;
    enum hs_case_against against;
    int n_in, n_out[HS_LINEAR_MAX]; // linear: extents of its matrices, of type_k; fresh[0] tokens; the fields above but `data` are unused
    bool swiglu, norm, add;
};

// All cases, in a malloc'ed array. NULL: out of memory.
struct hs_case * hs_cases(int * n);
// The case as text: its identity, and the seed of its data.
void hs_case_name(const struct hs_case * c, char * out, size_t size);
// Largest NMSE allowed, for the CPU backend or another.
double hs_case_tolerance(const struct hs_case * c, bool cpu);
int hs_case_tokens(const struct hs_case * c);
int hs_case_context(const struct hs_case * c); // longest sequence
