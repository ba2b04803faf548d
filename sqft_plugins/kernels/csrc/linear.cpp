/* sqft_linear: splits the work over the threads and hands it to a back end. */
#include "internal.h"

static int64_t up(int64_t bytes) { return (bytes + 63) & ~(int64_t)63; }

/* The shape, the strides and the places in scratch of a pass of `tokens` → the bytes of scratch. */
static int64_t lay_out(sqft_job* job, const sqft_weight* w, int64_t tokens, int bits, int64_t parts, uint8_t* scratch) {
    job->w = *w;
    job->blocks = (w->out + ROWS - 1) / ROWS;
    job->chunks = 2 * ((w->in + 7) / 8);
    job->groups = w->in / w->group_size;
    job->group_chunks = job->groups == 1 ? job->chunks : w->group_size / CHUNK;
    job->segments_per_group = (job->group_chunks + SEGMENT_CHUNKS - 1) / SEGMENT_CHUNKS;
    job->segments = job->groups * job->segments_per_group;
    job->tokens = tokens;
    job->planes = bits == 16 ? 2 : 1;
    job->parts = parts;
    /* AMX pads each segment to 64 inputs and each tile to 16 tokens */
    int64_t tile_tokens = (tokens + 15) / 16 * 16;
    int64_t words = up(tile_tokens * (job->chunks * CHUNK + 64 * job->segments) * job->planes);
    int64_t numbers = up(tile_tokens * job->segments * 4);
    int64_t codes = up(PANEL * (SEGMENT_CHUNKS + 1) * ROWS * CHUNK);
    job->buffer_bytes = codes + up(PANEL * tile_tokens * ROWS * 4) + 4096;
    job->q = (int8_t*)scratch;
    job->scales = (float*)(scratch + words);
    job->sums = (int32_t*)(scratch + words + numbers);
    job->buffers = scratch + words + 2 * numbers;
    return words + 2 * numbers + parts * job->buffer_bytes;
}

/* Bytes that lie before `block`: what the split over the threads equals out. */
static int64_t bytes_before(const sqft_job* job, int64_t block) {
    return job->w.block_offsets[block] - job->w.block_offsets[0] + (job->w.masks ? block * job->chunks * 8 : 0);
}

