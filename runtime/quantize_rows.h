// Converting rows of one tensor from any ggml type to another, on several threads.
#pragma once

#include "ggml.h"
#include "hysparse.h"

// src: n_rows rows of n_per_row values of type `from`; dst: the same rows as `to`. n_threads >= 1. `name` is for messages.
// first_row: number of row 0 in the tensor, for messages. Errors: HS_E_FORMAT (a NaN or infinite value, in or out), HS_E_MEMORY.
int hs_quantize_rows(const char * name, enum ggml_type from, const void * src, enum ggml_type to, void * dst, int64_t first_row, int64_t n_rows,
                     int64_t n_per_row, int32_t n_threads, hs_error * err);
