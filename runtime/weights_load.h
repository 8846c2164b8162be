// Second half of weights.c: where the bytes of a bound tensor go. Tensors are first collected (shape, type, place), then each place is allocated
// once and filled.
#pragma once

#include "weights.h"

struct hs_bound {
    struct ggml_tensor * dst;
    const struct hs_gguf_tensor * src, * src2; // src2: the window sink of a fused pair
    int  place;                                // index into places
    bool to_f32, sinks, packed;
};

// A place is a buffer type with a context for its tensors, and the device that computes with them.
struct hs_place { ggml_backend_buffer_type_t buft; struct ggml_context * ctx; int32_t device; };
enum { HS_PLACE_MAPPED = 0, HS_PLACE_CPU = 1, HS_MAX_PLACES = 10 + HS_MAX_DEVICES }; // the file mapping, the CPU buffer type, others

struct hs_binder {
    const hs_gguf * gguf;
    struct hs_hparams * hp;
    const struct hs_placement * placement;
    const struct hs_weights_params * p;
    struct hs_weights * w;
    hs_error * err;
    char name[64];                             // the tensor at hand, for messages
    uint8_t * used;                            // one flag a tensor of the file
    struct hs_bound * bound; int64_t n_bound, n_max;
    struct hs_place places[HS_MAX_PLACES]; int n_places;
    struct ggml_tensor * joined; int64_t joined_rows; // between hs_binder_join and hs_binder_end_join: the matrix, and its rows that are bound
};

int  hs_binder_init(struct hs_binder * b, const hs_gguf * g, struct hs_hparams * hp, const struct hs_placement * placement, const struct hs_weights_params * p,
    struct hs_weights * w, hs_error * err);
void hs_binder_free(struct hs_binder * b);

// Bind in the file's type to memory of a device. On the CPU: of the buffer type buft; NULL: mapped where possible, else copied.
int hs_binder_add(struct hs_binder * b, const struct hs_gguf_tensor * t, int32_t device, ggml_backend_buffer_type_t buft, struct ggml_tensor ** out);
// On a GPU, matrices that read the same input and have one type lie one behind the other, so that a single product makes them all (graph_linear.c): makes
// room for those of the n names (blk.il.NAME) that have the first one's type. Until hs_binder_end_join, hs_binder_add puts them there.
int hs_binder_join(struct hs_binder * b, const char * const * names, int n, int il, int32_t device);
void hs_binder_end_join(struct hs_binder * b);
// Bind for our own linear op: packed in CPU memory.
int hs_binder_add_packed(struct hs_binder * b, const struct hs_gguf_tensor * t, struct ggml_tensor ** out);
// Bind as f32 [n].
int hs_binder_add_f32(struct hs_binder * b, const struct hs_gguf_tensor * t, int32_t device, struct ggml_tensor ** out, int64_t n);
// Bind two optional vectors of n as one f32 [n, 2].
int hs_binder_add_sinks(struct hs_binder * b, const struct hs_gguf_tensor * global, const struct hs_gguf_tensor * window, int32_t device, int64_t n,
    struct ggml_tensor ** out);
// The device that a bound tensor lies on.
int32_t hs_binder_device(const struct hs_binder * b, const struct ggml_tensor * t);
// Allocate every place and fill every tensor.
int hs_binder_load(struct hs_binder * b);
// The second half of hs_binder_load. Calls the progress function in this thread; of several errors, reports the first tensor's.
int hs_binder_fill(struct hs_binder * b);
