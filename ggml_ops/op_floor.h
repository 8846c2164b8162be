// What this machine can do at best: the floors that perf sets beside its timings.
#pragma once

#include <stddef.h>

#define HS_FLOOR_THREADS_MAX 512

// Multiply-adds of f32 a second, all threads together, with the widest vectors that the processor has; best of several.
// 0: more threads than HS_FLOOR_THREADS_MAX, or they do not start.
double hs_floor_fma_per_second(int threads);
// Bytes a second that the threads read together, each its own part of one buffer of this size, again and again; best of several. A buffer that
// fits the caches is read from there, as a kernel that is called again with the same data would. 0: as above, or no memory.
double hs_floor_read_per_second(size_t bytes, int threads);
