// Attention of few queries: the kernels of f16 caches.
#include "decode_kernel.cuh"

hs_decode_shape hs_decode_f16(int d_qk, int d_v, int n_rep) {
    if (d_qk == 192 && d_v == 128) {
        return decode_shape<192, 128, false>(n_rep);
    }
    switch (d_qk == d_v ? d_qk : 0) {
        case 32:  return decode_shape<32, 32, false>(n_rep);
        case 64:  return decode_shape<64, 64, false>(n_rep);
        case 96:  return decode_shape<96, 96, false>(n_rep);
        case 128: return decode_shape<128, 128, false>(n_rep);
        case 256: return decode_shape<256, 256, false>(n_rep);
        default:  return {};
    }
}
