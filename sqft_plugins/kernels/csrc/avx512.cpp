/* AVX-512 with VNNI (vpdpbusd) and VBMI2 (vpexpandb): Ice Lake, Zen 4 and later. */
#if defined(__x86_64__)
#include "avx512.h"

/* Up to TILE tokens, all there are: each chunk is expanded in registers and used at once. */
template <int T, int PLANES, bool MASKED>
static void direct(const sqft_job* job, int64_t block) {
    enum { APART = T <= 2 ? 2 : 1 }; /* so few accumulators wait for each other: even and odd chunks have their own */
    Stream stream = open_block(job, block);
    const int8_t* x = job->q;
    const float* s = job->scales;
    const int32_t* sums = job->sums;
    __m512 totals[T];
    EACH(t, T) totals[t] = _mm512_setzero_ps();
    for (int64_t group = 0; group < job->groups; group++) {
        __m512i zero = zero_points(job, block, group), fill = in_each_byte(zero);
        __m512 scale = group_scales(job, block, group);
        int64_t left = least(job->group_chunks, job->chunks - group * job->group_chunks);
        for (; left > 0; left -= SEGMENT_CHUNKS) {
            __m512i sum[T][PLANES][APART];
            EACH(t, T)
                EACH(p, PLANES)
                    EACH(a, APART) sum[t][p][a] = _mm512_setzero_si512();
            for (int64_t c = least(left, SEGMENT_CHUNKS); c > 0; c -= 2) {
                __m512i even, odd;
                next_pair<MASKED>(&stream, fill, &even, &odd);
                EACH(t, T)
                    EACH(p, PLANES)
                        sum[t][p][0] = dot(sum[t][p][0], even, x + (t * PLANES + p) * CHUNK);
                x += T * PLANES * CHUNK;
                EACH(t, T)
                    EACH(p, PLANES)
                        sum[t][p][APART - 1] = dot(sum[t][p][APART - 1], odd, x + (t * PLANES + p) * CHUNK);
                x += T * PLANES * CHUNK;
            }
            EACH(t, T) {
                EACH(p, PLANES)
                    if (APART == 2) sum[t][p][0] = _mm512_add_epi32(sum[t][p][0], sum[t][p][APART - 1]);
                totals[t] =
                    add_segment<PLANES>(totals[t], sum[t][0][0], sum[t][PLANES - 1][0], zero, sums[t], scale, s[t]);
            }
            s += T;
            sums += T;
        }
    }
    EACH(t, T) store_rows(job, block, t, totals[t]);
}

/* T tokens against the segment of one block of a panel. EXPAND: its codes are read from the stream and left in the
 * panel; else they lie there from the tokens before. */
template <int T, int PLANES, bool EXPAND, bool MASKED>
static void tile(Panel* panel, int64_t b, const int8_t* x, const float* s, const int32_t* sums, float* totals) {
    __m512i sum[T][PLANES], zero = panel->zero[b], fill = in_each_byte(zero);
    EACH(t, T)
        EACH(p, PLANES) sum[t][p] = _mm512_setzero_si512();
    Stream stream = panel->streams[b];
    uint8_t* codes = panel->codes + b * PANEL_BLOCK;
    for (int64_t c = panel->chunks; c > 0; c -= 2, codes += 2 * ROWS * CHUNK) {
        __m512i even, odd;
        if constexpr (EXPAND) {
            next_pair<MASKED>(&stream, fill, &even, &odd);
            _mm512_store_si512(codes, even);
            _mm512_store_si512(codes + ROWS * CHUNK, odd);
        } else {
            even = _mm512_load_si512(codes);
            odd = _mm512_load_si512(codes + ROWS * CHUNK);
        }
        EACH(t, T)
            EACH(p, PLANES) sum[t][p] = dot(sum[t][p], even, x + (t * PLANES + p) * CHUNK);
        x += T * PLANES * CHUNK;
        EACH(t, T)
            EACH(p, PLANES) sum[t][p] = dot(sum[t][p], odd, x + (t * PLANES + p) * CHUNK);
        x += T * PLANES * CHUNK;
    }
    if (EXPAND) panel->streams[b] = stream;
    EACH(t, T) {
        __m512 total = _mm512_load_ps(totals + t * ROWS);
        total = add_segment<PLANES>(total, sum[t][0], sum[t][PLANES - 1], zero, sums[t], panel->scale[b], s[t]);
        _mm512_store_ps(totals + t * ROWS, total);
    }
}

template <int T, int PLANES, bool MASKED>
static void direct_upto(const sqft_job* job, int64_t block) {
    if (job->tokens == T)
        direct<T, PLANES, MASKED>(job, block);
    else if constexpr (T > 1)
        direct_upto<T - 1, PLANES, MASKED>(job, block);
}

template <int T, int PLANES>
static void tile_upto(int64_t tokens, Panel* panel, int64_t b, const int8_t* x, const float* s, const int32_t* sums,
                      float* totals) {
    if (tokens == T)
        tile<T, PLANES, false, false>(panel, b, x, s, sums, totals);
    else if constexpr (T > 1)
        tile_upto<T - 1, PLANES>(tokens, panel, b, x, s, sums, totals);
}

template <int PLANES, bool MASKED>
static void run(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    if (job->tokens <= TILE) {
        for (int64_t block = first_block; block < last_block; block++)
            direct_upto<TILE, PLANES, MASKED>(job, block);
        return;
    }
    Panel panel = open_panel(buffer);
    for (int64_t block = first_block; block < last_block; block += PANEL) {
        begin_panel(job, &panel, block, least(PANEL, last_block - block));
        for (int64_t segment = 0; segment < job->segments; segment++) {
            begin_segment(job, &panel, block, segment);
            for (int64_t begin = 0; begin < job->tokens; begin += TILE) {
                int64_t tokens = least(TILE, job->tokens - begin), at = segment * job->tokens + begin;
                const int8_t* x = words_of(job, begin, panel.chunk, panel.chunks);
                for (int64_t b = 0; b < panel.blocks; b++) {
                    float* totals = panel.totals + (b * job->tokens + begin) * ROWS;
                    if (begin == 0)
                        tile<TILE, PLANES, true, MASKED>(&panel, b, x, job->scales + at, job->sums + at, totals);
                    else
                        tile_upto<TILE, PLANES>(tokens, &panel, b, x, job->scales + at, job->sums + at, totals);
                }
            }
        }
        store_panel(job, &panel, block);
    }
}

static void blocks(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    specialized(job, [=](auto planes, auto masked) { run<planes, masked>(job, first_block, last_block, buffer); });
}

extern "C" const sqft_backend sqft_avx512_backend;
const sqft_backend sqft_avx512_backend = {quantize_words, blocks, TILE};
#endif
