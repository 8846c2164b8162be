// A loaded model: the checked file, its hyperparameters, layer plan and weights. Immutable after loading; sessions share it.
#pragma once

#include "layer_plan.h"
#include "weights.h"

struct hs_model {
    hs_gguf * gguf;
    struct hs_hparams hp;
    struct hs_layer_plan plan;
    struct hs_placement placement;
    struct hs_weights weights;
    char     name[128], ftype[16];
    uint64_t fingerprint;
};
