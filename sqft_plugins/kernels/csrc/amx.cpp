/* AMX: 16 tokens x 16 rows x 64 inputs in one instruction. Sapphire Rapids and later. For few tokens, where a tile
 * would stay mostly empty, AVX-512. Tested on tiles, and on emulated
 * ones where there are none (tests/sqft_plugins/kernels/test_build_amx.py). */
#if defined(__x86_64__)
#include "avx512.h"

extern "C" const sqft_backend sqft_avx512_backend __attribute__((weak)); /* supported.cpp: no AMX without it */

enum { TOKENS = 16, DEPTH = 64, FEW = 4, TOGETHER = 2 };

/* The inputs of a segment are padded to 64 with zeros. */
static inline int64_t padded(int64_t chunks) { return (chunks * CHUNK + DEPTH - 1) / DEPTH * DEPTH; }

/* x of the tile that begins at token `begin` in one segment: [plane][token of 16][padded inputs]. */
static inline int8_t* tile_at(const sqft_job* job, int64_t begin, int64_t segment) {
    int64_t last = padded((job->group_chunks - 1) % SEGMENT_CHUNKS + 1), per_group = job->segments_per_group;
    int64_t before = segment / per_group * ((per_group - 1) * SEGMENT + last) + segment % per_group * SEGMENT;
    int64_t width = segment % per_group == per_group - 1 ? last : (int64_t)SEGMENT;
    int64_t tokens = (job->tokens + TOKENS - 1) / TOKENS * TOKENS;
    return job->q + job->planes * (tokens * before + begin * width);
}

static void quantize(const sqft_job* job, int64_t first_token, int64_t last_token) {
    if (job->tokens <= FEW) return quantize_words(job, first_token, last_token);
    int8_t planes[2 * SEGMENT];
    for (int64_t token = first_token; token < last_token; token++)
        for (int64_t segment = 0; segment < job->segments; segment++) {
            int64_t group, chunk, chunks, begin = token / TOKENS * TOKENS, at = segment * job->tokens + token;
            locate(job, segment, &group, &chunk, &chunks);
            int64_t count = least(chunks * CHUNK, job->w.in - chunk * CHUNK), width = padded(chunks);
            quantize_segment(job, token * job->x_stride + chunk * CHUNK, count, planes, job->scales + at,
                             job->sums + at);
            int8_t* to = tile_at(job, begin, segment) + (token - begin) * width;
            memcpy(to, planes, (size_t)width);
            if (job->planes == 2) memcpy(to + TOKENS * width, planes + SEGMENT, (size_t)width);
        }
}

struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* All eight tiles are 16 rows of 64 bytes. Static: GCC 12 drops the stores to one on the stack. */
static const Configuration configuration = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* Sums of 16 tokens over one segment: tiles 0, 1 = planes of the first block, 2, 3 = of the second. */
template <int PLANES>
static void multiply(const uint8_t* codes, int64_t width, const int8_t* x, int64_t blocks, int32_t* sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < width; k += DEPTH) {
        _tile_loadd(6, x + k, width);
        if (PLANES == 2) _tile_loadd(7, x + TOKENS * width + k, width);
        _tile_loadd(4, codes + k * ROWS, DEPTH);
        _tile_dpbssd(0, 6, 4);
        if (PLANES == 2) _tile_dpbssd(1, 7, 4);
        if (blocks == 1) continue;
        _tile_loadd(5, codes + PANEL_BLOCK + k * ROWS, DEPTH);
        _tile_dpbssd(2, 6, 5);
        if (PLANES == 2) _tile_dpbssd(3, 7, 5);
    }
    _tile_stored(0, sums, ROWS * 4);
    if (PLANES == 2) _tile_stored(1, sums + TOKENS * ROWS, ROWS * 4);
    if (blocks == 1) return;
    _tile_stored(2, sums + 2 * TOKENS * ROWS, ROWS * 4);
    if (PLANES == 2) _tile_stored(3, sums + 3 * TOKENS * ROWS, ROWS * 4);
}

/* The segment of each block → code - zero point, signed, 0 where pruned. */
template <bool MASKED>
static void expand(Panel* panel) {
    for (int64_t b = 0; b < panel->blocks; b++) {
        __m512i fill = in_each_byte(panel->zero[b]), even, odd;
        uint8_t* to = panel->codes + b * PANEL_BLOCK;
        for (int64_t c = 0; c < panel->chunks; c += 2, to += 2 * ROWS * CHUNK) {
            next_pair<MASKED>(&panel->streams[b], fill, &even, &odd);
            _mm512_store_si512(to, _mm512_sub_epi8(even, fill));
            _mm512_store_si512(to + ROWS * CHUNK, _mm512_sub_epi8(odd, fill));
        }
    }
}

template <int PLANES, bool MASKED>
static void run(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    alignas(64) int32_t sums[TOGETHER * 2 * TOKENS * ROWS];
    Panel panel = open_panel(buffer);
    alignas(64) Configuration before; /* llama.cpp's own AMX code sets its tiles once a thread, and this is its thread */
    _tile_storeconfig(&before);
    _tile_loadconfig(&configuration);
    for (int64_t block = first_block; block < last_block; block += PANEL) {
        begin_panel(job, &panel, block, least(PANEL, last_block - block));
        for (int64_t segment = 0; segment < job->segments; segment++) {
            begin_segment(job, &panel, block, segment);
            expand<MASKED>(&panel);
            int64_t width = padded(panel.chunks);
            for (int64_t begin = 0; begin < job->tokens; begin += TOKENS)
                for (int64_t b = 0; b < panel.blocks; b += TOGETHER) {
                    int64_t blocks = least(TOGETHER, panel.blocks - b), tokens = least(TOKENS, job->tokens - begin);
                    multiply<PLANES>(panel.codes + b * PANEL_BLOCK, width, tile_at(job, begin, segment), blocks, sums);
                    const float* s = job->scales + segment * job->tokens + begin;
                    for (int64_t i = 0; i < blocks; i++)
                        for (int64_t t = 0; t < tokens; t++) {
                            const int32_t* high = sums + (i * 2 * TOKENS + t) * ROWS;
                            float* total = panel.totals + ((b + i) * job->tokens + begin + t) * ROWS;
                            __m512i n = _mm512_load_si512(high);
                            if (PLANES == 2)
                                n = _mm512_add_epi32(_mm512_slli_epi32(n, 8), _mm512_load_si512(high + TOKENS * ROWS));
                            _mm512_store_ps(total, add_scaled(_mm512_load_ps(total), n, panel.scale[b + i],
                                                              s[t]));
                        }
                }
        }
        store_panel(job, &panel, block);
    }
    if (before.palette)
        _tile_loadconfig(&before);
    else
        _tile_release();
}

static void blocks(const sqft_job* job, int64_t first_block, int64_t last_block, uint8_t* buffer) {
    if (job->tokens <= FEW) return sqft_avx512_backend.blocks(job, first_block, last_block, buffer);
    specialized(job, [=](auto planes, auto masked) { run<planes, masked>(job, first_block, last_block, buffer); });
}

extern "C" const sqft_backend sqft_amx_backend;
const sqft_backend sqft_amx_backend = {quantize, blocks, TOKENS};
#endif
