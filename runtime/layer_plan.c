// Hyperparameters -> layer plan: the architecture as one checked table.
#include "layer_plan.h"

#include <stdlib.h>
#include <string.h>

#include "status.h"

const char * hs_layer_kind_name(enum hs_layer_kind kind) { return kind == HS_LAYER_FULL ? "full" : kind == HS_LAYER_SPARSE ? "sparse" : "sliding"; }
const char * hs_local_name(enum hs_local local) { return local == HS_LOCAL_NONE ? "none" : local == HS_LOCAL_OWN ? "own" : "forced"; }
const char * hs_gate_name(enum hs_gate gate) { return gate == HS_GATE_NONE ? "none" : gate == HS_GATE_HEAD ? "head" : "channel"; }

static int add_row_set(struct hs_layer_plan * plan, bool ring, int32_t n_head_kv, int32_t * index, hs_error * err) {
    for (int32_t i = 0; i < plan->n_rows; i++) {
        if (plan->rows[i].ring == ring && plan->rows[i].n_head_kv == n_head_kv) {
            *index = i;
            return HS_OK;
        }
    }
    if (plan->n_rows == HS_MAX_ROW_SETS) {
        return hs_fail(err, HS_E_MODEL, "attention.head_count_kv: more than %d different cache shapes", HS_MAX_ROW_SETS);
    }
    plan->rows[plan->n_rows] = (struct hs_row_set) { ring, n_head_kv };
    *index = plan->n_rows++;
    return HS_OK;
}

// One layer of the file's description -> its row. Checks everything that involves one layer and its sources.
static int plan_layer(const struct hs_hparams * hp, int32_t il, struct hs_layer_plan * plan, hs_error * err) {
    const int32_t kv = hp->kv_source[il], sel = hp->selection_source[il], local = hp->local[il];
    struct hs_layer * l = &plan->layers[il];
    *l = (struct hs_layer) { .kv_source = kv, .selection_source = sel, .local = (enum hs_local) local, .moe = hp->is_moe[il] != 0,
        .n_head = hp->n_head[il], .n_head_kv = hp->n_head_kv[il], .head_dim_k = hp->head_dim_k, .head_dim_v = hp->head_dim_v, .n_ff = hp->n_ff[il] };
    if (sel < 0 && kv == il) {
        l->kind = HS_LAYER_FULL;
        l->owns_pages = true;
        if (local) return hs_fail(err, HS_E_MODEL, "attention.local: found %d in full layer %d, expected 0", local, il);
    } else if (sel < 0 && kv == -1) {
        l->kind = HS_LAYER_SLIDING;
        l->rope = HS_ROPE_SWA;
        l->head_dim_k = hp->head_dim_k_swa;
        l->head_dim_v = hp->head_dim_v_swa;
        if (local != HS_LOCAL_OWN) return hs_fail(err, HS_E_MODEL, "attention.local: found %d in sliding layer %d, expected 1 (own window)", local, il);
    } else if (sel < 0) {
        return hs_fail(err, HS_E_MODEL, "attention.kv_source: layer %d reads layer %d's cache without a selection_source, expected one", il, kv);
    } else {
        l->kind = HS_LAYER_SPARSE;
        l->rope = HS_ROPE_SPARSE;
        l->owns_pages = kv == il;
        l->gate = local == HS_LOCAL_OWN ? (enum hs_gate) hp->gate : HS_GATE_NONE;
        if (sel >= il || plan->layers[sel].kind != HS_LAYER_FULL) {
            return hs_fail(err, HS_E_MODEL, "attention.selection_source: found %d in layer %d, expected an earlier full layer", sel, il);
        }
        if (kv != il && (kv < 0 || kv >= il || plan->layers[kv].kind != HS_LAYER_FULL)) {
            return hs_fail(err, HS_E_MODEL, "attention.kv_source: found %d in layer %d, expected an earlier full layer or the layer itself", kv, il);
        }
        if (kv == il && local == HS_LOCAL_OWN) {
            return hs_fail(err, HS_E_MODEL, "attention.local: found 1 (own window) in layer %d with a full cache of its own, expected 0 or 2", il);
        }
        if (kv != il && local != HS_LOCAL_OWN) {
            return hs_fail(err, HS_E_MODEL, "attention.local: found %d in layer %d that reads layer %d's cache, expected 1 (own window)", local, il, kv);
        }
        const int32_t n_sel = hp->n_head_kv[sel], n_kv = hp->n_head_kv[kv];
        if (n_kv != n_sel) {
            return hs_fail(err, HS_E_MODEL, "attention.head_count_kv: found %d in layer %d (KV source of layer %d), expected %d as in layer %d (its selection source)",
                n_kv, kv, il, n_sel, sel);
        }
        if (l->n_head % n_kv) {
            return hs_fail(err, HS_E_MODEL, "attention.head_count: found %d in layer %d, expected a multiple of %d, the KV heads of layer %d", l->n_head, il, n_kv, kv);
        }
        plan->layers[sel].emits_scores = true;
    }
    l->owns_ring = l->local == HS_LOCAL_OWN;
    return add_row_set(plan, l->owns_ring, l->n_head_kv, &l->rows, err);
}

