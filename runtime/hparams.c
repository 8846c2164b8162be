// GGUF keys -> hyperparameters. The only file that knows key names; every value is ranged here, so later code computes without checks.
#include "hparams.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "status.h"

static const char * const arch_names[HS_ARCH_COUNT] = {"hysparse", "llama", "qwen2", "qwen3", "mimo2"};
static const char * const rope_suffixes[HS_ROPE_COUNT] = {"", "_sparse", "_swa"};

const char * hs_arch_name(enum hs_arch arch) { return arch_names[arch]; }
const char * hs_rope_suffix(enum hs_rope_set set) { return rope_suffixes[set]; }

enum { KEY_MAX = 128, DIM_MAX = 1 << 24 };

// A key of this architecture: "llama.block_count".
struct keys { char buf[KEY_MAX]; const char * arch; };
static const char * key(struct keys * k, const char * fmt, const char * arg) {
    int n = snprintf(k->buf, sizeof k->buf, "%s.", k->arch);
    snprintf(k->buf + n, sizeof k->buf - (size_t) n, fmt, arg);
    return k->buf;
}
#define KEY(name) key(&k, "%s", name)

static int read_arch(const hs_gguf * g, enum hs_arch * out, hs_error * err) {
    const char * s = NULL; size_t n = 0;
    HS_TRY(hs_gguf_get_str(g, "general.architecture", true, &s, &n, err));
    for (int i = 0; i < HS_ARCH_COUNT; i++) {
        if (strlen(arch_names[i]) == n && memcmp(arch_names[i], s, n) == 0) {
            *out = (enum hs_arch) i;
            return HS_OK;
        }
    }
    return hs_fail(err, HS_E_MODEL, "general.architecture: found '%.*s', expected hysparse, llama, qwen2, qwen3 or mimo2", n > 60 ? 60 : (int) n, s);
}

static int check_positive(hs_error * err, const char * name, float v) {
    if (!(v > 0.0f) || !isfinite(v)) return hs_fail(err, HS_E_MODEL, "%s: found %g, expected a finite number above 0", name, (double) v);
    return HS_OK;
}

// One RoPE set. Sets after the first inherit the first one whole, unless they have a freq_base of their own (then they are unscaled by default).
static int read_rope(const hs_gguf * g, struct hs_hparams * hp, enum hs_rope_set set, int32_t head_dim, struct keys k, hs_error * err) {
    const char * suf = rope_suffixes[set];
    struct hs_rope * r = &hp->rope[set];
    float base = 10000.0f;
    const bool given = hs_gguf_find(g, key(&k, "rope.freq_base%s", suf)) >= 0, own = set == HS_ROPE_FULL || given;
    HS_TRY(hs_gguf_get_f32(g, key(&k, "rope.freq_base%s", suf), false, &base, err));
    if (own) {
        *r = (struct hs_rope) { .n_rot = head_dim, .mode = hp->arch == HS_ARCH_LLAMA ? GGML_ROPE_TYPE_NORMAL : GGML_ROPE_TYPE_NEOX,
            .freq_base = base, .freq_scale = 1.0f, .attn_factor = 1.0f, .beta_fast = 32.0f, .beta_slow = 1.0f,
            .n_ctx_orig = hp->n_ctx_train, .factors_of = (int32_t) set };
        if (set != HS_ROPE_FULL) r->n_rot = hp->rope[HS_ROPE_FULL].n_rot;
        HS_TRY(check_positive(err, key(&k, "rope.freq_base%s", suf), r->freq_base));
    } else {
        *r = hp->rope[HS_ROPE_FULL];
    }
    if (r->n_rot > head_dim) r->n_rot = head_dim;
    HS_TRY(hs_gguf_get_i32(g, key(&k, "rope.dimension_count%s", suf), false, 0, head_dim, &r->n_rot, err));
    if (!own && r->n_rot > hp->rope[HS_ROPE_FULL].n_rot && hs_gguf_find_tensor(g, "rope_freqs.weight") >= 0) { // too few factors
        return hs_fail(err, HS_E_MODEL, "%s: found %d, expected at most %d, the rope.dimension_count that rope_freqs.weight is for",
            key(&k, "rope.dimension_count%s", suf), r->n_rot, hp->rope[HS_ROPE_FULL].n_rot);
    }
    if (r->n_rot % 2) return hs_fail(err, HS_E_MODEL, "%s: found %d, expected an even number", key(&k, "rope.dimension_count%s", suf), r->n_rot);
    if (!own) return HS_OK;

    const char * type = NULL; size_t n = 0;
    float factor = 1.0f;
    HS_TRY(hs_gguf_get_str(g, key(&k, "rope.scaling%s.type", suf), false, &type, &n, err));
    HS_TRY(hs_gguf_get_f32(g, key(&k, "rope.scaling%s.factor", suf), false, &factor, err));
    if (!(factor > 1e-30f)) { // so that its inverse is finite
        return hs_fail(err, HS_E_MODEL, "%s: found %g, expected a finite number above 0", key(&k, "rope.scaling%s.factor", suf), (double) factor);
    }
    const bool linear = type && n == 6 && memcmp(type, "linear", 6) == 0;
    const bool yarn   = type && n == 4 && memcmp(type, "yarn", 4) == 0;
    if (type && !linear && !yarn && !(n == 4 && memcmp(type, "none", 4) == 0)) {
        return hs_fail(err, HS_E_MODEL, "%s: found '%.*s', expected none, linear or yarn", key(&k, "rope.scaling%s.type", suf), n > 60 ? 60 : (int) n, type);
    }
    if (linear || yarn) r->freq_scale = 1.0f / factor;
    if (yarn) {
        r->ext_factor = 1.0f;
        HS_TRY(hs_gguf_get_f32(g, key(&k, "rope.scaling%s.yarn_ext_factor", suf), false, &r->ext_factor, err));
        HS_TRY(hs_gguf_get_f32(g, key(&k, "rope.scaling%s.yarn_beta_fast", suf), false, &r->beta_fast, err));
        HS_TRY(hs_gguf_get_f32(g, key(&k, "rope.scaling%s.yarn_beta_slow", suf), false, &r->beta_slow, err));
        HS_TRY(hs_gguf_get_i32(g, key(&k, "rope.scaling%s.original_context_length", suf), false, 1, INT32_MAX, &r->n_ctx_orig, err));
    }
    HS_TRY(hs_gguf_get_f32(g, key(&k, "rope.scaling%s.attn_factor", suf), false, &r->attn_factor, err));
    return check_positive(err, key(&k, "rope.scaling%s.attn_factor", suf), r->attn_factor);
}

