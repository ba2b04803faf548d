/* Q4_0 blocks ↔ the packed form of kernel.h, block of 16 rows by block of 16 rows, on all cores.
 *
 * A Q4_0 block is 32 weights of a row: an fp16 scale d, then 16 bytes, byte i with the codes of the weights i (low
 * nibble) and i + 16 (high nibble); weight = d * (code - 8). Code 8 is the zero: exactly those weights are not kept.
 */
#include "repack.h"

#include <sys/mman.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <system_error>
#include <thread>

namespace sqft {

namespace {

const int64_t ROWS = 16;

int64_t cores() { return std::max<int64_t>(1, std::thread::hardware_concurrency()); }

/* body(part, begin, end) over [0, count), on all cores that this process may use. */
void on_all_cores(int64_t count, const std::function<void(int64_t, int64_t, int64_t)>& body) {
    const int64_t parts = std::max<int64_t>(1, std::min(cores(), count / 4));
    std::vector<std::thread> others;
    int64_t started = 1;
    try {
        for (; started < parts; started++)
            others.emplace_back(body, started, count * started / parts, count * (started + 1) / parts);
    } catch (const std::exception&) { /* no more threads for this process: what is left is done here */
    }
    body(0, 0, count / parts);
    for (std::thread& other : others) other.join();
    for (int64_t part = started; part < parts; part++) body(part, count * part / parts, count * (part + 1) / parts);
}

uint16_t scale_of(const uint8_t* block) {
    uint16_t bits;
    memcpy(&bits, block, 2);
    return bits;
}

/* One row of blocks → codes uint8 [in], each XOR `flip`: with flip 8 those that are kept are other than 0. */
void codes_of(const uint8_t* __restrict row, int64_t blocks, uint8_t flip, uint8_t* __restrict codes) {
    for (int64_t b = 0; b < blocks; b++, codes += Q4_0_WEIGHTS) {
        const uint8_t* bytes = row + b * Q4_0_BYTES + 2;
        for (int i = 0; i < 16; i++) codes[i] = (bytes[i] & 15) ^ flip;
        for (int i = 0; i < 16; i++) codes[i + 16] = (bytes[i] >> 4) ^ flip;
    }
}

int64_t plain_masks(const uint8_t* rows, int64_t row_blocks, uint64_t* masks, int64_t* kept, uint8_t* scratch) {
    int64_t ends[2];
    for (int64_t row = 0; row < ROWS; row++)
        codes_of(rows + row * row_blocks * Q4_0_BYTES, row_blocks, 8, scratch + row * row_blocks * Q4_0_WEIGHTS);
    kernels.pack_masks(scratch, ROWS, row_blocks * Q4_0_WEIGHTS, masks, ends);
    for (int64_t chunk = 0; chunk < 8 * row_blocks; chunk++) *kept += __builtin_popcountll(masks[chunk]);
    return ends[1];
}

void plain_values(const uint8_t* rows, int64_t row_blocks, const uint64_t* masks, int64_t length, uint8_t* scratch,
                  uint8_t* values) {
    const int64_t ends[2] = {0, length};
    for (int64_t row = 0; row < ROWS; row++)
        codes_of(rows + row * row_blocks * Q4_0_BYTES, row_blocks, 0, scratch + row * row_blocks * Q4_0_WEIGHTS);
    uint8_t* packed = scratch + row_blocks * SCRATCH_BYTES / 2; /* its padding is not to fall on the next block */
    kernels.pack_values(scratch, ROWS, row_blocks * Q4_0_WEIGHTS, masks, ends, packed);
    memcpy(values, packed, (size_t)length);
}

int64_t up(int64_t bytes) { return (bytes + VECTOR - 1) & ~(int64_t)(VECTOR - 1); }

/* Fewer and larger pages, where the whole of one is used: the system clears them at once, and they are found faster. */
void prefer_large_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t large = 2 << 20, first = ((uintptr_t)data + large - 1) & ~(large - 1);
    const uintptr_t last = ((uintptr_t)data + (uintptr_t)bytes) & ~(large - 1);
    if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

}  // namespace

const Packer plain_packer = {plain_masks, plain_values};

void Survey::add_scales(const uint8_t* rows, int64_t count, int64_t blocks, uint16_t* changed) {
    group_blocks = std::gcd(group_blocks, blocks);
    if (group_blocks == 1) return;
    memset(changed, 0, (size_t)blocks * sizeof *changed); /* the bits of any row that are not those of the block before */
    for (int64_t row = 0; row < count; row++, rows += blocks * Q4_0_BYTES)
        for (int64_t b = 1; b < blocks; b++)
            changed[b] |= scale_of(rows + b * Q4_0_BYTES) ^ scale_of(rows + (b - 1) * Q4_0_BYTES);
    for (int64_t b = 1; b < blocks; b++)
        if (changed[b]) group_blocks = std::gcd(group_blocks, b);
}

void Survey::add(const uint8_t* row, int64_t blocks) {
    std::vector<uint16_t> changed(blocks);
    add_scales(row, 1, blocks, changed.data());
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t codes[Q4_0_WEIGHTS];
        codes_of(row + b * Q4_0_BYTES, 1, 8, codes);
        int here = 0;
        for (uint8_t code : codes) here += code != 0;
        kept += here;
        weights += Q4_0_WEIGHTS;
    }
}

