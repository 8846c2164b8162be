// Linear layers on packed weights, as hs_ops.h states them: x rounded to 8 bits in f32, then every weight decoded and multiplied in f64.
#include "../linear.h"
#include "ref.h"

// Value of W[row][col] from the packed bytes.
static double weight(const struct ggml_tensor * w, int64_t row, int64_t col) {
    const enum ggml_type type = w->type;
    const size_t block = ggml_type_size(type) * HS_PACK_ROWS;
    const uint8_t * at = (const uint8_t *) w->data + (size_t) (row / HS_PACK_ROWS * (w->ne[0] / HS_LINEAR_BLOCK) + col / HS_LINEAR_BLOCK) * block;
    const int64_t r = row % HS_PACK_ROWS, c = col % HS_LINEAR_BLOCK;
    ggml_fp16_t half[2] = { 0, 0 };
    memcpy(&half[0], at + 2 * r, 2);
    if (type == GGML_TYPE_Q8_0) {
        return ggml_fp16_to_fp32(half[0]) * (double) (at[2 * HS_PACK_ROWS + (c / 4 * HS_PACK_ROWS + r) * 4 + c % 4] - 128);
    }
    const size_t factors = (type == GGML_TYPE_Q4_1 ? 4 : 2) * HS_PACK_ROWS;
    const int byte = at[factors + (size_t) ((c % 16 / 4 * HS_PACK_ROWS + r) * 4 + c % 4)], u = c < 16 ? byte & 15 : byte >> 4;
    if (type == GGML_TYPE_Q4_0) {
        return ggml_fp16_to_fp32(half[0]) * (double) (u - 8);
    }
    memcpy(&half[1], at + 2 * (HS_PACK_ROWS + r), 2);
    return ggml_fp16_to_fp32(half[0]) * (double) u + ggml_fp16_to_fp32(half[1]);
}

struct token { const float * x, * norm; float scale; };

static struct token token_of(const struct ggml_tensor * dst, int64_t t) {
    const struct ggml_tensor * x = dst->src[HS_LINEAR_X], * norm = dst->src[HS_LINEAR_NORM];
    struct token k = { (const float *) x->data + t * x->ne[0], norm ? norm->data : NULL, 1.0f };
    double sum = 0.0;
    for (int64_t i = 0; i < x->ne[0]; i++) {
        sum += (double) k.x[i] * k.x[i];
    }
    k.scale = norm ? 1.0f / sqrtf((float) (sum / (double) x->ne[0]) + hs_op_node_params(dst)->eps) : 1.0f;
    return k;
}

static float normed(const struct token * t, int64_t col) {
    return t->norm ? t->x[col] * t->scale * t->norm[col] : t->x[col];
}

// Column `col` of a token after rounding.
static double rounded(const struct token * t, int64_t col) {
    float most = 0.0f;
    for (int64_t i = 0; i < HS_LINEAR_BLOCK; i++) {
        most = fmaxf(most, fabsf(normed(t, col / HS_LINEAR_BLOCK * HS_LINEAR_BLOCK + i)));
    }
    return most > 1e-30f ? (double) rintf(normed(t, col) * (127.0f / most)) * (double) (most / 127.0f) : 0.0;
}

static double product(const struct ggml_tensor * w, int64_t row, const struct token * t) {
    double sum = 0.0;
    for (int64_t c = 0; c < w->ne[0]; c++) {
        sum += weight(w, row, c) * rounded(t, c);
    }
    return sum;
}

void hs_ref_linear(struct ggml_tensor * dst, int ith, int nth, void * userdata) {
    (void) nth;
    if (ith != 0) {
        return;
    }
    const struct hs_op_params * p = userdata;
    const struct ggml_tensor * x = dst->src[HS_LINEAR_X], * add = dst->src[HS_LINEAR_ADD];
    float * out = dst->data;
    for (int i = 0; i < (p->swiglu ? 1 : HS_LINEAR_MAX) && dst->src[HS_LINEAR_W0 + i]; i++) {
        const struct ggml_tensor * w = dst->src[HS_LINEAR_W0 + i], * up = p->swiglu ? dst->src[HS_LINEAR_W0 + 1] : NULL;
        for (int64_t t = 0; t < x->ne[1]; t++) {
            const struct token token = token_of(dst, t);
            for (int64_t r = 0; r < w->ne[1]; r++) {
                const double y = product(w, r, &token), sum = add ? y + ((const float *) add->data)[t * w->ne[1] + r] : y;
                *out++ = (float) (up ? y / (1.0 + exp(-y)) * product(up, r, &token) : sum);
            }
        }
    }
}
