/* Which back ends this processor runs. */
#include "internal.h"

/* A compiler that does not know an instruction set leaves its source out: then there is nothing at this address. */
#define SQFT_MAYBE(name) extern "C" const sqft_backend name __attribute__((weak))

extern "C" const sqft_backend sqft_scalar_backend;
SQFT_MAYBE(sqft_avx2_backend);
SQFT_MAYBE(sqft_avx512_backend);
SQFT_MAYBE(sqft_amx_backend);
SQFT_MAYBE(sqft_neon_backend);

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("popcnt");
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2");
}

/* The tiles' 8 KiB of state must be asked for: Linux gives them to the whole process, once. */
static int has_amx(void) {
#if defined(__linux__)
    static int known = -1;
    if (known < 0) {
        unsigned a, b, c, d;
        const int tile = 1 << 24, int8 = 1 << 25, request_permission = 0x1023, tile_data = 18;
        int has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tile) && (d & int8) && has_avx512() &&
                  syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
        known = has;
    }
    return known;
#else
    return 0;
#endif
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#endif

/* The dot product of Armv8.2; every Apple processor of this kind has it. */
static int has_dot_product(void) {
#if defined(__linux__)
    const unsigned long asimddp = 1 << 20;
    return (getauxval(AT_HWCAP) & asimddp) != 0;
#elif defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}
#endif

extern "C" const sqft_backend* sqft_find(int path) {
    switch (path) {
        case SQFT_SCALAR: return &sqft_scalar_backend;
#if defined(__x86_64__)
        case SQFT_AVX2: return has_avx2() ? &sqft_avx2_backend : nullptr;
        case SQFT_AVX512: return has_avx512() ? &sqft_avx512_backend : nullptr;
        case SQFT_AMX: return &sqft_avx512_backend && has_amx() ? &sqft_amx_backend : nullptr;
#elif defined(__aarch64__)
        case SQFT_NEON: return has_dot_product() ? &sqft_neon_backend : nullptr;
#endif
        default: return nullptr;
    }
}

extern "C" int sqft_supported(int path) { return sqft_find(path) != nullptr; }

extern "C" int sqft_best(void) {
    const int order[] = {SQFT_AMX, SQFT_AVX512, SQFT_AVX2, SQFT_NEON};
    for (int path : order)
        if (sqft_supported(path)) return path;
    return SQFT_SCALAR;
}