static int check_head_dim(hs_error * err, const char * name, int32_t d) {
    if (d < 32 || d > 256 || d % 32) return hs_fail(err, HS_E_MODEL, "%s: found %d, expected a multiple of 32 from 32 to 256", name, d);
    return HS_OK;
}

static int read_heads(const hs_gguf * g, struct hs_hparams * hp, struct keys k, hs_error * err) {
    const int32_t n = hp->n_layer_file;
    HS_TRY(hs_gguf_get_i32_arr(g, KEY("attention.head_count"), true, n, 1, 65536, hp->n_head, NULL, err));
    memcpy(hp->n_head_kv, hp->n_head, sizeof hp->n_head);
    HS_TRY(hs_gguf_get_i32_arr(g, KEY("attention.head_count_kv"), false, n, 1, 65536, hp->n_head_kv, NULL, err));
    for (int32_t il = 0; il < n; il++) {
        if (hp->n_head[il] % hp->n_head_kv[il]) {
            return hs_fail(err, HS_E_MODEL, "%s: found %d in layer %d, expected a divisor of head_count %d", KEY("attention.head_count_kv"),
                hp->n_head_kv[il], il, hp->n_head[il]);
        }
    }
    hp->head_dim_k = hp->n_embd / hp->n_head[0];
    HS_TRY(hs_gguf_get_i32(g, KEY("attention.key_length"), false, 1, DIM_MAX, &hp->head_dim_k, err));
    hp->head_dim_v = hp->head_dim_k;
    HS_TRY(hs_gguf_get_i32(g, KEY("attention.value_length"), false, 1, DIM_MAX, &hp->head_dim_v, err));
    hp->head_dim_k_swa = hp->head_dim_k;
    hp->head_dim_v_swa = hp->head_dim_v;
    HS_TRY(hs_gguf_get_i32(g, KEY("attention.key_length_swa"), false, 1, DIM_MAX, &hp->head_dim_k_swa, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("attention.value_length_swa"), false, 1, DIM_MAX, &hp->head_dim_v_swa, err));
    HS_TRY(check_head_dim(err, KEY("attention.key_length"), hp->head_dim_k));
    HS_TRY(check_head_dim(err, KEY("attention.value_length"), hp->head_dim_v));
    HS_TRY(check_head_dim(err, KEY("attention.key_length_swa"), hp->head_dim_k_swa));
    return check_head_dim(err, KEY("attention.value_length_swa"), hp->head_dim_v_swa);
}