int64_t packed_bound(int64_t out, int64_t in) {
    const int64_t blocks = (out + ROWS - 1) / ROWS, row_blocks = in / Q4_0_WEIGHTS;
    return up(blocks * 8 * row_blocks * 8) + up((blocks + 1) * 8) + up(blocks * row_blocks * ROWS * 2) +
           up(blocks * ROWS * in / 2 + SQFT_PADDING);
}

Weight pack(const uint8_t* source, int64_t out, int64_t in, uint8_t* target) {
    return pack_by(avx512_packer() ? *avx512_packer() : plain_packer, source, out, in, target);
}

Weight pack_by(const Packer& packer, const uint8_t* source, int64_t out, int64_t in, uint8_t* target) {
    const int64_t row_blocks = in / Q4_0_WEIGHTS, row_bytes = row_blocks * Q4_0_BYTES;
    const int64_t blocks = (out + ROWS - 1) / ROWS, chunks = in / 4;
    std::vector<uint8_t> scratch(cores() * row_blocks * SCRATCH_BYTES), last;
    if (out % ROWS) { /* the last block is filled up with zeros */
        last.assign(ROWS * row_bytes, 8 | 8 << 4);
        memcpy(last.data(), source + (blocks - 1) * ROWS * row_bytes, (size_t)(out % ROWS * row_bytes));
    }
    auto rows_of = [&](int64_t block) {
        return out % ROWS && block == blocks - 1 ? last.data() : source + block * ROWS * row_bytes;
    };

    /* which weights are kept, and how far scales repeat */
    uint64_t* masks = (uint64_t*)target;
    int64_t* offsets = (int64_t*)(target + up(blocks * chunks * 8));
    prefer_large_pages(masks, blocks * chunks * 8);
    std::atomic<int64_t> group_blocks{0}, all_kept{0};
    on_all_cores(blocks, [&](int64_t part, int64_t begin, int64_t end) {
        uint8_t* mine = scratch.data() + part * row_blocks * SCRATCH_BYTES;
        Survey seen;
        for (int64_t block = begin; block < end; block++) {
            offsets[block + 1] = packer.masks(rows_of(block), row_blocks, masks + block * chunks, &seen.kept, mine);
            seen.add_scales(source + block * ROWS * row_bytes, std::min(ROWS, out - block * ROWS), row_blocks,
                            (uint16_t*)mine);
        }
        all_kept += seen.kept;
        for (int64_t old = group_blocks; !group_blocks.compare_exchange_weak(old, std::gcd(old, seen.group_blocks));) {
        }
    });
    offsets[0] = 0;
    for (int64_t block = 0; block < blocks; block++) offsets[block + 1] += offsets[block];

    /* codes and scales */
    const int64_t groups = row_blocks / group_blocks, total = offsets[blocks];
    uint16_t* scales = (uint16_t*)((uint8_t*)offsets + up((blocks + 1) * 8));
    uint8_t* values = (uint8_t*)scales + up(blocks * groups * ROWS * 2);
    prefer_large_pages(offsets, values + total + SQFT_PADDING - (uint8_t*)offsets);
    memset(values + total, 0, SQFT_PADDING);
    on_all_cores(blocks, [&](int64_t part, int64_t begin, int64_t end) {
        uint8_t* mine = scratch.data() + part * row_blocks * SCRATCH_BYTES;
        for (int64_t block = begin; block < end; block++) {
            packer.values(rows_of(block), row_blocks, masks + block * chunks, offsets[block + 1] - offsets[block], mine,
                           values + offsets[block]);
            const int64_t rows = std::min(ROWS, out - block * ROWS);
            uint16_t* to = scales + block * groups * ROWS;
            for (int64_t group = 0; group < groups; group++, to += ROWS)
                for (int64_t row = 0; row < ROWS; row++)
                    to[row] = row >= rows ? 0 : scale_of(source + (block * ROWS + row) * row_bytes +
                                                         group * group_blocks * Q4_0_BYTES);
        }
    });
    return {{masks, values, offsets, scales, nullptr, out, in, group_blocks * Q4_0_WEIGHTS}, all_kept};
}

int64_t Weight::bytes() const {
    const int64_t blocks = (packed.out + ROWS - 1) / ROWS, groups = packed.in / packed.group_size;
    return blocks * packed.in / 4 * 8 + (blocks + 1) * 8 + blocks * groups * ROWS * 2 + packed.block_offsets[blocks] +
           SQFT_PADDING;
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
