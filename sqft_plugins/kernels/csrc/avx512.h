/* What the AVX-512 and the AMX back end share: expanding chunks, closing segments, panels. */
#ifndef SQFT_AVX512_H
#define SQFT_AVX512_H
#include <immintrin.h>

#include <type_traits>

#include "internal.h"

/* A loop over accumulators. Unrolled early, or GCC 12 keeps them in memory. */
#define EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); i++)

enum { AHEAD = 2048, PANEL_BLOCK = SEGMENT_CHUNKS * ROWS * CHUNK };

/* Where a block is being read. */
struct Stream {
    const uint64_t* mask;
    const uint8_t *low, *high; /* the next codes of even and of odd chunks */
};

static inline Stream open_block(const sqft_job* job, int64_t block) {
    const uint8_t* values = job->w.values + job->w.block_offsets[block];
    return {job->w.masks ? job->w.masks + block * job->chunks : nullptr, values, values};
}

/* Two chunks as bytes, `fill` where pruned. Touching what comes 2 KiB later takes a third off the time of a set beyond
 * the caches (one token, 50 %: 0.047 to 0.032 ns a weight): the hardware's own prefetchers stop at each page. */
template <bool MASKED>
static inline void next_pair(Stream* stream, __m512i fill, __m512i* even, __m512i* odd) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i low = _mm512_loadu_si512(stream->low);
    _mm_prefetch((const char*)stream->low + AHEAD, _MM_HINT_T0);
    if constexpr (MASKED) {
        uint64_t m0 = stream->mask[0], m1 = stream->mask[1];
        _mm_prefetch((const char*)stream->mask + AHEAD, _MM_HINT_T0);
        __m512i high = _mm512_srli_epi16(_mm512_loadu_si512(stream->high), 4);
        *even = _mm512_mask_expand_epi8(fill, m0, _mm512_and_si512(low, nibble));
        *odd = _mm512_mask_expand_epi8(fill, m1, _mm512_and_si512(high, nibble));
        stream->low += __builtin_popcountll(m0);
        stream->high += __builtin_popcountll(m1);
        stream->mask += 2;
    } else {
        *even = _mm512_and_si512(low, nibble);
        *odd = _mm512_and_si512(_mm512_srli_epi16(low, 4), nibble);
        stream->low += ROWS * CHUNK;
    }
}

/* sum + code . x, where x is one word of 4 signed bytes, the same for all 16 rows. In assembly, since GCC 12 copies the
 * sums and the broadcast words from register to register, which costs a third of the time. */
static inline __attribute__((always_inline)) __m512i dot(__m512i sum, __m512i code, const int8_t* x) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(code), "m"(*(const int8_t(*)[4])x));
    return sum;
}

/* Lanes of 32 bits → each value in all four bytes of its lane, which are the four inputs of its row. */
static inline __m512i in_each_byte(__m512i zero) { return _mm512_mullo_epi32(zero, _mm512_set1_epi32(0x01010101)); }

static inline __m512i zero_points(const sqft_job* job, int64_t block, int64_t group) {
    if (!job->w.zero_points) return _mm512_set1_epi32(8);
    const uint8_t* at = job->w.zero_points + (block * job->groups + group) * ROWS;
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at));
}

static inline __m512 group_scales(const sqft_job* job, int64_t block, int64_t group) {
    const uint16_t* at = job->w.scales + (block * job->groups + group) * ROWS;
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at));
}

/* total + (n * scale) * s, as kernel.h says; no fused rounding. */
static inline __m512 add_scaled(__m512 total, __m512i n, __m512 scale, float s) {
    return _mm512_add_ps(total, _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(n), scale), _mm512_set1_ps(s)));
}

/* The same with n = 256 * high + low - zero * sum. */
template <int PLANES>
static inline __m512 add_segment(__m512 total, __m512i high, __m512i low, __m512i zero, int32_t sum, __m512 scale,
                                 float s) {
    __m512i n = PLANES == 2 ? _mm512_add_epi32(_mm512_slli_epi32(high, 8), low) : high;
    return add_scaled(total, _mm512_sub_epi32(n, _mm512_mullo_epi32(zero, _mm512_set1_epi32(sum))), scale, s);
}

static inline __m512 load_rows(const void* from, int dtype, int64_t index, __mmask16 rows) {
    if (dtype == SQFT_F32) return _mm512_maskz_loadu_ps(rows, (const float*)from + index);
    __m256i bits = _mm256_maskz_loadu_epi16(rows, (const uint16_t*)from + index);
    if (dtype == SQFT_F16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

static inline __m256i bfloat_of_rows(__m512 value) {
    __m512i bits = _mm512_castps_si512(value), half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(half, odd)), 16);
    __m512i nan = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), nan));
}

/* store_block, in registers. */
static inline void store_rows(const sqft_job* job, int64_t block, int64_t token, __m512 total) {
    int64_t row = block * ROWS, at = token * job->y_stride + row, left = job->w.out - row;
    __mmask16 rows = (__mmask16)(left < ROWS ? (1u << left) - 1 : 0xffff);
    if (job->bias) total = _mm512_add_ps(total, load_rows(job->bias, job->dtype, row, rows));
    if (job->dtype == SQFT_F32)
        _mm512_mask_storeu_ps((float*)job->y + at, rows, total);
    else
        _mm256_mask_storeu_epi16((uint16_t*)job->y + at, rows,
                                 job->dtype == SQFT_BF16 ? bfloat_of_rows(total) : _mm512_cvtps_ph(total, 0));
}

/* PANEL blocks that are worked on together, for many tokens, one segment after the other. */
struct Panel {
    uint8_t* codes; /* [block][chunk of the segment][64] */
    float* totals;  /* [block][token][16] */
    int64_t blocks, chunk, chunks;
    Stream streams[PANEL];
    __m512i zero[PANEL];
    __m512 scale[PANEL];
};

static inline Panel open_panel(uint8_t* buffer) {
    Panel panel;
    panel.codes = buffer;
    panel.totals = (float*)(buffer + PANEL * PANEL_BLOCK);
    return panel;
}

static inline void begin_panel(const sqft_job* job, Panel* panel, int64_t block, int64_t blocks) {
    panel->blocks = blocks;
    for (int64_t b = 0; b < blocks; b++) panel->streams[b] = open_block(job, block + b);
    memset(panel->totals, 0, (size_t)(blocks * job->tokens * ROWS * 4));
}

static inline void begin_segment(const sqft_job* job, Panel* panel, int64_t block, int64_t segment) {
    int64_t group;
    locate(job, segment, &group, &panel->chunk, &panel->chunks);
    for (int64_t b = 0; b < panel->blocks; b++) {
        panel->zero[b] = zero_points(job, block + b, group);
        panel->scale[b] = group_scales(job, block + b, group);
    }
}

static inline void store_panel(const sqft_job* job, const Panel* panel, int64_t block) {
    for (int64_t t = 0; t < job->tokens; t++)
        for (int64_t b = 0; b < panel->blocks; b++)
            store_rows(job, block + b, t, _mm512_load_ps(panel->totals + (b * job->tokens + t) * ROWS));
}

/* run(planes, masked): both as constants, to be arguments of a template. */
template <class Run>
static inline void specialized(const sqft_job* job, Run run) {
    std::integral_constant<int, 2> two;
    std::integral_constant<int, 1> one;
    if (job->planes == 2)
        job->w.masks ? run(two, std::true_type()) : run(two, std::false_type());
    else
        job->w.masks ? run(one, std::true_type()) : run(one, std::false_type());
}

#endif
