// llama.cpp's choice of a type for each tensor (llama-quantize's _S/_M/_L mixes, without an importance matrix), as a table of rules.
#include "quantize_mix.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "status.h"

static const struct hs_ftype ftypes[] = {
    { "F32",    0,  GGML_TYPE_F32    }, { "F16",    1,  GGML_TYPE_F16    }, { "BF16",   32, GGML_TYPE_BF16   },
    { "Q4_0",   2,  GGML_TYPE_Q4_0   }, { "Q4_1",   3,  GGML_TYPE_Q4_1   }, { "Q5_0",   8,  GGML_TYPE_Q5_0   }, { "Q5_1", 9, GGML_TYPE_Q5_1 },
    { "Q8_0",   7,  GGML_TYPE_Q8_0   }, { "Q2_K",   10, GGML_TYPE_Q2_K   },
    { "Q3_K_S", 11, GGML_TYPE_Q3_K   }, { "Q3_K_M", 12, GGML_TYPE_Q3_K   }, { "Q3_K_L", 13, GGML_TYPE_Q3_K   },
    { "Q4_K_S", 14, GGML_TYPE_Q4_K   }, { "Q4_K_M", 15, GGML_TYPE_Q4_K   }, { "Q5_K_S", 16, GGML_TYPE_Q5_K   }, { "Q5_K_M", 17, GGML_TYPE_Q5_K },
    { "Q6_K",   18, GGML_TYPE_Q6_K   }, { "IQ4_NL", 25, GGML_TYPE_IQ4_NL }, { "IQ4_XS", 30, GGML_TYPE_IQ4_XS }, { "COPY", -1, GGML_TYPE_COUNT },
    { "Q3_K",   12, GGML_TYPE_Q3_K   }, { "Q4_K",   15, GGML_TYPE_Q4_K   }, { "Q5_K",   17, GGML_TYPE_Q5_K   },
};

const struct hs_ftype * hs_ftype_find(const char * name) {
    for (size_t i = 0; i < sizeof ftypes / sizeof *ftypes; i++) {
        if (strcasecmp(ftypes[i].name, name) == 0) return &ftypes[i];
    }
    return NULL;
}

enum ggml_type hs_tensor_type_find(const char * name) {
    for (size_t i = 0; i < sizeof ftypes / sizeof *ftypes; i++) {
        const enum ggml_type t = ftypes[i].type;
        if (t != GGML_TYPE_COUNT && strcasecmp(ggml_type_name(t), name) == 0) return t;
    }
    return GGML_TYPE_COUNT;
}

// --- the rules ---
enum role { OTHER, EMBEDDING, OUTPUT, ATTN_Q, ATTN_K, ATTN_V, ATTN_OUT, FFN_DOWN };

static const struct { const char * part; enum role role; } roles[] = {
    { "attn_qkv.weight", ATTN_V },   { "attn_kv_b.weight", ATTN_V }, { "attn_v.weight", ATTN_V },     // what holds values counts as values
    { "attn_k.weight",   ATTN_K },   { "attn_q.weight",    ATTN_Q }, { "attn_output.weight", ATTN_OUT },
    { "ffn_down",        FFN_DOWN },                                // dense, experts (_exps) and shared experts (_shexp)
};

enum when {
    ALWAYS,
    EXPERTS_8, NOT_EXPERTS_8,            // Mixtral-like: these attention tensors are small beside the experts
    GQA_4,                               // 4 or more query heads share a value head: attn_v is small
    FIRST_2, FIRST_4,                    // by rank among the layers
    FIRST_16TH, FIRST_8TH,
    MORE_BITS,                           // the first and last eighth of the layers, and every third between
};

#define Q(x) (1u << (x))                 // a set of general.file_type numbers
#define ANY  UINT32_MAX

