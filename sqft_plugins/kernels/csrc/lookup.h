/* Expanding 8 weights at a time by a table in memory, where there is no instruction for it (NEON): the table, and the
 * back end but for what is the instruction set's own. */
#ifndef SQFT_LOOKUP_H
#define SQFT_LOOKUP_H
#include "internal.h"

enum { PRUNED = 0x80, BLOCK = ROWS * CHUNK, AHEAD = 2048 };

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

/* A block: each segment is expanded into memory, then multiplied by the tokens one by one. Set is the instruction set:
 *   Group                                   zero points and scales of a block in one group
 *   group_at(job, at)                       those that begin at `at`
 *   expand<SHIFT>(mask, values, group, to)  the kept codes of one chunk, low (0) or high (4) nibbles of the bytes at
 *                                           `values` → 64 bytes; returns where the codes of the next chunk begin
 *   expand_dense(values, group, to)         every weight kept: 64 bytes of values → a pair of chunks
 *   token<PLANES>(codes, chunks, x, stride, group, x_sum, s, total)
 *                                           one token against one expanded segment; `stride`: bytes from a word of x
 *                                           to that of the next chunk; x_sum and s: of sqft_job.sums and .scales */
template <class Set, int PLANES>
static void block_of(const sqft_job* job, int64_t block, uint8_t* codes, float* totals) {
    const uint64_t* masks = job->w.masks ? job->w.masks + block * job->chunks : nullptr;
    const uint8_t *low = job->w.values + job->w.block_offsets[block], *high = low;
    memset(totals, 0, (size_t)(job->tokens * ROWS * 4));
    for (int64_t segment = 0; segment < job->segments; segment++) {
        int64_t number, chunk, chunks;
        locate(job, segment, &number, &chunk, &chunks);
        typename Set::Group group = Set::group_at(job, (block * job->groups + number) * ROWS);
        for (int64_t c = 0; c < chunks; c += 2) {
            uint8_t* to = codes + c * BLOCK;
            __builtin_prefetch(low + AHEAD);
            if (masks) {
                __builtin_prefetch((const uint8_t*)(masks + chunk + c) + AHEAD);
                low = Set::template expand<0>(masks + chunk + c, low, group, to);
                high = Set::template expand<4>(masks + chunk + c + 1, high, group, to + BLOCK);
            } else {
                Set::expand_dense(low, group, to);
                low += BLOCK;
            }
        }
        for (int64_t begin = 0; begin < job->tokens; begin += TILE) {
            int64_t tile = least(TILE, job->tokens - begin), at = segment * job->tokens + begin;
            const int8_t* x = words_of(job, begin, chunk, chunks);
            for (int64_t t = 0; t < tile; t++)
                Set::template token<PLANES>(codes, chunks, x + t * CHUNK * PLANES, tile * CHUNK * PLANES, group,
                                            job->sums[at + t], job->scales[at + t], totals + (begin + t) * ROWS);
        }
    }
    for (int64_t t = 0; t < job->tokens; t++) store_block(job, block, t, totals + t * ROWS);
}

/* sqft_backend.blocks. */
template <class Set>
static void blocks_of(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    float* totals = (float*)(buffer + SEGMENT_CHUNKS * BLOCK);
    for (int64_t block = first_block; block < last_block; block++)
        job->planes == 2 ? block_of<Set, 2>(job, block, buffer, totals) : block_of<Set, 1>(job, block, buffer, totals);
}

#endif
