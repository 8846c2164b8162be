// The largest of some logits. Included once per level.
#pragma once

#include "sub.h"

static float few_max(const float * s, int32_t n) {
    float best = HS_MASKED;
    int32_t j = 0;
    if (n >= VL) {
        vf v = vf_load(s);
        for (j = VL; j + VL <= n; j += VL) {
            v = vf_max(v, vf_load(s + j));
        }
        best = vf_hmax(v);
    }
    for (; j < n; j++) {
        best = s[j] > best ? s[j] : best;
    }
    return best;
}