// The first row that fits counts; none: the file type's own type.
static const struct { uint32_t ftypes; enum role role; enum when when; enum ggml_type type; } rules[] = {
    { ANY,               ATTN_V,   EXPERTS_8,     GGML_TYPE_Q8_0 },
    { ANY,               ATTN_K,   EXPERTS_8,     GGML_TYPE_Q8_0 },
    { Q(10),             ATTN_V,   GQA_4,         GGML_TYPE_Q4_K },     // Q2_K
    { Q(10),             ATTN_V,   ALWAYS,        GGML_TYPE_Q3_K },
    { Q(10),             FFN_DOWN, ALWAYS,        GGML_TYPE_Q3_K },
    { Q(10),             ATTN_OUT, NOT_EXPERTS_8, GGML_TYPE_Q3_K },
    { Q(12),             ATTN_V,   FIRST_2,       GGML_TYPE_Q5_K },     // Q3_K_M
    { Q(12),             ATTN_V,   ALWAYS,        GGML_TYPE_Q4_K },
    { Q(12),             FFN_DOWN, FIRST_16TH,    GGML_TYPE_Q5_K },
    { Q(12),             FFN_DOWN, ALWAYS,        GGML_TYPE_Q4_K },
    { Q(12),             ATTN_OUT, NOT_EXPERTS_8, GGML_TYPE_Q4_K },
    { Q(13),             ATTN_V,   ALWAYS,        GGML_TYPE_Q5_K },     // Q3_K_L
    { Q(13),             FFN_DOWN, ALWAYS,        GGML_TYPE_Q5_K },
    { Q(13),             ATTN_OUT, NOT_EXPERTS_8, GGML_TYPE_Q5_K },
    { Q(14),             ATTN_V,   FIRST_4,       GGML_TYPE_Q5_K },     // Q4_K_S
    { Q(14),             FFN_DOWN, FIRST_8TH,     GGML_TYPE_Q5_K },
    { Q(15) | Q(17),     ATTN_V,   MORE_BITS,     GGML_TYPE_Q6_K },     // Q4_K_M, Q5_K_M
    { Q(15) | Q(17),     FFN_DOWN, MORE_BITS,     GGML_TYPE_Q6_K },
    { Q(25) | Q(30),     ATTN_V,   GQA_4,         GGML_TYPE_Q5_K },     // IQ4_NL, IQ4_XS
    { Q(25) | Q(30),     FFN_DOWN, FIRST_8TH,     GGML_TYPE_Q5_K },
    { Q(10) | Q(11) | Q(12) | Q(14) | Q(15) | Q(25) | Q(30), ATTN_OUT, EXPERTS_8, GGML_TYPE_Q5_K },
};

// Rows that are no multiple of a type's block: the nearest type with blocks of 32. What has none goes to F16.
static const struct { enum ggml_type type, instead; } fallbacks[] = {
    { GGML_TYPE_Q2_K, GGML_TYPE_Q4_0 }, { GGML_TYPE_Q3_K, GGML_TYPE_Q4_0 }, { GGML_TYPE_Q4_K,   GGML_TYPE_Q5_0 },
    { GGML_TYPE_Q5_K, GGML_TYPE_Q5_1 }, { GGML_TYPE_Q6_K, GGML_TYPE_Q8_0 }, { GGML_TYPE_IQ4_XS, GGML_TYPE_IQ4_NL },
};

// --- the model ---
static int32_t layer_of(const char * name) {
    int32_t il;
    return sscanf(name, "blk.%" SCNd32 ".", &il) == 1 && il >= 0 ? il : -1;
}

static enum role role_of(const char * name) {
    if (strcmp(name, "output.weight") == 0) return OUTPUT;
    if (strcmp(name, "token_embd.weight") == 0) return EMBEDDING;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        if (strstr(name, roles[i].part)) return roles[i].role;
    }
    return OTHER;
}

