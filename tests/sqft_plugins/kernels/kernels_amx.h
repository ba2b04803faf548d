// AMX in plain C, put before every source of the kernels (-include) to run csrc/amx.cpp where there are no tiles.
//
// It also answers the two questions by which csrc/supported.cpp finds AMX. Only what amx.cpp uses: full tiles of 16 rows
// of 64 bytes. An instruction without a configuration ends the program, as the processor would.
#include <cpuid.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static thread_local uint8_t tiles[8][16][64];
static thread_local int configured;

static inline int emulated_cpuid(unsigned* d) {
    *d = ~0u;
    return 1;
}

static inline void emulated_load_configuration(const uint8_t* at) {
    for (int tile = 0; tile < 8; tile++)
        if (at[0] != 1 || at[16 + 2 * tile] != 64 || at[17 + 2 * tile] || at[48 + tile] != 16) __builtin_trap();
    memset(tiles, 0, sizeof tiles);
    configured = 1;
}

static inline uint8_t (*tile_of(int number))[64] {
    if (!configured) __builtin_trap();
    return tiles[number];
}

static inline void emulated_load(int to, const void* from, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy(tile_of(to)[row], (const uint8_t*)from + row * stride, 64);
}

static inline void emulated_store(int from, void* to, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy((uint8_t*)to + row * stride, tile_of(from)[row], 64);
}

/* c[m][n] += sum over k, j of a[m][4k + j] * b[k][4n + j], all bytes signed. */
static inline void emulated_multiply(int c, int a, int b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            int32_t sum;
            memcpy(&sum, tile_of(c)[m] + 4 * n, 4);
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < 4; j++)
                    sum += (int8_t)tile_of(a)[m][4 * k + j] * (int8_t)tile_of(b)[k][4 * n + j];
            memcpy(tile_of(c)[m] + 4 * n, &sum, 4);
        }
}

/* What is configured is what amx.cpp configures, or nothing. */
static inline void emulated_store_configuration(uint8_t* at) {
    memset(at, 0, 64);
    if (!configured) return;
    at[0] = 1;
    for (int tile = 0; tile < 8; tile++) at[16 + 2 * tile] = 64, at[48 + tile] = 16;
}

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig(at) emulated_load_configuration((const uint8_t*)(at))
#define _tile_storeconfig(at) emulated_store_configuration((uint8_t*)(at))
#define _tile_release() (configured = 0)
#define _tile_zero(tile) memset(tile_of(tile), 0, 1024)
#define _tile_loadd(to, from, stride) emulated_load(to, from, stride)
#define _tile_stored(from, to, stride) emulated_store(from, to, stride)
#define _tile_dpbssd(c, a, b) emulated_multiply(c, a, b)
#define __get_cpuid_count(leaf, part, a, b, c, d) emulated_cpuid(d)
#define syscall(...) 0