/* The first block of part `part`. */
static int64_t boundary(const sqft_job* job, int64_t part) {
    if (part >= job->parts) return job->blocks;
    int64_t goal = bytes_before(job, job->blocks) / job->parts * part, low = 0, high = job->blocks;
    if (!bytes_before(job, job->blocks)) return job->blocks * part / job->parts;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (bytes_before(job, middle) < goal)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

typedef struct {
    const sqft_job* job;
    const sqft_backend* backend;
} sqft_call;

static void run_parts(int64_t begin, int64_t end, void* context) {
    const sqft_call* call = (const sqft_call*)context;
    for (int64_t part = begin; part < end; part++)
        call->backend->blocks(call->job, boundary(call->job, part), boundary(call->job, part + 1),
                              call->job->buffers + part * call->job->buffer_bytes);
}

static void run_tiles(int64_t begin, int64_t end, void* context) {
    const sqft_call* call = (const sqft_call*)context;
    int64_t tile = call->backend->tile;
    call->backend->quantize(call->job, begin * tile, least(end * tile, call->job->tokens));
}

/* Parts worth their thread: each has at least 2^16 weights (times tokens). */
static int64_t parts_of(const sqft_weight* w, int64_t tokens, int threads) {
    int64_t blocks = (w->out + ROWS - 1) / ROWS, most = blocks * ROWS * w->in * (tokens < 16 ? tokens : 16) >> 16;
    int64_t parts = least(threads, least(blocks, most));
    return parts > 1 ? parts : 1;
}

extern "C" int64_t sqft_scratch_bytes(const sqft_weight* w, int64_t tokens, int bits, int path, int threads) {
    (void)path;
    sqft_job job;
    tokens = least(tokens, SQFT_PASS);
    return lay_out(&job, w, tokens, bits, parts_of(w, tokens, threads), nullptr);
}

/* The next pass: at most SQFT_PASS tokens, from `first` on. */
static void begin_pass(sqft_job* job, const sqft_weight* w, const void* x, int dtype, int64_t first, int64_t tokens,
                       int64_t x_stride, const void* bias, void* y, int64_t y_stride, int bits, int64_t parts,
                       void* scratch) {
    const int64_t size = dtype == SQFT_F32 ? 4 : 2;
    lay_out(job, w, least(SQFT_PASS, tokens - first), bits, parts, (uint8_t*)scratch);
    job->x = (const uint8_t*)x + first * x_stride * size;
    job->y = (uint8_t*)y + first * y_stride * size;
    job->bias = bias;
    job->dtype = dtype;
    job->x_stride = x_stride;
    job->y_stride = y_stride;
}

/* Whether the activations of a pass are worth more than one thread. */
static int shares_tiles(const sqft_job* job) { return job->parts > 1 && job->tokens * job->w.in >= 1 << 16; }

static int64_t tiles_of(const sqft_call* call) {
    return (call->job->tokens + call->backend->tile - 1) / call->backend->tile;
}

/* The back end, or NULL where the arguments are wrong. */
static const sqft_backend* accept(const sqft_weight* w, int dtype, int64_t tokens, int path, int bits, int threads,
                                  void* scratch, int64_t scratch_bytes) {
    if (dtype < SQFT_F32 || dtype > SQFT_F16 || (bits != 16 && bits != 8) || ((uintptr_t)scratch & 63)) return nullptr;
    return scratch_bytes < sqft_scratch_bytes(w, tokens, bits, path, threads) ? nullptr : sqft_find(path);
}

extern "C" int sqft_linear(const sqft_weight* w, const void* x, int dtype, int64_t tokens, int64_t x_stride,
                           const void* bias, void* y, int64_t y_stride, int path, int bits,
                           sqft_parallel_for parallel_for, int threads, void* scratch, int64_t scratch_bytes) {
    const sqft_backend* backend = accept(w, dtype, tokens, path, bits, threads, scratch, scratch_bytes);
    if (!backend) return 1;
    int64_t parts = parallel_for ? parts_of(w, least(tokens, SQFT_PASS), threads) : 1;
    for (int64_t first = 0; first < tokens; first += SQFT_PASS) {
        sqft_job job;
        begin_pass(&job, w, x, dtype, first, tokens, x_stride, bias, y, y_stride, bits, parts, scratch);
        sqft_call call = {&job, backend};
        if (shares_tiles(&job))
            parallel_for(0, tiles_of(&call), 1, run_tiles, &call);
        else
            run_tiles(0, tiles_of(&call), &call);
        if (parts > 1)
            parallel_for(0, parts, 1, run_parts, &call);
        else
            run_parts(0, 1, &call);
    }
    return 0;
}

extern "C" int sqft_linear_team(const sqft_weight* w, const void* x, int dtype, int64_t tokens, int64_t x_stride,
                                const void* bias, void* y, int64_t y_stride, int path, int bits, int member, int team,
                                sqft_barrier barrier, void* context, void* scratch, int64_t scratch_bytes) {
    const sqft_backend* backend = accept(w, dtype, tokens, path, bits, team, scratch, scratch_bytes);
    if (!backend) return 1;
    int64_t parts = parts_of(w, least(tokens, SQFT_PASS), team);
    for (int64_t first = 0; first < tokens; first += SQFT_PASS) {
        if (first) barrier(context); /* all have read the activations of the pass before */
        sqft_job job;
        begin_pass(&job, w, x, dtype, first, tokens, x_stride, bias, y, y_stride, bits, parts, scratch);
        sqft_call call = {&job, backend};
        const int64_t tiles = tiles_of(&call), sharers = shares_tiles(&job) ? team : 1;
        if (member < sharers) run_tiles(tiles * member / sharers, tiles * (member + 1) / sharers, &call);
        barrier(context);
        if (member < parts) run_parts(member, member + 1, &call);
    }
    return 0;
}
