// Path -> model: open, read hyperparameters, plan the layers, bind the weights.
#include "model.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"
#include "status.h"

hs_model_params hs_model_default_params(void) {
    return (hs_model_params) { .use_mmap = true, .repack = true, .n_gpu_layers = -1 };
}

// Hyperparameters, plan and tensor table, plus the first bytes of each tensor: two fine-tunes of one shape differ.
static int compute_fingerprint(struct hs_model * m, hs_error * err) {
    uint64_t h = HS_HASH_INIT;
    const struct hs_hparams * hp = &m->hp;
    const int32_t ints[] = { hp->arch, hp->n_layer, hp->n_embd, hp->n_vocab, m->plan.window, m->plan.block_size, m->plan.top_k, m->plan.page_size };
    const float floats[] = { hp->rms_eps, hp->value_scale, hp->rope[0].freq_base, hp->rope[1].freq_base, hp->rope[2].freq_base };
    h = hs_hash(hs_hash(h, ints, sizeof ints), floats, sizeof floats);
    for (int r = 0; r < HS_ROPE_COUNT; r++) {
        const struct hs_rope * q = &hp->rope[r];
        const float rope[] = { (float) q->n_rot, q->freq_scale, q->ext_factor, q->attn_factor, q->beta_fast, q->beta_slow, (float) q->n_ctx_orig };
        h = hs_hash(h, rope, sizeof rope);
    }
    const struct hs_moe_hparams * e = &hp->moe;
    const int32_t moe[] = { e->n_expert_used, e->n_group, e->n_group_used, e->gating, e->norm_weights };
    h = hs_hash(hs_hash(h, moe, sizeof moe), &e->weight_scale, sizeof e->weight_scale);
    for (int32_t il = 0; il < hp->n_layer; il++) {
        const struct hs_layer * l = &m->plan.layers[il];
        const int32_t row[] = { (int32_t) l->kind, l->kv_source, l->selection_source, (int32_t) l->local, (int32_t) l->gate, l->n_head, l->n_head_kv, l->head_dim_k, l->head_dim_v };
        h = hs_hash(h, row, sizeof row);
    }
    for (int64_t i = 0; i < hs_gguf_n_tensors(m->gguf); i++) {
        const struct hs_gguf_tensor * t = hs_gguf_tensor_at(m->gguf, i);
        uint8_t head[64];
        const uint64_t n = t->size < sizeof head ? t->size : sizeof head;
        HS_TRY(hs_gguf_read_tensor(m->gguf, t, 0, n, head, err));
        h = hs_hash(h, t->name, strlen(t->name));
        h = hs_hash(h, &t->type, sizeof t->type);
        h = hs_hash(h, t->ne, sizeof t->ne);
        h = hs_hash(h, head, (size_t) n);
    }
    m->fingerprint = h;
    return HS_OK;
}

// general.file_type's names (llama.cpp's numbers); a file without it is named after the type that most of its bytes have.
static void name_ftype(struct hs_model * m) {
    static const struct { int32_t id; const char * name; } known[] = {
        {0, "F32"}, {1, "F16"}, {2, "Q4_0"}, {3, "Q4_1"}, {7, "Q8_0"}, {8, "Q5_0"}, {9, "Q5_1"}, {10, "Q2_K"}, {11, "Q3_K_S"}, {12, "Q3_K_M"},
        {13, "Q3_K_L"}, {14, "Q4_K_S"}, {15, "Q4_K_M"}, {16, "Q5_K_S"}, {17, "Q5_K_M"}, {18, "Q6_K"}, {25, "IQ4_NL"}, {30, "IQ4_XS"}, {32, "BF16"} };
    int32_t id = -1;
    hs_gguf_get_i32(m->gguf, "general.file_type", false, 0, 1 << 20, &id, NULL);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].id == id) {
            strcpy(m->ftype, known[i].name);
            return;
        }
    }
    uint64_t bytes[GGML_TYPE_COUNT] = {0};
    int best = 0;
    for (int64_t i = 0; i < hs_gguf_n_tensors(m->gguf); i++) {
        const struct hs_gguf_tensor * t = hs_gguf_tensor_at(m->gguf, i);
        bytes[t->type] += t->size;
        if (bytes[t->type] > bytes[best]) best = (int) t->type;
    }
    const char * s = ggml_type_name((enum ggml_type) best);
    size_t n = 0;
    for (; s[n] && n + 1 < sizeof m->ftype; n++) m->ftype[n] = (char) toupper((unsigned char) s[n]);
    m->ftype[n] = 0;
}