// Turn a plan of full layers into oracle mode: every layer not listed keeps its own full cache and attends to the selection of the nearest listed
// layer above it, block 0 and the window, in one softmax.
static int apply_oracle(const struct hs_hparams * hp, const struct hs_oracle_request * rq, struct hs_hparams * out, hs_error * err) {
    const int32_t * list = rq->full_layers ? rq->full_layers : hp->oracle_layers;
    const int32_t n = rq->full_layers ? rq->n_full_layers : hp->n_oracle_layers;
    if (n < 1) return hs_fail(err, HS_E_ARG, "oracle: this model has no calibrated list (hysparse.oracle.full_layers); give full_layers");
    for (int32_t il = 0; il < hp->n_layer; il++) {
        if (hp->kv_source[il] != il || hp->selection_source[il] >= 0) {
            return hs_fail(err, HS_E_ARG, "oracle: layer %d of this %s model is not a full-attention layer, expected full attention everywhere", il, hs_arch_name(hp->arch));
        }
    }
    if (list[0] != 0) return hs_fail(err, HS_E_ARG, "oracle full_layers: the first is %d, expected 0", list[0]);
    for (int32_t i = 1; i < n; i++) {
        if (list[i] <= list[i - 1] || list[i] >= hp->n_layer) {
            return hs_fail(err, HS_E_ARG, "oracle full_layers: found %d after %d, expected ascending numbers below %d", list[i], list[i - 1], hp->n_layer);
        }
    }
    const int32_t block  = rq->block_size   ? rq->block_size   : hp->oracle_block_size   ? hp->oracle_block_size   : 64;
    const int32_t tokens = rq->top_k_tokens ? rq->top_k_tokens : hp->oracle_top_k_tokens ? hp->oracle_top_k_tokens : 1024;
    const int32_t window = rq->window       ? rq->window       : hp->oracle_window       ? hp->oracle_window       : 128;
    if (block < 1 || block > 1 << 16) return hs_fail(err, HS_E_ARG, "oracle block_size: found %d, expected 1 to 65536", block);
    if (window < 1 || window > 1 << 20) return hs_fail(err, HS_E_ARG, "oracle window: found %d, expected 1 to 1048576", window);
    if (tokens < block || tokens % block) {
        return hs_fail(err, HS_E_ARG, "oracle top_k_tokens: found %d, expected a multiple of block_size %d", tokens, block);
    }
    memcpy(out, hp, sizeof *hp);
    int32_t next = 0, source = 0;
    for (int32_t il = 0; il < hp->n_layer; il++) {
        if (next < n && list[next] == il) {
            source = il;
            next++;
            continue;
        }
        out->selection_source[il] = source;
        out->local[il] = HS_LOCAL_FORCED;
    }
    out->window = window;
    out->block_size = block;
    out->top_k_blocks = tokens / block;
    return HS_OK;
}

int hs_layer_plan_build(const struct hs_hparams * hp, const struct hs_oracle_request * oracle, struct hs_layer_plan * out, hs_error * err) {
    struct hs_hparams * changed = NULL;
    int rc = HS_OK;
    memset(out, 0, sizeof *out);
    if (oracle) {
        changed = malloc(sizeof *changed);
        if (!changed) return hs_fail(err, HS_E_MEMORY, "layer plan: cannot allocate %zu bytes", sizeof *changed);
        rc = apply_oracle(hp, oracle, changed, err);
        if (rc != HS_OK) goto done;
        hp = changed;
        out->oracle = true;
    }
    out->n_layer = hp->n_layer;
    out->layers = calloc((size_t) hp->n_layer, sizeof *out->layers);
    if (!out->layers) {
        rc = hs_fail(err, HS_E_MEMORY, "layer plan: cannot allocate %d layers", hp->n_layer);
        goto done;
    }
    bool selects = false, local = false;
    for (int32_t il = 0; il < hp->n_layer && rc == HS_OK; il++) {
        rc = plan_layer(hp, il, out, err);
        selects = selects || out->layers[il].selection_source >= 0;
        local = local || out->layers[il].local != HS_LOCAL_NONE;
    }
    if (rc == HS_OK) {
        out->window     = local ? hp->window : 0;
        out->block_size = selects ? hp->block_size : 0;
        out->top_k      = selects ? hp->top_k_blocks : 0;
        out->page_size  = out->block_size >= 16 && out->block_size <= 256 ? out->block_size : 64;
    }
done:
    free(changed);
    if (rc != HS_OK) hs_layer_plan_free(out);
    return rc;
}

void hs_layer_plan_free(struct hs_layer_plan * plan) {
    free(plan->layers);
    memset(plan, 0, sizeof *plan);
}
