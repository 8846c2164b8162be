// Timing of the ops beside ggml's own attention and beside what the machine can do. The engine of bench/ops.py.
#pragma once

#include "ggml-backend.h"

#include <regex.h>
#include <stdbool.h>

struct hs_perf_options {
    int threads, rounds;         // 0: 2 threads, 7 rounds
    bool json;                   // one object a line instead of text
    const regex_t * only;        // groups whose text matches; NULL: all
    const char * const * groups; // "SPEC | SPEC | ..." (op_perf_node.h); n_groups 0: a list of its own
    int n_groups;
};

// Times every group: the nodes of one group in turn, in each of the rounds, in alternating order. A sample is the mean of as many runs as fill
// 20 ms. JSON: a first line with "level", "threads", "rounds" and "fma_per_s"; then a line a group: "group" and "nodes", each with "spec",
// "bytes", "flops", "read_us" and "fma_us" (the floors: bytes at the speed measured for a buffer of that size; flops at the peak of f32
// multiply-adds), "us" (a list, one a round), and "nmse" against the first node where both compute the same (null elsewhere).
// On a device a graph holds the node many times (op_perf_node.h), a sample is 20 ms of such graphs launched before the device is waited for, times
// are those of one node, and the floors are null.
// 0 on success; 1: a node could not be made (said in its place, "error"), or a group is no list of specs.
int hs_perf(ggml_backend_t backend, const struct hs_perf_options * o);