// Token ids that the file names must exist, whatever tokenizer uses them later.
static int check_vocab(struct hs_model * m, hs_error * err) {
    static const char * const ids[] = { "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep" };
    const int32_t n_vocab = m->hp.n_vocab;
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        char key[64];
        int32_t id = 0;
        strcpy(key, "tokenizer.ggml.");
        strcat(strcat(key, ids[i]), "_token_id");
        const int64_t at = hs_gguf_find(m->gguf, key);
        if (at >= 0 && hs_gguf_kv_type(m->gguf, at) == HS_GGUF_U32) { // llama.cpp writes 0xFFFFFFFF for "none"
            uint32_t raw;
            size_t size;
            memcpy(&raw, hs_gguf_raw(m->gguf, at, &size), sizeof raw);
            if (raw == UINT32_MAX) continue;
        }
        HS_TRY(hs_gguf_get_i32(m->gguf, key, false, 0, n_vocab - 1, &id, err));
    }
    const int64_t tokens = hs_gguf_find(m->gguf, "tokenizer.ggml.tokens");
    if (tokens >= 0) {
        if (hs_gguf_kv_type(m->gguf, tokens) != HS_GGUF_ARR || hs_gguf_arr_type(m->gguf, tokens) != HS_GGUF_STR) {
            return hs_fail(err, HS_E_MODEL, "tokenizer.ggml.tokens: is not an array of strings");
        }
        const uint64_t n = hs_gguf_arr_len(m->gguf, tokens);
        if (n != (uint64_t) n_vocab) {
            return hs_fail(err, HS_E_MODEL, "tokenizer.ggml.tokens: has %llu entries, expected %d, the rows of token_embd.weight", (unsigned long long) n, n_vocab);
        }
    }
    return HS_OK;
}

// SmolLM2-135M, the demo: the calibrated list of SPEC 5 stands here because its file was made elsewhere and has none.
static void demo_oracle_list(struct hs_hparams * hp) {
    static const int32_t list[] = {0, 3, 7, 8, 14, 18, 20, 23};
    if (hp->n_oracle_layers || hp->arch != HS_ARCH_LLAMA || hp->n_layer != 30 || hp->n_embd != 576 || hp->n_ctx_train != 8192 || hp->n_head[0] != 9 || hp->n_head_kv[0] != 3) return;
    memcpy(hp->oracle_layers, list, sizeof list);
    hp->n_oracle_layers = (int32_t) (sizeof list / sizeof *list);
}

static int load(struct hs_model * m, const char * path, const hs_model_params * p, hs_error * err) {
    if (p->oracle < 0 || p->oracle > 2) return hs_fail(err, HS_E_ARG, "oracle: found %d, expected 0, 1 or 2", p->oracle);
    if (p->oracle == 2 && (!p->oracle_full_layers || p->n_oracle_full_layers < 1)) return hs_fail(err, HS_E_ARG, "oracle 2: oracle_full_layers is empty, expected a list");
    HS_TRY(hs_gguf_open(path, p->use_mmap, &m->gguf, err));
    HS_TRY(hs_hparams_read(m->gguf, &m->hp, err));
    demo_oracle_list(&m->hp);
    const struct hs_oracle_request rq = { .full_layers = p->oracle == 2 ? p->oracle_full_layers : NULL, .n_full_layers = p->n_oracle_full_layers,
        .block_size = p->oracle_block_size, .top_k_tokens = p->oracle_top_k_tokens, .window = p->oracle_window };
    HS_TRY(hs_layer_plan_build(&m->hp, p->oracle ? &rq : NULL, &m->plan, err));
    HS_TRY(hs_placement_make(m->gguf, &m->hp, &m->plan, p, &m->placement, err));
    const struct hs_weights_params wp = { .repack = p->repack, .check = p->check_tensors, .progress = p->progress, .progress_user = p->progress_user };
    HS_TRY(hs_weights_load(m->gguf, &m->hp, &m->plan, &m->placement, &wp, &m->weights, err));
    HS_TRY(check_vocab(m, err));
    HS_TRY(compute_fingerprint(m, err));
    const char * s = NULL; size_t n = 0;
    hs_gguf_get_str(m->gguf, "general.name", false, &s, &n, NULL);
    if (n >= sizeof m->name) n = sizeof m->name - 1;
    if (s) memcpy(m->name, s, n);
    name_ftype(m);
    return HS_OK;
}

