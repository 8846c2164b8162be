// The check of the C tests: counts, and prints place, condition and a message of the caller's on failure. One test program, one pair of counters.
#pragma once

#include <stdio.h>

static int n_checks, n_failed;

#define CHECK(cond, ...) do {                                                          \
    n_checks++;                                                                        \
    if (!(cond)) {                                                                     \
        n_failed++;                                                                    \
        fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond);                     \
        fprintf(stderr, __VA_ARGS__);                                                  \
        fputc('\n', stderr);                                                           \
    }                                                                                  \
} while (0)
