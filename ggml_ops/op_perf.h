// Timing of the ops at the published models' shapes, beside ggml's own attention.
#pragma once

#include "op_graph.h"

#include <regex.h>

// Prints one line a shape: median time, bytes of K and V read a second, arithmetic a second. only: NULL or a pattern on the line's name.
int hs_perf(ggml_backend_t backend, int threads, const regex_t * only);
