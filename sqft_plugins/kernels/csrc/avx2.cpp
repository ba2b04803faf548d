/* AVX2 without VNNI: avx2.h expands, vpmaddubsw multiplies codes 0 to 15 by signed bytes. */
#if defined(__x86_64__)
#include "avx2.h"

/* sum += narrow, whose pairs of 16 bits belong to one row; narrow = 0. */
INLINE void widen(__m256i& sum, __m256i& narrow) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
    narrow = _mm256_setzero_si256();
}

/* One token, four chunks: narrow[plane][j] += codes times x. x: words [chunk][plane], of all four. */
template <int PLANES>
INLINE void multiply_quad(const __m256i even[QUAD], const __m256i odd[QUAD], const int8_t* x,
                          __m256i narrow[PLANES][QUAD]) {
    __m256i words[PLANES][2]; /* the word of its chunk in every dword of a lane */
    if (PLANES == 2) {
        __m256i all = _mm256_loadu_si256((const __m256i*)x);
        words[0][0] = _mm256_shuffle_epi32(all, 0x00);
        words[PLANES - 1][0] = _mm256_shuffle_epi32(all, 0x55);
        words[0][1] = _mm256_shuffle_epi32(all, 0xaa);
        words[PLANES - 1][1] = _mm256_shuffle_epi32(all, 0xff);
    } else {
        __m256i all = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)x));
        all = _mm256_permute4x64_epi64(all, 0x50);
        words[0][0] = _mm256_shuffle_epi32(all, 0x00);
        words[0][1] = _mm256_shuffle_epi32(all, 0x55);
    }
    EACH(p, PLANES)
        EACH(j, QUAD) {
            narrow[p][j] = _mm256_add_epi16(narrow[p][j], _mm256_maddubs_epi16(even[j], words[p][0]));
            hold(narrow[p][j]);
            narrow[p][j] = _mm256_add_epi16(narrow[p][j], _mm256_maddubs_epi16(odd[j], words[p][1]));
            hold(narrow[p][j]);
        }
}

/* sum[half] += narrow, whose pairs of 16 bits are of one row, in both lanes; narrow = 0. */
INLINE void widen_rows(__m256i sum[2], __m256i narrow[QUAD]) {
    const __m256i one = _mm256_set1_epi16(1);
    EACH(half, 2) {
        __m256i a = _mm256_madd_epi16(narrow[2 * half], one), b = _mm256_madd_epi16(narrow[2 * half + 1], one);
        __m256i rows = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
        sum[half] = _mm256_add_epi32(sum[half], rows);
    }
    EACH(j, QUAD) narrow[j] = _mm256_setzero_si256();
}

/* 64 bytes of values → half of the rows of two chunks. */
INLINE void dense_pair(const uint8_t* values, int half, __m256i* even, __m256i* odd) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i codes = _mm256_loadu_si256((const __m256i*)(values + 32 * half));
    *even = _mm256_and_si256(codes, nibble);
    *odd = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
}

INLINE __m256i word(const int8_t* x) {
    int32_t value;
    memcpy(&value, x, 4);
    return _mm256_set1_epi32(value);
}

/* One token. segment(chunks, group, sum) gives the sums of the next segment, whose stream it moves on:
 * sum[plane][half of the rows]. */
template <int PLANES, bool SYMMETRIC, class Segment>
INLINE void one_token(const sqft_job* job, int64_t block, Segment segment) {
    const float* s = job->scales;
    const int32_t* sums = job->sums;
    __m256 totals[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int64_t number = 0; number < job->groups; number++) {
        Group group = group_at<SYMMETRIC>(job, (block * job->groups + number) * ROWS);
        int64_t left = least(job->group_chunks, job->chunks - number * job->group_chunks);
        for (; left > 0; left -= SEGMENT_CHUNKS, s++, sums++) {
            __m256i sum[PLANES][2];
            EACH(p, PLANES)
                EACH(half, 2) sum[p][half] = _mm256_setzero_si256();
            segment(least(left, SEGMENT_CHUNKS), group, sum);
            EACH(half, 2)
                totals[half] = add_segment<PLANES>(totals[half], sum[0][half], sum[PLANES - 1][half], group.zero[half],
                                                   *sums, group.scale[half], *s);
        }
    }
    alignas(32) float rows[ROWS];
    EACH(half, 2) _mm256_store_ps(rows + 8 * half, totals[half]);
    store_block(job, block, 0, rows);
}

