// FNV-1a: a checksum for telling models apart and finding damaged files, not for security.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define HS_HASH_INIT 0xcbf29ce484222325ull

static inline uint64_t hs_hash(uint64_t h, const void * data, size_t n) {
    const uint8_t * p = (const uint8_t *) data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}
