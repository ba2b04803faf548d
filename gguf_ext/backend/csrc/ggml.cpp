/* Finding ggml's functions in the process: in the libraries that are loaded already, never by loading one. */
#include <dlfcn.h>
#include <string.h>
#if defined(__linux__)
#include <link.h>
#endif

#include "door.h"

namespace sqft {

Ggml ggml_functions;

namespace {

/* llama-cpp-python opens its libraries for itself alone (RTLD_LOCAL), so the global table does not show them. */
#if defined(__linux__)
int note_library(dl_phdr_info* info, size_t, void* found) {
    if (info->dlpi_name && strstr(info->dlpi_name, "libggml") && !strstr(info->dlpi_name, "libggml_sqft"))
        ((std::vector<std::string>*)found)->push_back(info->dlpi_name);
    return 0;
}
#endif

std::vector<void*> loaded_libraries() {
    std::vector<void*> handles;
#if defined(__linux__)
    std::vector<std::string> names;
    dl_iterate_phdr(note_library, &names);
    for (const std::string& name : names)
        if (void* handle = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD)) handles.push_back(handle);
#elif defined(__APPLE__)
    for (const char* name : {"@rpath/libggml-cpu.dylib", "@rpath/libggml-base.dylib", "@rpath/libggml.dylib"})
        if (void* handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) handles.push_back(handle);
#endif
    return handles;
}

}  // namespace

std::string find_ggml() {
    const std::vector<void*> handles = loaded_libraries();
    auto find = [&handles](const char* name) {
        void* address = nullptr;
        for (void* handle : handles)
            if (!address) address = dlsym(handle, name);
        return address ? address : dlsym(RTLD_DEFAULT, name);
    };
    std::string missing;
#define SQFT_FIND(result, name, parameters)                                        \
    ggml_functions.name = (result(*) parameters)find(#name);                       \
    if (!ggml_functions.name && missing.empty()) missing = "ggml shows no " #name;
    SQFT_GGML_FUNCTIONS(SQFT_FIND)
#undef SQFT_FIND

    /* std::vector<ggml_backend_buffer_type_t>& ggml_backend_cpu_get_extra_buffer_types(), in C++ */
    auto extras = (std::vector<ggml::BufferType*>& (*)(void)) find("_Z39ggml_backend_cpu_get_extra_buffer_typesv");
    if (extras)
        ggml_functions.extras = &extras();
    else if (missing.empty())
        missing = "ggml shows no ggml_backend_cpu_get_extra_buffer_types";
    return missing;
}

}  // namespace sqft
