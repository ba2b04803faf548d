/* AVX2: codes are expanded by a table (vpshufb) and multiplied by vpmaddubsw. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "lookup.h"

enum { HALF = 32 };

/* 8 bytes from `low` and 8 from `high`. */
static inline __m128i two(const void* low, const void* high) {
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i*)low)), (const __m64*)high));
}

/* sum[half] += two chunks of codes times two words of x. Eight products of a nibble and a byte fit into 16 bits. */
static inline void dot(__m256i sum[2], const uint8_t* codes, const int8_t* even, const int8_t* odd) {
    int32_t words[2];
    memcpy(words, even, 4);
    memcpy(words + 1, odd, 4);
    for (int half = 0; half < 2; half++) {
        __m256i a = _mm256_load_si256((const __m256i*)(codes + half * HALF));
        __m256i b = _mm256_load_si256((const __m256i*)(codes + BLOCK + half * HALF));
        __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a, _mm256_set1_epi32(words[0])),
                                         _mm256_maddubs_epi16(b, _mm256_set1_epi32(words[1])));
        sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
}

namespace {

/* lookup.h says what each of these is. Codes stay as they are; where pruned stands the zero point. */
struct Avx2 {
    struct Group {
        __m256i zero[2];
        __m128i fill[4]; /* zero in each byte of its row */
        __m256 scale[2];
    };

    static Group group_at(const sqft_job* job, int64_t at) {
        Group group;
        for (int half = 0; half < 2; half++) {
            __m256i zero = _mm256_set1_epi32(8);
            if (job->w.zero_points)
                zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(job->w.zero_points + at + 8 * half)));
            __m256i bytes = _mm256_mullo_epi32(zero, _mm256_set1_epi32(0x01010101));
            group.zero[half] = zero;
            group.fill[2 * half] = _mm256_castsi256_si128(bytes);
            group.fill[2 * half + 1] = _mm256_extracti128_si256(bytes, 1);
            group.scale[half] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(job->w.scales + at + 8 * half)));
        }
        return group;
    }

    template <int SHIFT>
    static const uint8_t* expand(const uint64_t* mask, const uint8_t* values, const Group& group, uint8_t* to) {
        uint64_t counts = running_count(*mask);
        uint8_t kept[8], bits[8]; /* in memory: bytes are read faster than shifted out */
        memcpy(kept, &counts, 8);
        memcpy(bits, mask, 8);
        const __m128i upper = _mm_set_epi64x(0x0808080808080808, 0); /* the second 8 codes lie in the upper half */
        for (int i = 0; i < 4; i++) {
            __m128i codes = two(values + (i ? kept[2 * i - 1] : 0), values + kept[2 * i]);
            __m128i at = _mm_or_si128(two(lookup.of + bits[2 * i], lookup.of + bits[2 * i + 1]), upper);
            codes = _mm_and_si128(SHIFT ? _mm_srli_epi16(codes, SHIFT) : codes, _mm_set1_epi8(15));
            _mm_store_si128((__m128i*)(to + 16 * i), _mm_blendv_epi8(_mm_shuffle_epi8(codes, at), group.fill[i], at));
        }
        return values + kept[7];
    }

    static void expand_dense(const uint8_t* values, const Group&, uint8_t* to) {
        for (int half = 0; half < 2; half++) {
            __m256i codes = _mm256_loadu_si256((const __m256i*)(values + half * HALF)), nibble = _mm256_set1_epi8(15);
            _mm256_store_si256((__m256i*)(to + half * HALF), _mm256_and_si256(codes, nibble));
            codes = _mm256_srli_epi16(codes, 4);
            _mm256_store_si256((__m256i*)(to + BLOCK + half * HALF), _mm256_and_si256(codes, nibble));
        }
    }

    template <int PLANES>
    static void token(const uint8_t* codes, int64_t chunks, const int8_t* x, int64_t stride, const Group& group,
                      int32_t x_sum, float s, float* total) {
        __m256i sum[2][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                             {_mm256_setzero_si256(), _mm256_setzero_si256()}};
        for (int64_t c = 0; c < chunks; c += 2, codes += 2 * BLOCK, x += 2 * stride) {
            dot(sum[0], codes, x, x + stride);
            if (PLANES == 2) dot(sum[1], codes, x + CHUNK, x + stride + CHUNK);
        }
        for (int half = 0; half < 2; half++) {
            __m256i n = PLANES == 2 ? _mm256_add_epi32(_mm256_slli_epi32(sum[0][half], 8), sum[1][half]) : sum[0][half];
            n = _mm256_sub_epi32(n, _mm256_mullo_epi32(group.zero[half], _mm256_set1_epi32(x_sum)));
            __m256 part = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(n), group.scale[half]), _mm256_set1_ps(s));
            _mm256_store_ps(total + 8 * half, _mm256_add_ps(_mm256_load_ps(total + 8 * half), part));
        }
    }
};

}  // namespace

extern "C" const sqft_backend sqft_avx2_backend;
const sqft_backend sqft_avx2_backend = {quantize_words, blocks_of<Avx2>, TILE};
#endif
