/* Q4_0 blocks ↔ the packed form of kernel.h, block of 16 rows by block of 16 rows, on all cores.
 *
 * A Q4_0 block is 32 weights of a row: an fp16 scale d, then 16 bytes, byte i with the codes of the weights i (low
 * nibble) and i + 16 (high nibble); weight = d * (code - 8). Code 8 is the zero: exactly those weights are not kept.
 */
#include <string.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <thread>

#include "door.h"

namespace sqft {

namespace {

const int64_t ROWS = 16;

/* body(begin, end) over [0, count), on all cores that this process may use. */
void on_all_cores(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(std::thread::hardware_concurrency(), count / 4));
    std::vector<std::thread> others;
    for (int64_t part = 1; part < threads; part++)
        others.emplace_back(body, count * part / threads, count * (part + 1) / threads);
    body(0, count / threads);
    for (std::thread& other : others) other.join();
}

uint16_t scale_of(const uint8_t* block) {
    uint16_t bits;
    memcpy(&bits, block, 2);
    return bits;
}

/* One row of blocks → codes uint8 [in]. */
void codes_of(const uint8_t* __restrict row, int64_t blocks, uint8_t* __restrict codes) {
    for (int64_t b = 0; b < blocks; b++, codes += Q4_0_WEIGHTS) {
        const uint8_t* bytes = row + b * Q4_0_BYTES + 2;
        for (int i = 0; i < 16; i++) codes[i] = bytes[i] & 15;
        for (int i = 0; i < 16; i++) codes[i + 16] = bytes[i] >> 4;
    }
}

/* codes, in place → 1 where kept. */
void flags_of(uint8_t* codes, int64_t count) {
    for (int64_t i = 0; i < count; i++) codes[i] = codes[i] != 8;
}

}  // namespace

void Survey::add_scales(const uint8_t* row, int64_t blocks) {
    group_blocks = std::gcd(group_blocks, blocks);
    for (int64_t b = 1; b < blocks; b++)
        if (scale_of(row + b * Q4_0_BYTES) != scale_of(row + (b - 1) * Q4_0_BYTES))
            group_blocks = std::gcd(group_blocks, b);
}

void Survey::add(const uint8_t* row, int64_t blocks) {
    add_scales(row, blocks);
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t* block = row + b * Q4_0_BYTES;
        uint8_t codes[Q4_0_WEIGHTS];
        codes_of(block, 1, codes);
        flags_of(codes, Q4_0_WEIGHTS);
        for (int i = 0; i < Q4_0_WEIGHTS; i += 8) {
            uint64_t eight;
            memcpy(&eight, codes + i, 8);
            kept += __builtin_popcountll(eight);
        }
        weights += Q4_0_WEIGHTS;
    }
}

int64_t Weight::bytes() const {
    return (int64_t)(masks.size() * 8 + block_offsets.size() * 8 + scales.size() * 2) +
           block_offsets.back() + SQFT_PADDING;
}

std::unique_ptr<Weight> pack(const uint8_t* source, int64_t out, int64_t in) {
    const int64_t row_blocks = in / Q4_0_WEIGHTS, row_bytes = row_blocks * Q4_0_BYTES;
    const int64_t blocks = (out + ROWS - 1) / ROWS, chunks = in / 4;
    auto made = std::make_unique<Weight>();
    made->masks.resize(blocks * chunks);
    made->block_offsets.resize(blocks + 1);

    /* which weights are kept, and how far scales repeat */
    std::atomic<int64_t> group_blocks{0};
    std::vector<int64_t> lengths(blocks);
    on_all_cores(blocks, [&](int64_t begin, int64_t end) {
        std::vector<uint8_t> codes(ROWS * in);
        Survey seen;
        for (int64_t block = begin; block < end; block++) {
            const int64_t rows = std::min(ROWS, out - block * ROWS);
            for (int64_t row = 0; row < rows; row++) {
                const uint8_t* from = source + (block * ROWS + row) * row_bytes;
                seen.add_scales(from, row_blocks);
                codes_of(from, row_blocks, codes.data() + row * in);
            }
            flags_of(codes.data(), rows * in);
            int64_t ends[2];
            lengths[block] = kernels.pack_masks(codes.data(), rows, in, made->masks.data() + block * chunks, ends);
        }
        for (int64_t old = group_blocks; !group_blocks.compare_exchange_weak(old, std::gcd(old, seen.group_blocks));) {
        }
    });
    for (uint64_t mask : made->masks) made->kept += __builtin_popcountll(mask);
    for (int64_t block = 0; block < blocks; block++)
        made->block_offsets[block + 1] = made->block_offsets[block] + lengths[block];

    /* codes and scales */
    const int64_t groups = row_blocks / group_blocks, total = made->block_offsets[blocks];
    made->values.reset(new uint8_t[total + SQFT_PADDING]);
    memset(made->values.get() + total, 0, SQFT_PADDING);
    made->scales.resize(blocks * groups * ROWS);
    on_all_cores(blocks, [&](int64_t begin, int64_t end) {
        std::vector<uint8_t> codes(ROWS * in), values;
        for (int64_t block = begin; block < end; block++) {
            const int64_t rows = std::min(ROWS, out - block * ROWS);
            for (int64_t row = 0; row < rows; row++) {
                const uint8_t* from = source + (block * ROWS + row) * row_bytes;
                codes_of(from, row_blocks, codes.data() + row * in);
                for (int64_t group = 0; group < groups; group++)
                    made->scales[(block * groups + group) * ROWS + row] =
                        scale_of(from + group * group_blocks * Q4_0_BYTES);
            }
            const int64_t ends[2] = {0, lengths[block]};
            values.resize(lengths[block] + SQFT_PADDING); /* its padding is not to fall on the next block */
            kernels.pack_values(codes.data(), rows, in, made->masks.data() + block * chunks, ends, values.data());
            memcpy(made->values.get() + made->block_offsets[block], values.data(), lengths[block]);
        }
    });

    made->packed = {made->masks.data(), made->values.get(), made->block_offsets.data(), made->scales.data(), nullptr,
                    out, in, group_blocks * Q4_0_WEIGHTS};
    return made;
}

void unpack(const Weight& weight, int64_t first, int64_t rows, uint8_t* target) {
    const sqft_weight& w = weight.packed;
    const int64_t row_blocks = w.in / Q4_0_WEIGHTS, chunks = w.in / 4, groups = w.in / w.group_size;
    std::vector<uint8_t> codes(ROWS * w.in), kept(ROWS * w.in);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t block = (first + row) / ROWS, inside = (first + row) % ROWS;
        if (inside == 0 || row == 0)
            kernels.unpack(w.masks + block * chunks, w.values, w.block_offsets + block, nullptr, groups,
                           std::min(ROWS, w.out - block * ROWS), w.in, codes.data(), kept.data());
        for (int64_t b = 0; b < row_blocks; b++, target += Q4_0_BYTES) {
            const uint8_t* from = codes.data() + inside * w.in + b * Q4_0_WEIGHTS;
            memcpy(target, &w.scales[(block * groups + b * Q4_0_WEIGHTS / w.group_size) * ROWS + inside], 2);
            for (int i = 0; i < 16; i++) target[2 + i] = (uint8_t)(from[i] | from[i + 16] << 4);
        }
    }
}

}  // namespace sqft
