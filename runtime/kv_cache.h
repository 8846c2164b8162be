// KV caches of a session: pages (full layers; reference counted, shared by forks, copied on write) and window rings with checkpoints. What exists
// is read from the layer plan. Layouts are those of ggml_ops/hs_ops.h; kernels never learn who owns a page.
#pragma once

#include "ggml-backend.h"
#include "placement.h"

struct hs_kv_shape {
    int32_t n_ctx, n_seq, n_ubatch;
    enum ggml_type type_k, type_v;
    int32_t n_checkpoints;
};

// Saved rings of one sequence at one length: the w-1 positions before it. Shared by forks.
struct hs_checkpoint { int32_t refs, pos; uint8_t * data; };

struct hs_kv_seq {
    int32_t   len;              // tokens held
    int32_t   n_pages;          // pages held, >= ceil(len / P)
    int32_t * tokens;           // [n_ctx]
    int32_t * table;            // this sequence's row of hs_kv.table
    int32_t   ring_lo, ring_hi; // the rings hold positions ring_lo .. ring_hi-1 (all of them valid)
    struct hs_checkpoint ** cps; int32_t n_cps; // ascending by pos
};

struct hs_kv {
    const struct hs_layer_plan * plan;
    const struct hs_placement * placement;             // the model's
    struct hs_kv_shape shape;
    int32_t page_size, n_pages, ring_size;             // P, pool size, R = w - 1 + n_ubatch (0: no rings)
    struct ggml_tensor ** k, ** v;                     // [n_layer]: pages or ring of that layer, NULL where it owns neither
    int32_t * refs;                                    // [n_pages]
    int32_t * free_list; int32_t n_free;
    int32_t * table;                                   // [n_seq][n_pages], the graph input
    uint64_t table_version;                            // goes up with every change
    struct hs_kv_seq * seq;
    size_t checkpoint_bytes;                           // of one checkpoint
    int64_t n_checkpoints_live;
    uint8_t * staging; size_t staging_size;            // for page copies
    struct ggml_context * ctxs[2 * (HS_MAX_DEVICES + 1)]; int32_t n_ctxs;
    ggml_backend_buffer_t pages_buf[HS_MAX_DEVICES + 1], rings_buf[HS_MAX_DEVICES + 1]; // [1 + device]; NULL where none lie
    bool huge_pages;                                   // the system's huge pages lie behind them
};

// Bytes from the plan alone; what hs_kv_new allocates. page_bytes counts all layers' K and V of one page. placement NULL: all on the CPU.
struct hs_kv_bytes { uint64_t pages, rings, page, per_token, full_attention_per_token; int32_t n_pages, ring_size; };
void hs_kv_bytes(const struct hs_layer_plan * plan, const struct hs_kv_shape * shape, const struct hs_placement * placement, struct hs_kv_bytes * out);
// K and V that a layer owns (0: none), as buffers of this type hold them.
uint64_t hs_kv_layer_bytes(const struct hs_layer_plan * plan, const struct hs_kv_shape * shape, int32_t il, ggml_backend_buffer_type_t buft);

// A layer's caches lie where the layer lies. HS_E_MEMORY says what was asked for and what is free.
int  hs_kv_new(const struct hs_layer_plan * plan, const struct hs_kv_shape * shape, const struct hs_placement * placement, struct hs_kv * out, hs_error * err);
void hs_kv_free(struct hs_kv * kv);

// Make positions len .. len+n-1 of a sequence writable: pages exist and belong to it alone. HS_E_FULL; the sequence is as before then.
int  hs_kv_reserve(struct hs_kv * kv, int32_t seq, int32_t n, hs_error * err);
// n tokens were computed: they are part of the sequence now.
void hs_kv_commit(struct hs_kv * kv, int32_t seq, const int32_t * tokens, int32_t n);
// n tokens were reserved and perhaps partly written, but not committed: pages go back, overwritten ring slots are forgotten.
void hs_kv_abandon(struct hs_kv * kv, int32_t seq, int32_t n);

// Can the sequence be cut to n tokens with the rings as they are?
bool hs_kv_rings_hold(const struct hs_kv * kv, int32_t seq, int32_t n);
// Cut to n <= len tokens: pages and checkpoints beyond it go. The rings must hold n (above), or be restored by the caller.
void hs_kv_truncate(struct hs_kv * kv, int32_t seq, int32_t n);
int  hs_kv_fork(struct hs_kv * kv, int32_t src, int32_t dst, hs_error * err);

// Row number of position pos of a sequence in the [head_dim, rows] view of a cache, for each KV head.
int64_t hs_kv_row(const struct hs_kv * kv, const struct hs_row_set * set, int32_t seq, int32_t pos, int32_t head);

// --- kv_rings.c ---
size_t hs_kv_checkpoint_bytes(const struct hs_kv * kv);
int  hs_kv_checkpoint(struct hs_kv * kv, int32_t seq, hs_error * err);            // at the present length; no-op without rings or at a known one
const struct hs_checkpoint * hs_kv_find_checkpoint(const struct hs_kv * kv, int32_t seq, int32_t n); // the last one with pos <= n, or NULL
void hs_kv_rings_read(const struct hs_kv * kv, int32_t seq, int32_t pos, uint8_t * out);             // the w-1 positions before pos
void hs_kv_rings_write(struct hs_kv * kv, int32_t seq, int32_t pos, const uint8_t * in);             // and sets ring_lo, ring_hi
void hs_kv_drop_checkpoints(struct hs_kv * kv, int32_t seq, int32_t beyond);      // those with pos > beyond