/* One token, sparse: each chunk is expanded in registers and used at once. */
template <int PLANES, bool SYMMETRIC>
static void direct(const sqft_job* job, int64_t block) {
    Stream stream = open_block(job, block);
    const int8_t* x = job->q;
    one_token<PLANES, SYMMETRIC>(job, block, [&](int64_t left, const Group& group, __m256i(*sum)[2]) {
        __m256i narrow[PLANES][QUAD], even[QUAD], odd[QUAD];
        EACH(p, PLANES)
            EACH(j, QUAD) narrow[p][j] = _mm256_setzero_si256();
        while (left > 0) {
            for (int i = 0; i < NARROW && left >= QUAD; i += 2, left -= QUAD) {
                look_ahead(&stream);
                expand(stream.mask, &stream, group, even, odd);
                multiply_quad<PLANES>(even, odd, x, narrow);
                stream.mask += QUAD;
                x += QUAD * PLANES * CHUNK;
            }
            EACH(p, PLANES) widen_rows(sum[p], narrow[p]);
            if (left != 2) continue;
            uint64_t masks[QUAD] = {stream.mask[0], stream.mask[1], 0, 0}; /* and two chunks that are empty */
            int8_t words[QUAD * PLANES * CHUNK] = {};
            memcpy(words, x, 2 * PLANES * CHUNK);
            expand(masks, &stream, group, even, odd);
            multiply_quad<PLANES>(even, odd, words, narrow);
            EACH(p, PLANES) widen_rows(sum[p], narrow[p]);
            stream.mask += 2;
            x += 2 * PLANES * CHUNK;
            left = 0;
        }
    });
}

/* One token, dense. */
template <int PLANES, bool SYMMETRIC>
static void direct_dense(const sqft_job* job, int64_t block) {
    const uint8_t* values = open_block(job, block).low;
    const int8_t* x = job->q;
    one_token<PLANES, SYMMETRIC>(job, block, [&](int64_t left, const Group&, __m256i(*sum)[2]) {
        while (left > 0) {
            __m256i narrow[PLANES][2];
            EACH(p, PLANES)
                EACH(half, 2) narrow[p][half] = _mm256_setzero_si256();
            for (int i = 0; i < NARROW && left > 0; i += 2, left -= 2, values += BLOCK, x += 2 * PLANES * CHUNK) {
                _mm_prefetch((const char*)values + AHEAD, _MM_HINT_T0);
                EACH(half, 2) {
                    __m256i even, odd;
                    dense_pair(values, half, &even, &odd);
                    EACH(p, PLANES) {
                        __m256i a = _mm256_maddubs_epi16(even, word(x + p * CHUNK));
                        __m256i b = _mm256_maddubs_epi16(odd, word(x + (PLANES + p) * CHUNK));
                        narrow[p][half] = _mm256_add_epi16(narrow[p][half], _mm256_add_epi16(a, b));
                        hold(narrow[p][half]);
                    }
                }
            }
            EACH(p, PLANES)
                EACH(half, 2) widen(sum[p][half], narrow[p][half]);
        }
    });
}

/* The four rows of a lane to their place in a chunk of codes. */
INLINE void store_lanes(uint8_t* to, __m256i codes, int64_t apart) {
    _mm_store_si128((__m128i*)to, _mm256_castsi256_si128(codes));
    _mm_store_si128((__m128i*)(to + apart), _mm256_extracti128_si256(codes, 1));
}

/* The chunks of a segment → codes, 64 bytes a chunk, pruned ones the zero point. */
static void expand_segment(Stream* stream, const Group& group, int64_t chunks, uint8_t* to) {
    __m256i even[QUAD], odd[QUAD];
    for (int64_t left = chunks; left > 0; left -= QUAD, to += QUAD * BLOCK) {
        look_ahead(stream);
        uint64_t masks[QUAD] = {stream->mask[0], stream->mask[1], 0, 0};
        expand(left >= QUAD ? stream->mask : masks, stream, group, even, odd);
        EACH(j, QUAD) {
            store_lanes(to + 16 * j, even[j], 2 * BLOCK);
            store_lanes(to + BLOCK + 16 * j, odd[j], 2 * BLOCK);
        }
        stream->mask += left >= QUAD ? QUAD : 2;
    }
}

/* T tokens against one segment. DENSE: codes are values, in pairs of chunks; else as expand_segment leaves them.
 * stride: bytes from a word of x to that of the next chunk. */
