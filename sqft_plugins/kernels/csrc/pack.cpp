/* Packing and unpacking: what layout.py does in torch, some twenty times as fast. One thread. */
#include <stdint.h>
#include <string.h>

#include "kernel.h"

static const int64_t ROWS = 16, INPUTS = 4;

static int64_t blocks_of(int64_t out) { return (out + ROWS - 1) / ROWS; }
static int64_t chunks_of(int64_t in) { return 2 * ((in + 2 * INPUTS - 1) / (2 * INPUTS)); }

/* Four bytes, each 0 or not → four bits. */
static uint64_t bits_of(const uint8_t* bytes) {
    uint32_t four;
    memcpy(&four, bytes, 4);
    four = (((four & 0x7f7f7f7f) + 0x7f7f7f7f) | four) >> 7 & 0x01010101;
    return four * 0x10204080u >> 28; /* moves the bits 0, 8, 16 and 24 to 28, 29, 30 and 31 */
}

/* What to keep of eight bytes, by the eight bits that say so: where each kept one is taken from, and how many. */
static uint8_t place_of[256][8], kept_of[256];
static const bool made = [] {
    for (int bits = 0; bits < 256; bits++) {
        int count = 0;
        for (int i = 0; i < 8; i++)
            if (bits >> i & 1) place_of[bits][count++] = (uint8_t)i;
        kept_of[bits] = (uint8_t)count;
        while (count < 8) place_of[bits][count++] = 0x80; /* pshufb makes it 0 */
    }
    return true;
}();

/* Of 64 bytes those whose bits are set, one behind the other → how many; eight bytes more may be written. */
typedef int64_t (*sqft_keep)(const uint8_t* bytes, uint64_t bits, uint8_t* kept);

static int64_t keep_each(const uint8_t* bytes, uint64_t bits, uint8_t* kept) {
    int64_t count = 0;
    for (; bits; bits &= bits - 1) kept[count++] = bytes[__builtin_ctzll(bits)];
    return count;
}

#if defined(__x86_64__)
#include <tmmintrin.h>

__attribute__((target("ssse3"))) static int64_t keep_by_shuffle(const uint8_t* bytes, uint64_t bits, uint8_t* kept) {
    int64_t count = 0;
    for (; bits; bits >>= 8, bytes += 8) {
        __m128i places = _mm_loadl_epi64((const __m128i*)place_of[(uint8_t)bits]);
        _mm_storel_epi64((__m128i*)(kept + count), _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i*)bytes), places));
        count += kept_of[(uint8_t)bits];
    }
    return count;
}
#endif

static sqft_keep fastest_keep(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("ssse3")) return keep_by_shuffle;
#endif
    return keep_each;
}

extern "C" {

/* kept: bool [out, in] → masks [blocks, chunks] and block_offsets [blocks + 1]; returns the bytes of values, without
 * the padding. */
int64_t sqft_pack_masks(const uint8_t* kept, int64_t out, int64_t in, uint64_t* masks, int64_t* block_offsets) {
    const int64_t blocks = blocks_of(out), chunks = chunks_of(in), whole = in / INPUTS;
    memset(masks, 0, (size_t)(blocks * chunks) * sizeof *masks);
    block_offsets[0] = 0;
    for (int64_t block = 0; block < blocks; block++) {
        uint64_t* to = masks + block * chunks;
        for (int64_t row = 0; row < ROWS && block * ROWS + row < out; row++) {
            const uint8_t* from = kept + (block * ROWS + row) * in;
            for (int64_t chunk = 0; chunk < whole; chunk++)
                to[chunk] |= bits_of(from + chunk * INPUTS) << (INPUTS * row);
            for (int64_t input = whole * INPUTS; input < in; input++)
                to[whole] |= (uint64_t)(from[input] != 0) << (INPUTS * row + input % INPUTS);
        }
        int64_t lengths[2] = {0, 0};
        for (int64_t chunk = 0; chunk < chunks; chunk++) lengths[chunk % 2] += __builtin_popcountll(to[chunk]);
        block_offsets[block + 1] = block_offsets[block] + (lengths[0] > lengths[1] ? lengths[0] : lengths[1]);
    }
    return block_offsets[blocks];
}

/* codes: uint8 [out, in], 0..15 → values, SQFT_PADDING bytes of zeros included. */
void sqft_pack_values(const uint8_t* codes, int64_t out, int64_t in, const uint64_t* masks, const int64_t* block_offsets,
                      uint8_t* values) {
    const int64_t blocks = blocks_of(out), chunks = chunks_of(in);
    const sqft_keep keep = fastest_keep();
    memset(values, 0, (size_t)(block_offsets[blocks] + SQFT_PADDING));
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t rows = out - block * ROWS < ROWS ? out - block * ROWS : ROWS;
        const uint8_t* from = codes + block * ROWS * in;
        for (int64_t parity = 0; parity < 2; parity++) {
            uint8_t* to = values + block_offsets[block];
            for (int64_t chunk = parity; chunk < chunks; chunk += 2) {
                const int64_t inputs = in - chunk * INPUTS < INPUTS ? in - chunk * INPUTS : INPUTS;
                uint8_t all[ROWS * INPUTS] = {}, kept[ROWS * INPUTS + 8] = {};
                if (inputs == INPUTS)
                    for (int64_t row = 0; row < rows; row++)
                        memcpy(all + row * INPUTS, from + row * in + chunk * INPUTS, INPUTS);
                else if (inputs > 0)
                    for (int64_t row = 0; row < rows; row++)
                        memcpy(all + row * INPUTS, from + row * in + chunk * INPUTS, (size_t)inputs);
                const int64_t count = keep(all, masks[block * chunks + chunk], kept);
                for (int64_t i = 0; i < count; i += 8) { /* beyond count: 0, and SQFT_PADDING behind the last block */
                    uint64_t codes_8, there;
                    memcpy(&codes_8, kept + i, 8);
                    memcpy(&there, to + i, 8);
                    there |= codes_8 << (4 * parity);
                    memcpy(to + i, &there, 8);
                }
                to += count;
            }
        }
    }
}

/* The inverse → codes [out, in], the pruned ones their zero points (zero_points: [blocks, groups, 16], NULL: 8), and
 * kept: bool [out, in]. */
void sqft_unpack(const uint64_t* masks, const uint8_t* values, const int64_t* block_offsets, const uint8_t* zero_points,
                 int64_t groups, int64_t out, int64_t in, uint8_t* codes, uint8_t* kept) {
    const int64_t blocks = blocks_of(out), chunks = chunks_of(in), group_size = in / groups;
    memset(kept, 0, (size_t)(out * in));
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t first = block * ROWS * in;
        for (int64_t row = 0; row < ROWS && block * ROWS + row < out; row++)
            for (int64_t group = 0; group < groups; group++)
                memset(codes + first + row * in + group * group_size,
                       zero_points ? zero_points[(block * groups + group) * ROWS + row] : 8, (size_t)group_size);
        const uint8_t* streams[2] = {values + block_offsets[block], values + block_offsets[block]};
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const uint8_t*& from = streams[chunk % 2];
            const int shift = 4 * (chunk % 2);
            for (uint64_t left = masks[block * chunks + chunk]; left; left &= left - 1) {
                int position = __builtin_ctzll(left);
                int64_t at = first + position / INPUTS * in + chunk * INPUTS + position % INPUTS;
                codes[at] = *from++ >> shift & 15;
                kept[at] = 1;
            }
        }
    }
}
}
