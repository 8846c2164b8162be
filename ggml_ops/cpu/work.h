// How much scratch a thread of the CPU attention kernels needs.
#pragma once
#include <stdint.h>
static inline int64_t hs_attn_work_elems(int64_t d_qk, int64_t d_v, int64_t n_rep, int64_t n_tokens, int64_t n_blocks) {
    (void) d_qk; (void) d_v; (void) n_rep; (void) n_tokens; (void) n_blocks;
    return 0;
}