template <int T, int PLANES, bool DENSE>
static void multiply(const uint8_t* codes, int64_t chunks, const int8_t* x, int64_t stride, const Group& group,
                     const int32_t* sums, const float* s, float* totals) {
    __m256i sum[T][PLANES][2];
    EACH(t, T)
        EACH(p, PLANES)
            EACH(half, 2) sum[t][p][half] = _mm256_setzero_si256();
    for (int64_t left = chunks; left > 0;) {
        __m256i narrow[T][PLANES][2];
        EACH(t, T)
            EACH(p, PLANES)
                EACH(half, 2) narrow[t][p][half] = _mm256_setzero_si256();
        for (int i = 0; i < NARROW && left > 0; i += 2, left -= 2) {
            __m256i pair[2][2];
            EACH(half, 2) {
                if (DENSE) {
                    dense_pair(codes, half, &pair[0][half], &pair[1][half]);
                } else {
                    pair[0][half] = _mm256_load_si256((const __m256i*)(codes + 32 * half));
                    pair[1][half] = _mm256_load_si256((const __m256i*)(codes + BLOCK + 32 * half));
                }
            }
            EACH(c, 2)
                EACH(t, T)
                    EACH(p, PLANES) {
                        __m256i words = word(x + c * stride + (t * PLANES + p) * CHUNK);
                        EACH(half, 2) {
                            narrow[t][p][half] =
                                _mm256_add_epi16(narrow[t][p][half], _mm256_maddubs_epi16(pair[c][half], words));
                            hold(narrow[t][p][half]);
                        }
                    }
            codes += DENSE ? BLOCK : 2 * BLOCK;
            x += 2 * stride;
        }
        EACH(t, T)
            EACH(p, PLANES)
                EACH(half, 2) widen(sum[t][p][half], narrow[t][p][half]);
    }
    EACH(t, T)
        EACH(half, 2) {
            float* to = totals + t * ROWS + 8 * half;
            _mm256_store_ps(to, add_segment<PLANES>(_mm256_load_ps(to), sum[t][0][half], sum[t][PLANES - 1][half],
                                                    group.zero[half], sums[t], group.scale[half], s[t]));
        }
}

/* multiply<tokens>. */
template <int T, int PLANES, bool DENSE, class... Rest>
static void multiply_upto(int64_t tokens, Rest... rest) {
    if (tokens == T)
        multiply<T, PLANES, DENSE>(rest...);
    else if constexpr (T > 1)
        multiply_upto<T - 1, PLANES, DENSE>(tokens, rest...);
}

/* Any number of tokens: each segment is expanded into memory, then multiplied by a few tokens at a time. */
template <int PLANES, bool SYMMETRIC, bool DENSE>
static void through_memory(const sqft_job* job, int64_t block, uint8_t* codes, float* totals) {
    Stream stream = open_block(job, block);
    memset(totals, 0, (size_t)(job->tokens * ROWS * 4));
    for (int64_t segment = 0; segment < job->segments; segment++) {
        int64_t number, chunk, chunks;
        locate(job, segment, &number, &chunk, &chunks);
        Group group = group_at<SYMMETRIC>(job, (block * job->groups + number) * ROWS);
        if (!DENSE) expand_segment(&stream, group, chunks, codes);
        for (int64_t begin = 0; begin < job->tokens; begin += TILE) {
            int64_t tile = least(TILE, job->tokens - begin), at = segment * job->tokens + begin;
            const int8_t* x = words_of(job, begin, chunk, chunks);
            enum { TOGETHER = FEW / PLANES };
            for (int64_t t = 0; t < tile; t += TOGETHER)
                multiply_upto<TOGETHER, PLANES, DENSE>(
                    least(TOGETHER, tile - t), DENSE ? stream.low : codes, chunks, x + t * CHUNK * PLANES,
                    tile * CHUNK * PLANES, group, job->sums + at + t, job->scales + at + t,
                    totals + (begin + t) * ROWS);
        }
        if (DENSE) {
            for (int64_t c = 0; c < chunks; c += 2)
                _mm_prefetch((const char*)stream.low + AHEAD + c / 2 * BLOCK, _MM_HINT_T0);
            stream.low += chunks / 2 * BLOCK;
        }
    }
    for (int64_t t = 0; t < job->tokens; t++) store_block(job, block, t, totals + t * ROWS);
}

template <int PLANES, bool SYMMETRIC>
static void run(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    float* totals = (float*)(buffer + SEGMENT_CHUNKS * BLOCK);
    for (int64_t block = first_block; block < last_block; block++)
        if (job->tokens == 1)
            job->w.masks ? direct<PLANES, SYMMETRIC>(job, block) : direct_dense<PLANES, SYMMETRIC>(job, block);
        else if (!job->w.masks)
            through_memory<PLANES, SYMMETRIC, true>(job, block, buffer, totals);
        else
            through_memory<PLANES, SYMMETRIC, false>(job, block, buffer, totals);
}

static void blocks(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    bool symmetric = !job->w.zero_points;
    if (job->planes == 2)
        symmetric ? run<2, true>(job, first_block, last_block, buffer)
                  : run<2, false>(job, first_block, last_block, buffer);
    else
        symmetric ? run<1, true>(job, first_block, last_block, buffer)
                  : run<1, false>(job, first_block, last_block, buffer);
}

extern "C" const sqft_backend sqft_avx2_backend;
const sqft_backend sqft_avx2_backend = {quantize_words, blocks, TILE};
#endif