// "<architecture>.<key>", an integer or the first of an array; `absent` where there is none (a file need not be a model that we can run).
static int32_t model_int(const hs_gguf * g, const char * key, int32_t absent) {
    const char * arch;
    size_t n;
    char full[160];
    int32_t values[4096];
    int64_t n_values = 0;
    arch = NULL;
    if (hs_gguf_get_str(g, "general.architecture", true, &arch, &n, NULL) != HS_OK || n > 64) return absent;
    snprintf(full, sizeof full, "%.*s.%s", (int) n, arch, key);
    if (hs_gguf_find(g, full) < 0) return absent;
    if (hs_gguf_get_i32(g, full, true, 0, INT32_MAX, values, NULL) == HS_OK) return values[0];
    if (hs_gguf_get_i32_arr(g, full, true, -4096, 0, INT32_MAX, values, &n_values, NULL) == HS_OK && n_values > 0) return values[0];
    return absent;
}

int hs_mix_init(struct hs_mix * m, const hs_gguf * g, const struct hs_ftype * ftype, const hs_quantize_params * p, hs_error * err) {
    *m = (struct hs_mix) { .g = g, .ftype = ftype, .pure = p->pure, .leave_output = p->leave_output_tensor, .tied = true,
                           .output_type = GGML_TYPE_COUNT, .embedding_type = GGML_TYPE_COUNT };
    const struct { const char * name, * value; enum ggml_type * type; } asked[] = {
        { "output_tensor_type", p->output_tensor_type, &m->output_type }, { "token_embedding_type", p->token_embedding_type, &m->embedding_type },
    };
    for (int i = 0; i < 2; i++) {
        if (!asked[i].value) continue;
        *asked[i].type = hs_tensor_type_find(asked[i].value);
        if (*asked[i].type == GGML_TYPE_COUNT) {
            return hs_fail(err, HS_E_ARG, "%s: found \"%.32s\", expected a tensor type such as f16, q8_0, q6_K, iq4_nl", asked[i].name,
                           asked[i].value);
        }
    }
    m->n_layer = model_int(g, "block_count", 0);
    const int64_t n = hs_gguf_n_tensors(g);
    for (int64_t i = 0; i < n; i++) {
        const int32_t il = layer_of(hs_gguf_tensor_at(g, i)->name);
        if (il >= m->n_layer) m->n_layer = il + 1;
    }
    if (m->n_layer > 65536) return hs_fail(err, HS_E_MODEL, "block_count: found %" PRId32 ", expected 65536 or less", m->n_layer);
    m->n_expert = model_int(g, "expert_count", 0);
    const int32_t n_head = model_int(g, "attention.head_count", 0), n_head_kv = model_int(g, "attention.head_count_kv", n_head);
    m->n_gqa = n_head_kv > 0 ? n_head / n_head_kv : 0;

    m->attn_v_rank = malloc(((size_t) m->n_layer + 1) * sizeof *m->attn_v_rank);
    if (!m->attn_v_rank) return hs_fail(err, HS_E_MEMORY, "cannot allocate a table of %" PRId32 " layers", m->n_layer);
    for (int32_t il = 0; il < m->n_layer; il++) m->attn_v_rank[il] = -1;
    for (int64_t i = 0; i < n; i++) {
        const char * name = hs_gguf_tensor_at(g, i)->name;
        const int32_t il = layer_of(name);
        if (role_of(name) == ATTN_V && il >= 0) m->attn_v_rank[il] = 0;
        if (role_of(name) == OUTPUT) m->tied = false;
    }
    for (int32_t il = 0; il < m->n_layer; il++) {
        if (m->attn_v_rank[il] >= 0) m->attn_v_rank[il] = m->n_attn_v++;
    }
    return HS_OK;
}

void hs_mix_free(struct hs_mix * m) {
    free(m->attn_v_rank);
    m->attn_v_rank = NULL;
}

