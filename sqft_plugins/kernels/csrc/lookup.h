/* Expanding 8 weights at a time by a table, where there is no instruction for it (AVX2, NEON). */
#ifndef SQFT_LOOKUP_H
#define SQFT_LOOKUP_H
#include "internal.h"

enum { PRUNED = 0x80 };

/* of[mask byte]: 8 bytes, byte i is which of the kept codes belongs at i, or PRUNED. */
struct Lookup {
    uint64_t of[256];
    constexpr Lookup() : of() {
        for (int mask = 0; mask < 256; mask++) {
            uint64_t entry = 0;
            int kept = 0;
            for (int i = 0; i < 8; i++) entry |= (uint64_t)(mask >> i & 1 ? kept++ : PRUNED) << 8 * i;
            of[mask] = entry;
        }
    }
};
static constexpr Lookup lookup;

/* Byte i: the bits set in the bytes 0..i of a mask (at most 64). */
static inline uint64_t running_count(uint64_t mask) {
    mask -= mask >> 1 & 0x5555555555555555;
    mask = (mask & 0x3333333333333333) + (mask >> 2 & 0x3333333333333333);
    mask = (mask + (mask >> 4)) & 0x0f0f0f0f0f0f0f0f;
    return mask * 0x0101010101010101;
}

#endif
