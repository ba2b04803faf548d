/* Q4_0 blocks → the packed form with AVX-512: 16 rows at a time, from the nibbles as they lie in the file.
 *
 * A chunk is 4 inputs of 16 rows, 64 codes: what 16 rows have in 4 bytes of their Q4_0 blocks. So turning 16 rows of 16
 * bytes gives eight chunks, four in the low nibbles and four in the high ones.
 */
#include "repack.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define SQFT_AVX512_PACK __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")))

namespace sqft {

namespace {

/* 16 rows of 16 bytes → four vectors: number d has bytes 4d to 4d + 3 of every row, in the order of the rows. */
SQFT_AVX512_PACK inline void turn(const uint8_t* from, int64_t row_bytes, __m512i* turned) {
    __m512i lines[4]; /* lane j of number k: row 4j + k */
    for (int k = 0; k < 4; k++) {
        auto row = [&](int j) { return _mm_loadu_si128((const __m128i*)(from + (4 * j + k) * row_bytes)); };
        lines[k] = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(1), 1)),
            _mm256_inserti128_si256(_mm256_castsi128_si256(row(2)), row(3), 1), 1);
    }
    const __m512i low_a = _mm512_unpacklo_epi32(lines[0], lines[1]), low_b = _mm512_unpacklo_epi32(lines[2], lines[3]);
    const __m512i high_a = _mm512_unpackhi_epi32(lines[0], lines[1]), high_b = _mm512_unpackhi_epi32(lines[2], lines[3]);
    turned[0] = _mm512_unpacklo_epi64(low_a, low_b);
    turned[1] = _mm512_unpackhi_epi64(low_a, low_b);
    turned[2] = _mm512_unpacklo_epi64(high_a, high_b);
    turned[3] = _mm512_unpackhi_epi64(high_a, high_b);
}

SQFT_AVX512_PACK int64_t masks_of(const uint8_t* rows, int64_t row_blocks, uint64_t* masks, int64_t* kept, uint8_t*) {
    const __m512i nibble = _mm512_set1_epi8(15), low_zero = _mm512_set1_epi8(8), high_zero = _mm512_set1_epi8((char)0x80);
    int64_t lengths[2] = {0, 0};
    for (int64_t b = 0; b < row_blocks; b++, masks += 8) {
        __m512i turned[4];
        turn(rows + b * Q4_0_BYTES + 2, row_blocks * Q4_0_BYTES, turned);
        for (int d = 0; d < 4; d++) {
            masks[d] = _mm512_cmpneq_epi8_mask(_mm512_and_si512(turned[d], nibble), low_zero);
            masks[4 + d] = _mm512_cmpneq_epi8_mask(_mm512_andnot_si512(nibble, turned[d]), high_zero);
            lengths[d % 2] += __builtin_popcountll(masks[d]) + __builtin_popcountll(masks[4 + d]);
        }
    }
    *kept += lengths[0] + lengths[1];
    return lengths[0] > lengths[1] ? lengths[0] : lengths[1];
}

SQFT_AVX512_PACK void values_of(const uint8_t* rows, int64_t row_blocks, const uint64_t* masks, int64_t length,
                                uint8_t* scratch, uint8_t* values) {
    const __m512i nibble = _mm512_set1_epi8(15);
    uint8_t* const streams[2] = {scratch, scratch + row_blocks * SCRATCH_BYTES / 2}; /* 256 bytes for each block at most */
    uint8_t* ends[2] = {streams[0], streams[1]};
    auto keep = [&](int parity, uint64_t mask, __m512i codes) SQFT_AVX512_PACK {
        _mm512_storeu_si512(ends[parity], _mm512_maskz_compress_epi8(mask, codes));
        ends[parity] += __builtin_popcountll(mask);
    };
    for (int64_t b = 0; b < row_blocks; b++, masks += 8) {
        __m512i turned[4];
        turn(rows + b * Q4_0_BYTES + 2, row_blocks * Q4_0_BYTES, turned);
        for (int d = 0; d < 4; d++) keep(d % 2, masks[d], _mm512_and_si512(turned[d], nibble));
        for (int d = 0; d < 4; d++)
            keep(d % 2, masks[4 + d], _mm512_and_si512(_mm512_srli_epi16(turned[d], 4), nibble));
    }
    /* what lies behind the end of a stream is 0 */
    for (int parity = 0; parity < 2; parity++)
        if (ends[parity] < streams[parity] + length)
            memset(ends[parity], 0, (size_t)(streams[parity] + length - ends[parity]));
    for (int64_t i = 0; i < length; i += VECTOR) {
        const __m512i both = _mm512_or_si512(_mm512_loadu_si512(streams[0] + i),
                                             _mm512_slli_epi16(_mm512_loadu_si512(streams[1] + i), 4));
        const int64_t left = length - i;
        _mm512_mask_storeu_epi8(values + i, left >= VECTOR ? ~0ull : (1ull << left) - 1, both);
    }
}

}  // namespace

const Packer* avx512_packer() {
    static const Packer packer = {masks_of, values_of};
    static const bool runs = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("popcnt");
    return runs ? &packer : nullptr;
}

}  // namespace sqft
#else
const sqft::Packer* sqft::avx512_packer() { return nullptr; }
#endif
