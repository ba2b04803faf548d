/* libggml_sqft: what ggml_backend_load and GGML_BACKEND_PATH load.
 *
 * It registers a backend without devices, and puts its buffer type first in the CPU backend's list of extra buffer
 * types, where llama.cpp's own repacking stands, too. So the graph is not split, and llama.cpp's own threads compute.
 */
#include <string.h>

#include "door.h"

namespace sqft {

namespace {

const char* get_name(ggml::Registration*) { return "SQFT"; }
size_t get_device_count(ggml::Registration*) { return 0; }
ggml::Device* get_device(ggml::Registration*, size_t) { return nullptr; }
void* get_proc_address(ggml::Registration*, const char*) { return nullptr; }

ggml::Registration registration = {
    SQFT_GGML_API, get_name, get_device_count, get_device, get_proc_address, nullptr};
std::string why; /* nothing is taken; empty: all is well */

/* llama.cpp asks for the list once and remembers it; whoever asks first must find this buffer type in it. */
bool is_listed() {
    ggml::Registration* cpu = ggml_functions.ggml_backend_cpu_reg();
    auto listed = (ggml::BufferType * *(*)(ggml::Device*))
        ggml_functions.ggml_backend_reg_get_proc_address(cpu, "ggml_backend_dev_get_extra_bufts");
    if (!listed) return false;
    for (ggml::BufferType** type = listed(buffer_type.device); type && *type; type++)
        if (*type == &buffer_type) return true;
    return false;
}

std::string start() {
    std::string problem = find_kernels();
    if (problem.empty()) problem = find_ggml();
    if (problem.empty()) problem = probe();
    if (!problem.empty()) return problem;

    buffer_type.device = ggml_functions.ggml_backend_reg_dev_get(ggml_functions.ggml_backend_cpu_reg(), 0);
    buffer_type.context = extra_buffer_type();
    std::vector<ggml::BufferType*>& extras = *ggml_functions.extras;
    extras.insert(extras.begin(), &buffer_type);
    if (is_listed()) return "";
    extras.erase(extras.begin());
    return "llama.cpp has loaded a model before: load this library first";
}

}  // namespace

}  // namespace sqft

SQFT_EXPORT ggml::Registration* ggml_backend_init(void) {
    static bool done = false;
    if (!done) {
        done = true;
        sqft::why = sqft::start();
        if (!sqft::why.empty()) sqft::notice("sqft: llama.cpp computes alone, %s", sqft::why.c_str());
    }
    return &sqft::registration;
}

/* "" where weights are taken, else why not. */
SQFT_EXPORT const char* sqft_ggml_why(void) { return sqft::why.c_str(); }
/* The back end that computes, numbered as in kernel.h; -1 without kernels. */
SQFT_EXPORT int sqft_ggml_path(void) { return sqft::kernels.best ? sqft::kernel_path() : -1; }
