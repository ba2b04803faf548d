/* AVX2: four chunks of a block are expanded in registers. The kept codes are put in their places by vpshufb, whose
 * controls are computed from the masks: some 40 instructions for 64 weights, and no table of all masks, whose loads took
 * twice as long. */
#ifndef SQFT_AVX2_H
#define SQFT_AVX2_H
#include <immintrin.h>

#include "internal.h"

/* A loop over registers. Unrolled early, or GCC 12 keeps them in memory. */
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)
#define INLINE static inline __attribute__((always_inline))

enum { AHEAD = 2048, BLOCK = ROWS * CHUNK, QUAD = 4, NARROW = 8, FEW = 4 };
/* QUAD: chunks that are expanded together, two even and two odd ones.
 * NARROW: products of pairs (at most 2 * 15 * 128 each) that a sum of 16 bits holds.
 * FEW: tokens that are multiplied together. */

/* GCC 12 reorders sums so that all products are made before the first is added, and keeps them in memory. */
INLINE void hold(__m256i& sum) { __asm__("" : "+x"(sum)); }

INLINE __m256i in_both_lanes(__m128i lane) { return _mm256_broadcastsi128_si256(lane); }

INLINE __m256i two(const uint8_t* first, const uint8_t* second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)first)),
                                   _mm_loadu_si128((const __m128i*)second), 1);
}

/* Zero points and scales of a block in one group. */
struct Group {
    __m256i zero[2], fill[QUAD]; /* fill: the zero points of four rows, in the bytes of their weights, in both lanes */
    __m256 scale[2];
};

template <bool SYMMETRIC>
INLINE Group group_at(const sqft_job* job, int64_t at) {
    const __m128i spread = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    Group group;
    __m128i zeros = SYMMETRIC ? _mm_set1_epi8(8) : _mm_loadu_si128((const __m128i*)(job->w.zero_points + at));
    group.zero[0] = _mm256_cvtepu8_epi32(zeros);
    group.zero[1] = _mm256_cvtepu8_epi32(_mm_srli_si128(zeros, 8));
    EACH(j, QUAD)
        group.fill[j] = SYMMETRIC ? _mm256_set1_epi8(8)
                                  : in_both_lanes(_mm_shuffle_epi8(
                                        zeros, _mm_add_epi8(spread, _mm_set1_epi8((char)(4 * j)))));
    EACH(half, 2)
        group.scale[half] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(job->w.scales + at + 8 * half)));
    return group;
}

/* total + (n * scale) * s, as kernel.h says; no fused rounding. */
INLINE __m256 add_scaled(__m256 total, __m256i n, __m256 scale, float s) {
    return _mm256_add_ps(total, _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(n), scale), _mm256_set1_ps(s)));
}

/* The same with n = 256 * high + low - zero * sum. */
template <int PLANES>
INLINE __m256 add_segment(__m256 total, __m256i high, __m256i low, __m256i zero, int32_t sum, __m256 scale, float s) {
    __m256i n = PLANES == 2 ? _mm256_add_epi32(_mm256_slli_epi32(high, 8), low) : high;
    n = _mm256_sub_epi32(n, _mm256_mullo_epi32(zero, _mm256_set1_epi32(sum)));
    return add_scaled(total, n, scale, s);
}

/* By the nibble: 0 to 3, the rank of its weight i among its kept ones, or PRUNED; 4, how many it keeps. */
enum { PRUNED = 0x80 };
struct Controls {
    uint8_t of[CHUNK + 1][32];
    constexpr Controls() : of() {
        for (int nibble = 0; nibble < 16; nibble++) {
            int kept = 0;
            for (int i = 0; i < CHUNK; i++) put(i, nibble, nibble >> i & 1 ? kept++ : PRUNED);
            put(CHUNK, nibble, kept);
        }
    }
    constexpr void put(int i, int nibble, int value) { of[i][nibble] = of[i][nibble + 16] = (uint8_t)value; }
};
alignas(32) static constexpr Controls controls_of;

/* Masks of a chunk in each lane, a nibble (one row) a byte → the controls of vpshufb for four rows each: a byte says
 * which of the kept codes, counted from those of the four rows, belongs there; bit 7 says pruned. */