static bool fits(const struct hs_mix * m, enum when when, int32_t rank, int32_t n) {
    switch (when) {
        case ALWAYS:        return true;
        case EXPERTS_8:     return m->n_expert == 8;
        case NOT_EXPERTS_8: return m->n_expert != 8;
        case GQA_4:         return m->n_gqa >= 4;
        case FIRST_2:       return rank >= 0 && rank < 2;
        case FIRST_4:       return rank >= 0 && rank < 4;
        case FIRST_16TH:    return rank >= 0 && rank < n / 16;
        case FIRST_8TH:     return rank >= 0 && rank < n / 8;
        case MORE_BITS:     return rank >= 0 && (rank < n / 8 || rank >= 7 * n / 8 || (rank - n / 8) % 3 == 2);
    }
    return false;
}

// The mix alone, as if every row length were fine.
static enum ggml_type mixed_type(const struct hs_mix * m, const struct hs_gguf_tensor * t, enum role role) {
    const enum ggml_type base = m->ftype->type;
    if (role == OUTPUT || (role == EMBEDDING && m->tied)) {
        if (m->output_type != GGML_TYPE_COUNT) return m->output_type;
        return base == GGML_TYPE_Q8_0 || t->ne[0] % ggml_blck_size(base) != 0 ? GGML_TYPE_Q8_0 : GGML_TYPE_Q6_K;
    }
    const int32_t il = layer_of(t->name);
    const int32_t rank = role == ATTN_V && il >= 0 ? m->attn_v_rank[il] : il, n = role == ATTN_V ? m->n_attn_v : m->n_layer;
    enum ggml_type type = base;
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if ((rules[i].ftypes & Q(m->ftype->number)) && rules[i].role == role && fits(m, rules[i].when, rank, n)) {
            type = rules[i].type;
            break;
        }
    }
    // the shape of Llama 2/3 70B: attn_v is an eighth of attn_q
    const bool is_70b = m->n_layer == 80 && m->n_gqa == 8;
    if (role == ATTN_V && is_70b && (type == GGML_TYPE_Q3_K || type == GGML_TYPE_Q4_K)) type = GGML_TYPE_Q5_K;
    return type;
}

static enum ggml_type with_fallback(enum ggml_type type, int64_t row) {
    for (size_t i = 0; row % ggml_blck_size(type) != 0 && i < sizeof fallbacks / sizeof *fallbacks; i++) {
        if (fallbacks[i].type == type) type = fallbacks[i].instead;
    }
    return row % ggml_blck_size(type) == 0 ? type : GGML_TYPE_F16;
}

// Matrices named *.weight, but for what is small and sensitive: norms, sinks, routers, routing biases, rope factors, convolutions.
static bool may_quantize(const struct hs_mix * m, const struct hs_gguf_tensor * t) {
    static const char * const never[] = { "_norm", "attn_sinks", "ffn_gate_inp", "exp_probs_b", "rope_freqs", "rope_factors", "conv1d" };
    const size_t n = strlen(t->name);
    if (t->ne[1] * t->ne[2] * t->ne[3] <= 1) return false;
    if (n < 6 || strcmp(t->name + n - 6, "weight") != 0) return false;
    for (size_t i = 0; i < sizeof never / sizeof *never; i++) {
        if (strstr(t->name, never[i])) return false;
    }
    if (m->leave_output && strcmp(t->name, "output.weight") == 0) return false;
    return t->type == GGML_TYPE_F32 || ggml_get_type_traits(t->type)->to_float != NULL;     // not integers and the like
}

enum ggml_type hs_mix_type(const struct hs_mix * m, const struct hs_gguf_tensor * t) {
    if (m->ftype->type == GGML_TYPE_COUNT || !may_quantize(m, t)) return t->type;
    const enum role role = role_of(t->name);
    enum ggml_type type = m->ftype->type;
    if (role == EMBEDDING && m->embedding_type != GGML_TYPE_COUNT) {
        type = m->embedding_type;
    } else if (role == OUTPUT && m->output_type != GGML_TYPE_COUNT) {
        type = m->output_type;
    } else if (ggml_is_quantized(type) && !m->pure) {
        type = mixed_type(m, t, role);
    }
    return with_fallback(type, t->ne[0]);
}
