// Attention of few queries: the kernels of q8_0 caches. Rows of 32 and 96 channels lie on multiples of 2 bytes only, too few for cp.async.
#include "decode_kernel.cuh"

hs_decode_shape hs_decode_q8(int d_qk, int d_v, int n_rep) {
    if (d_qk == 192 && d_v == 128) {
        return decode_shape<192, 128, true>(n_rep);
    }
    switch (d_qk == d_v ? d_qk : 0) {
        case 64:  return decode_shape<64, 64, true>(n_rep);
        case 128: return decode_shape<128, 128, true>(n_rep);
        case 256: return decode_shape<256, 256, true>(n_rep);
        default:  return {};
    }
}
