// The open GGUF behind hs_gguf: one file, or all files of a split model joined.
#pragma once

#include "gguf_parse.h"

struct hs_gguf {
    struct hs_gguf_shard ** shards;       // n_shards, in the order of split.no; the first holds the model's keys
    int32_t                 n_shards;
    struct hs_gguf_tensor * tensors;      // of all files, in file order
    struct hs_name_ref *    tensors_sorted;
    size_t                  n_tensors;
};

// Fill g->shards from an already parsed file of a split model (gguf_split.c). Takes `first` over, also on failure.
int hs_gguf_join(hs_gguf * g, struct hs_gguf_shard * first, bool use_mmap, hs_error * err);
