// Where a model's layers lie: which GPU holds the weights and caches of a layer, or the CPU. Decided before the weights are bound; graph, caches and
// reports read this table.
#pragma once

#include "devices.h"
#include "layer_plan.h"

struct hs_placement {
    int32_t gpus[HS_MAX_DEVICES], n_gpus; // device numbers in use; the fields below hold device numbers or HS_ON_CPU
    int16_t layer[HS_MAX_LAYER];
    bool    cpu_moe[HS_MAX_LAYER];        // the layer's experts lie in host memory although it does not
    int16_t input, output;                // token_embd; output and output_norm
    int32_t n_gpu_layers;                 // layers on GPUs, and 1 for the output
    char    text[1024];                   // for people
};

// p: n_gpu_layers, n_cpu_moe, devices, tensor_split and fit are read. A sparse layer lies where the layer lies whose cache it reads, so a cut moves down to
// such a group's edge. HS_E_ARG.
int hs_placement_make(const hs_gguf * g, const struct hs_hparams * hp, const struct hs_layer_plan * plan, const hs_model_params * p, struct hs_placement * out,
    hs_error * err);