static int read_moe(const hs_gguf * g, struct hs_hparams * hp, struct keys k, hs_error * err) {
    struct hs_moe_hparams * m = &hp->moe;
    const bool mimo2 = hp->arch == HS_ARCH_MIMO2;
    *m = (struct hs_moe_hparams) { .n_group = 1, .n_group_used = 1, .gating = mimo2 ? HS_GATING_SIGMOID : HS_GATING_SOFTMAX,
        .norm_weights = mimo2, .weight_scale = 1.0f };
    HS_TRY(hs_gguf_get_i32(g, KEY("expert_count"), false, 0, 4096, &m->n_expert, err));
    if (m->n_expert == 0) return HS_OK;
    if (hp->arch != HS_ARCH_HYSPARSE && !mimo2) {
        return hs_fail(err, HS_E_MODEL, "%s: found %d, expected 0: experts are supported in hysparse and mimo2 files", KEY("expert_count"), m->n_expert);
    }
    HS_TRY(hs_gguf_get_i32(g, KEY("expert_used_count"), true, 1, m->n_expert, &m->n_expert_used, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("expert_feed_forward_length"), true, 1, DIM_MAX, &m->n_ff_exp, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("expert_shared_count"), false, 0, 4096, &m->n_expert_shared, err));
    const int64_t n_ff_shared = (int64_t) m->n_expert_shared * m->n_ff_exp;
    if (n_ff_shared > DIM_MAX) {
        return hs_fail(err, HS_E_MODEL, "%s: found %d with expert_feed_forward_length %d, expected a product of at most %d", KEY("expert_shared_count"),
            m->n_expert_shared, m->n_ff_exp, DIM_MAX);
    }
    m->n_ff_shexp = (int32_t) n_ff_shared;
    if (m->n_expert_shared) HS_TRY(hs_gguf_get_i32(g, KEY("expert_shared_feed_forward_length"), false, 1, DIM_MAX, &m->n_ff_shexp, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("expert_gating_func"), false, 1, 2, &m->gating, err));
    HS_TRY(hs_gguf_get_bool(g, KEY("expert_weights_norm"), false, &m->norm_weights, err));
    HS_TRY(hs_gguf_get_f32(g, KEY("expert_weights_scale"), false, &m->weight_scale, err));
    if (m->weight_scale == 0.0f) m->weight_scale = 1.0f; // llama.cpp's files write 0 for "none"
    HS_TRY(hs_gguf_get_i32(g, KEY("expert_group_count"), false, 0, m->n_expert, &m->n_group, err));
    if (m->n_group == 0) m->n_group = 1;
    m->n_group_used = m->n_group;
    HS_TRY(hs_gguf_get_i32(g, KEY("expert_group_used_count"), false, 0, m->n_group, &m->n_group_used, err));
    if (m->n_group_used == 0) m->n_group_used = m->n_group;
    if (m->n_expert % m->n_group) {
        return hs_fail(err, HS_E_MODEL, "%s: found %d, expected a divisor of expert_count %d", KEY("expert_group_count"), m->n_group, m->n_expert);
    }
    const int32_t per_group = m->n_expert / m->n_group;
    if (m->n_group > 1 && (per_group < 2 || m->n_group_used * per_group < m->n_expert_used)) {
        return hs_fail(err, HS_E_MODEL, "%s: found %d of %d groups with %d experts each, expected at least %d experts in them and 2 in each",
            KEY("expert_group_used_count"), m->n_group_used, m->n_group, per_group, m->n_expert_used);
    }
    return HS_OK;
}

