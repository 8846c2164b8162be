// Which type each tensor of a model gets: the file types by name, and llama.cpp's mixes.
#pragma once

#include "ggml.h"
#include "gguf_read.h"
#include "hysparse.h"

struct hs_ftype {
    const char *   name;      // "Q4_K_M"
    int32_t        number;    // general.file_type; -1: keep the input's
    enum ggml_type type;      // of most tensors
};

// "Q4_K_M" in any case, or NULL. "Q3_K", "Q4_K" and "Q5_K" are the _M mixes. COPY has type GGML_TYPE_COUNT.
const struct hs_ftype * hs_ftype_find(const char * name);
// A single tensor type by ggml's name in any case ("q6_K", "f16"), GGML_TYPE_COUNT where it is not one that can be written.
enum ggml_type hs_tensor_type_find(const char * name);

// What the rules look at besides the tensor's name.
struct hs_mix {
    const hs_gguf *         g;
    const struct hs_ftype * ftype;
    bool           pure, leave_output;
    enum ggml_type output_type, embedding_type;    // GGML_TYPE_COUNT: by the mix
    bool    tied;                                  // there is no output.weight: the embeddings are the output matrix too
    int32_t n_layer, n_expert, n_gqa;
    int32_t n_attn_v;                              // number of value projections, and the rank of each layer's among them
    int32_t * attn_v_rank;                         // [n_layer], -1 where the layer has none
};

int  hs_mix_init(struct hs_mix * m, const hs_gguf * g, const struct hs_ftype * ftype, const hs_quantize_params * p, hs_error * err);
void hs_mix_free(struct hs_mix * m);
// The type tensor t is written with; its own where it is never quantised.
enum ggml_type hs_mix_type(const struct hs_mix * m, const struct hs_gguf_tensor * t);
