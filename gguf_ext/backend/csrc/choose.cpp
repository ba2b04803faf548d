/* Which tensors are kept sparse: those at which the kernels are faster than llama.cpp's own.
 *
 * The limits are measured: benchmarks/llama_cpp_speed.py, docs/explain/kernels.md. A back end that was not measured, or that
 * was never faster, has the limit 0 and takes nothing until it is asked to.
 */
#include "door.h"

namespace sqft {

namespace {

/* The largest share of kept weights at which sparse pays, by back end and by group. */
struct Limit {
    double wide, narrow; /* groups of 128 and more; smaller ones */
};
const Limit LIMITS[] = {
    /* scalar */ {0.0, 0.0},
    /* avx2 */ {0.0, 0.0},
    /* avx512 */ {0.72, 0.62},
    /* amx */ {0.80, 0.72}, /* faster even beyond, but then no smaller than Q4_0 */
    /* neon */ {0.0, 0.0},
};

std::atomic<double> asked{-1.0};
std::atomic<bool> on{true};
thread_local int here = -1; /* what this thread asks for: -1 as the process does, 0 no, 1 yes */

}  // namespace

bool pays(const Survey& survey) {
    const Limit& limit = LIMITS[kernel_path()];
    const double most = asked >= 0 ? asked.load() : survey.group_blocks >= 4 ? limit.wide : limit.narrow;
    return survey.weights > 0 && survey.density() <= most;
}

bool wanted(const char* name, int64_t out, int64_t in) {
    if (here < 0 ? !on : !here) return false;
    Survey survey;
    switch (survey_open_files(name, out, in, &survey)) {
        case FOUND: return pays(survey);
        case AMBIGUOUS: counts[AMBIGUOUS_TENSORS]++; return false;
        default: return false;
    }
}

}  // namespace sqft

/* The largest share of kept weights of a tensor that is taken, in place of the measured limits; below 0: those. */
SQFT_EXPORT void sqft_ggml_density(double most) { sqft::asked = most; }
/* Whether models that are loaded from now on are looked at. */
SQFT_EXPORT void sqft_ggml_switch(int state) { sqft::on = state != 0; }
/* The same for the models that this thread loads; -1: as the process does. */
SQFT_EXPORT void sqft_ggml_here(int state) { sqft::here = state; }
