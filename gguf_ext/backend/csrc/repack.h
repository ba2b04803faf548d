/* How 16 rows of Q4_0 blocks become packed: repack.cpp has the plain way, repack_avx512.cpp the fast one. */
#ifndef SQFT_GGML_REPACK_H
#define SQFT_GGML_REPACK_H
#include <string.h>

#include "door.h"

namespace sqft {

enum { VECTOR = 64, SCRATCH_BYTES = 1024 }; /* SCRATCH_BYTES: for each Q4_0 block of a row */

struct Packer {
    /* 16 rows of `row_blocks` Q4_0 blocks → masks [8 * row_blocks]; adds to `kept`; returns the bytes of their values.
     * scratch: row_blocks * SCRATCH_BYTES, here and below. */
    int64_t (*masks)(const uint8_t* rows, int64_t row_blocks, uint64_t* masks, int64_t* kept, uint8_t* scratch);
    /* … and these masks → the values, exactly `length` bytes. */
    void (*values)(const uint8_t* rows, int64_t row_blocks, const uint64_t* masks, int64_t length, uint8_t* scratch,
                   uint8_t* values);
};

extern const Packer plain_packer;
/* NULL where this processor has no such instructions. */
const Packer* avx512_packer();
/* `pack` of door.h by one of them. */
Weight pack_by(const Packer& packer, const uint8_t* blocks, int64_t out, int64_t in, uint8_t* target);

}  // namespace sqft
#endif