int hs_model_load(const char * path, const hs_model_params * p, hs_model ** out, hs_error * err) {
    if (!path || !out) return hs_fail(err, HS_E_ARG, "hs_model_load: %s is NULL", path ? "out" : "path");
    const hs_model_params defaults = hs_model_default_params();
    struct hs_model * m = calloc(1, sizeof *m);
    if (!m) return hs_fail(err, HS_E_MEMORY, "cannot allocate %zu bytes for a model", sizeof *m);
    const int rc = load(m, path, p ? p : &defaults, err);
    if (rc != HS_OK) {
        hs_model_free(m);
        return rc;
    }
    *out = m;
    return hs_ok(err);
}

void hs_model_free(hs_model * m) {
    if (!m) return;
    hs_weights_free(&m->weights);
    hs_layer_plan_free(&m->plan);
    hs_gguf_free(m->gguf);
    free(m);
}

const hs_gguf * hs_model_gguf(const hs_model * m) { return m->gguf; }

void hs_model_info_get(const hs_model * m, hs_model_info * out) {
    const struct hs_hparams * hp = &m->hp;
    *out = (hs_model_info) { .arch = hs_arch_name(hp->arch), .name = m->name, .ftype = m->ftype, .n_layer = hp->n_layer, .n_embd = hp->n_embd,
        .n_vocab = hp->n_vocab, .n_head = hp->n_head[0], .n_ctx_train = hp->n_ctx_train, .n_expert = hp->moe.n_expert, .n_expert_used = hp->moe.n_expert_used,
        .block_size = m->plan.block_size, .top_k_blocks = m->plan.top_k, .window = m->plan.window, .oracle = m->plan.oracle,
        .n_params = m->weights.n_params, .weight_bytes = m->weights.bytes, .fingerprint = m->fingerprint,
        .n_gpu_layers = m->placement.n_gpu_layers, .placement = m->placement.text };
}

int hs_model_layer(const hs_model * m, int32_t il, hs_layer_info * out) {
    if (il < 0 || il >= m->plan.n_layer) return HS_E_ARG;
    const struct hs_layer * l = &m->plan.layers[il];
    const struct hs_layer_weights * w = &m->weights.layers[il];
    const bool two_sinks = l->kind == HS_LAYER_SPARSE && w->sinks;
    *out = (hs_layer_info) { .kind = hs_layer_kind_name(l->kind), .kv_source = l->kv_source, .selection_source = l->selection_source,
        .local = hs_local_name(l->local), .emits_scores = l->emits_scores, .owns_pages = l->owns_pages, .owns_ring = l->owns_ring,
        .window = l->local != HS_LOCAL_NONE ? m->plan.window : 0, .n_head = l->n_head, .n_head_kv = l->n_head_kv, .head_dim_k = l->head_dim_k,
        .head_dim_v = l->head_dim_v, .n_rot = m->hp.rope[l->rope].n_rot, .gate = hs_gate_name(l->gate), .sinks = w->sinks != NULL,
        .sparse_sinks = two_sinks, .qk_norm = w->q_norm != NULL, .moe = l->moe, .rope_freq_base = m->hp.rope[l->rope].freq_base,
        .device = hs_device_name(m->placement.layer[il]), .cpu_moe = m->placement.cpu_moe[il] };
    return HS_OK;
}