INLINE void controls(__m256i nibbles, __m256i control[QUAD]) {
    const __m256i* of = (const __m256i*)controls_of.of;
    __asm__("" : "+r"(of)); /* read from memory where it is needed: GCC 12 makes each anew out of 64-bit constants */
    __m256i kept = _mm256_shuffle_epi8(of[CHUNK], nibbles), at[CHUNK];
    __m256i up = _mm256_set1_epi32(0x01010100);
    hold(up); /* or the product becomes shifts and sums */
    __m256i before = _mm256_mullo_epi32(kept, up); /* what the rows before keep, of the four */
    EACH(i, CHUNK) at[i] = _mm256_add_epi8(before, _mm256_shuffle_epi8(of[i], nibbles));
    __m256i a = _mm256_unpacklo_epi8(at[0], at[1]), b = _mm256_unpacklo_epi8(at[2], at[3]);
    __m256i c = _mm256_unpackhi_epi8(at[0], at[1]), d = _mm256_unpackhi_epi8(at[2], at[3]);
    control[0] = _mm256_unpacklo_epi16(a, b);
    control[1] = _mm256_unpackhi_epi16(a, b);
    control[2] = _mm256_unpacklo_epi16(c, d);
    control[3] = _mm256_unpackhi_epi16(c, d);
}

/* Bits of 4 and of 8 bytes. In assembly: GCC clears the result first, for processors before Ice Lake. */
INLINE int64_t bits4(const void* from) {
    int64_t count;
    __asm__("popcntl %1, %k0" : "=r"(count) : "m"(*(const uint8_t(*)[4])from));
    return count;
}

INLINE int64_t bits8(const void* from) {
    int64_t count;
    __asm__("popcntq %1, %0" : "=r"(count) : "m"(*(const uint8_t(*)[8])from));
    return count;
}

/* Where the codes of each four rows of a chunk begin. Moves on to those of the next chunk of the stream. */
INLINE void places(const uint64_t* mask, const uint8_t*& stream, const uint8_t* at[QUAD]) {
    const uint8_t* bytes = (const uint8_t*)mask;
    int64_t first = 0;
    __asm__("popcntw %1, %w0" : "+r"(first) : "m"(*(const uint8_t(*)[2])bytes));
    at[0] = stream;
    at[1] = stream + first;
    at[2] = stream + bits4(bytes);
    at[3] = at[1] + bits4(bytes + 2);
    stream += bits8(bytes);
}

/* Where a block is being read. */
struct Stream {
    const uint64_t* mask;
    const uint8_t *low, *high; /* the next codes of even and of odd chunks */
};

/* Four chunks → even[j]: rows 4j to 4j + 3 of the first in the low lane, of the third in the high one; odd: of the
 * second and the fourth. */
INLINE void expand(const uint64_t* mask, Stream* stream, const Group& group, __m256i even[QUAD], __m256i odd[QUAD]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i masks = _mm256_loadu_si256((const __m256i*)mask);
    __m256i lower = _mm256_and_si256(masks, nibble), upper = _mm256_and_si256(_mm256_srli_epi16(masks, 4), nibble);
    const uint8_t *first[QUAD], *second[QUAD];
    __m256i control[QUAD];

    controls(_mm256_unpacklo_epi8(lower, upper), control);
    places(mask, stream->low, first);
    places(mask + 2, stream->low, second);
    EACH(j, QUAD) {
        __m256i codes = _mm256_and_si256(two(first[j], second[j]), nibble);
        even[j] = _mm256_blendv_epi8(_mm256_shuffle_epi8(codes, control[j]), group.fill[j], control[j]);
    }

    controls(_mm256_unpackhi_epi8(lower, upper), control);
    places(mask + 1, stream->high, first);
    places(mask + 3, stream->high, second);
    EACH(j, QUAD) {
        __m256i codes = _mm256_and_si256(_mm256_srli_epi16(two(first[j], second[j]), 4), nibble);
        odd[j] = _mm256_blendv_epi8(_mm256_shuffle_epi8(codes, control[j]), group.fill[j], control[j]);
    }
}

/* What comes 2 KiB later: the hardware's own prefetchers stop at each page. */
INLINE void look_ahead(const Stream* stream) {
    _mm_prefetch((const char*)stream->low + AHEAD, _MM_HINT_T0);
    _mm_prefetch((const char*)stream->low + AHEAD + 64, _MM_HINT_T0);
    _mm_prefetch((const char*)stream->mask + AHEAD, _MM_HINT_T0);
}

INLINE Stream open_block(const sqft_job* job, int64_t block) {
    const uint8_t* values = job->w.values + job->w.block_offsets[block];
    return {job->w.masks ? job->w.masks + block * job->chunks : nullptr, values, values};
}

#endif
