/* The kernel library of the project: this door has no kernel of its own. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "door.h"

namespace sqft {

Kernels kernels;

namespace {

const char* const NAMES[] = {"scalar", "avx2", "avx512", "amx", "neon"};
int forced_path = -1;

/* PACKAGES/gguf_ext/backend/libggml_sqft.so → PACKAGES/sqft_plugins/kernels/libsqft_kernels.so; SQFT_KERNELS names
 * another one. */
std::string beside() {
    if (const char* named = getenv("SQFT_KERNELS")) return named;
    Dl_info here;
    if (!dladdr((void*)&beside, &here) || !here.dli_fname) return "";
    std::string path = here.dli_fname;
    for (int up = 0; up < 3; up++) {
        size_t slash = path.rfind('/');
        path = slash == std::string::npos ? ".." : path.substr(0, slash);
    }
    return path + "/sqft_plugins/kernels/libsqft_kernels.so";
}

template <typename Function>
bool take(void* library, const char* name, Function& function) {
    function = (Function)dlsym(library, name);
    return function != nullptr;
}

}  // namespace

std::string find_kernels() {
    const std::string file = beside();
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) return std::string("the kernels cannot be loaded: ") + dlerror();
    Kernels& k = kernels;
    bool whole = take(library, "sqft_interface", k.interface) && take(library, "sqft_best", k.best) &&
                 take(library, "sqft_supported", k.supported) && take(library, "sqft_forced", k.forced) &&
                 take(library, "sqft_check", k.check) && take(library, "sqft_pack_masks", k.pack_masks) &&
                 take(library, "sqft_pack_values", k.pack_values) && take(library, "sqft_unpack", k.unpack) &&
                 take(library, "sqft_scratch_bytes", k.scratch_bytes) &&
                 take(library, "sqft_linear_team", k.linear_team);
    if (!whole || k.interface() != SQFT_INTERFACE) return file + " was built from other sources";

    if (const char* named = getenv("SQFT_KERNEL"); named && *named) {
        for (int path = 0; path < (int)(sizeof NAMES / sizeof *NAMES); path++)
            if (!strcmp(named, NAMES[path])) forced_path = path;
        if (forced_path < 0) return std::string("SQFT_KERNEL=") + named + " asks for no compiled kernel";
        if (!k.supported(forced_path)) return std::string("SQFT_KERNEL=") + named + " does not run here";
    }
    return "";
}

int kernel_path() {
    const int forced = kernels.forced();
    return forced >= 0 ? forced : forced_path >= 0 ? forced_path : kernels.best();
}

}  // namespace sqft