// The layer description of SPEC 5, as the file states it. layer_plan.c checks that it is consistent.
static int read_layers(const hs_gguf * g, struct hs_hparams * hp, struct keys k, hs_error * err) {
    const int32_t n = hp->n_layer_file;
    for (int32_t il = 0; il < n; il++) {
        hp->kv_source[il] = il;
        hp->selection_source[il] = -1;
        hp->is_moe[il] = hp->moe.n_expert > 0;
    }
    if (hp->arch == HS_ARCH_MIMO2) {
        int32_t sliding[HS_MAX_LAYER];
        HS_TRY(hs_gguf_get_i32_arr(g, KEY("attention.sliding_window_pattern"), true, n, 0, 1, sliding, NULL, err));
        bool any = false;
        for (int32_t il = 0; il < n; il++) {
            char router[48]; // no key tells which layers are dense: those without a router
            snprintf(router, sizeof router, "blk.%d.ffn_gate_inp.weight", il);
            hp->is_moe[il] = hp->is_moe[il] && hs_gguf_find_tensor(g, router) >= 0;
            if (!sliding[il]) continue;
            any = any || il < hp->n_layer;
            hp->kv_source[il] = -1;
            hp->local[il] = 1;
        }
        return hs_gguf_get_i32(g, KEY("attention.sliding_window"), any, 1, 1 << 20, &hp->window, err);
    }
    if (hp->arch != HS_ARCH_HYSPARSE) return HS_OK;
    HS_TRY(hs_gguf_get_i32_arr(g, KEY("attention.kv_source"), true, n, -1, n - 1, hp->kv_source, NULL, err));
    HS_TRY(hs_gguf_get_i32_arr(g, KEY("attention.selection_source"), true, n, -1, n - 1, hp->selection_source, NULL, err));
    HS_TRY(hs_gguf_get_i32_arr(g, KEY("attention.local"), true, n, 0, 2, hp->local, NULL, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("attention.gate"), false, 0, 2, &hp->gate, err));
    HS_TRY(hs_gguf_get_i32_arr(g, KEY("expert_layers"), false, n, 0, 1, hp->is_moe, NULL, err));
    bool local = false, selects = false;
    for (int32_t il = 0; il < n; il++) {
        local = local || hp->local[il] != 0;
        selects = selects || hp->selection_source[il] >= 0;
        if (hp->is_moe[il] && hp->moe.n_expert == 0) {
            return hs_fail(err, HS_E_MODEL, "%s: layer %d is 1 (MoE), but expert_count is 0 or absent", KEY("expert_layers"), il);
        }
    }
    HS_TRY(hs_gguf_get_i32(g, KEY("attention.sliding_window"), local, 1, 1 << 20, &hp->window, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("attention.sparse.block_size"), selects, 1, 1 << 16, &hp->block_size, err));
    return hs_gguf_get_i32(g, KEY("attention.sparse.top_k_blocks"), selects, 1, 1 << 20, &hp->top_k_blocks, err);
}

static int read_oracle(const hs_gguf * g, struct hs_hparams * hp, hs_error * err) {
    int64_t n = 0;
    HS_TRY(hs_gguf_get_i32_arr(g, "hysparse.oracle.full_layers", false, -HS_MAX_LAYER, 0, hp->n_layer - 1, hp->oracle_layers, &n, err));
    hp->n_oracle_layers = (int32_t) n;
    HS_TRY(hs_gguf_get_i32(g, "hysparse.oracle.block_size", false, 1, 1 << 16, &hp->oracle_block_size, err));
    HS_TRY(hs_gguf_get_i32(g, "hysparse.oracle.top_k_tokens", false, 1, 1 << 24, &hp->oracle_top_k_tokens, err));
    return hs_gguf_get_i32(g, "hysparse.oracle.window", false, 1, 1 << 20, &hp->oracle_window, err);
}

int hs_hparams_read(const hs_gguf * g, struct hs_hparams * hp, hs_error * err) {
    memset(hp, 0, sizeof *hp);
    HS_TRY(read_arch(g, &hp->arch, err));
    struct keys k = { .arch = arch_names[hp->arch] };
    int32_t n_mtp = 0;
    HS_TRY(hs_gguf_get_i32(g, KEY("block_count"), true, 1, HS_MAX_LAYER, &hp->n_layer_file, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("nextn_predict_layers"), false, 0, hp->n_layer_file - 1, &n_mtp, err));
    hp->n_layer = hp->n_layer_file - n_mtp;
    HS_TRY(hs_gguf_get_i32(g, KEY("context_length"), true, 1, 1 << 30, &hp->n_ctx_train, err));
    HS_TRY(hs_gguf_get_i32(g, KEY("embedding_length"), true, 1, DIM_MAX, &hp->n_embd, err));
    HS_TRY(hs_gguf_get_f32(g, KEY("attention.layer_norm_rms_epsilon"), true, &hp->rms_eps, err));
    HS_TRY(check_positive(err, KEY("attention.layer_norm_rms_epsilon"), hp->rms_eps));
    hp->value_scale = 1.0f;
    HS_TRY(hs_gguf_get_f32(g, KEY("attention.value_scale"), false, &hp->value_scale, err));
    HS_TRY(check_positive(err, KEY("attention.value_scale"), hp->value_scale));
    HS_TRY(read_heads(g, hp, k, err));
    HS_TRY(read_moe(g, hp, k, err));
    HS_TRY(hs_gguf_get_i32_arr(g, KEY("feed_forward_length"), hp->moe.n_expert == 0, hp->n_layer_file, 0, DIM_MAX, hp->n_ff, NULL, err));
    HS_TRY(read_rope(g, hp, HS_ROPE_FULL, hp->head_dim_k, k, err));
    HS_TRY(read_rope(g, hp, HS_ROPE_SPARSE, hp->head_dim_k, k, err));
    HS_TRY(read_rope(g, hp, HS_ROPE_SWA, hp->head_dim_k_swa, k, err));
    HS_TRY(read_layers(g, hp, k, err));
    return read_oracle(g, hp, err);
}
