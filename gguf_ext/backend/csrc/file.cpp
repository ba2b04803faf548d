/* The GGUF file that is being loaded.
 *
 * llama.cpp chooses the buffer of a weight before it reads the weight, and tells a backend no more than name, type and
 * shape. But it has the file open at that moment, so the file itself is asked: every descriptor of this process that
 * leads to a GGUF file. That serves every program that loads models, with no word from it.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>

#include "door.h"

namespace sqft {

namespace {

const int64_t SAMPLED_ROWS = 64; /* 131,072 weights of a common matrix: the share of zeros to 0.3 % */
const char* const DESCRIPTORS = "/dev/fd";

/* A file, mapped for as long as this object lives. */
class Mapped {
public:
    Mapped(int descriptor, size_t size) : size_(size) {
        void* at = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (at == MAP_FAILED) throw std::runtime_error("not mapped");
        data_ = (const uint8_t*)at;
    }
    ~Mapped() { munmap((void*)data_, size_); }
    Mapped(const Mapped&) = delete;
    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

private:
    const uint8_t* data_;
    size_t size_;
};

struct Place {
    int64_t out, in;
    uint64_t offset; /* from the start of the file */
    uint64_t packed = 0; /* bytes of a packed tensor of a compact file (gguf_ext/packed.py), else 0 */
    int64_t group_blocks = 0;
};
typedef std::map<std::string, Place> Places;

/* Reads a header front to back; throws where it runs past the end. */
class Reader {
public:
    explicit Reader(const Mapped& file) : file_(file) {}
    template <typename Number>
    Number number() {
        Number value;
        memcpy(&value, take(sizeof value), sizeof value);
        return value;
    }
    std::string text() {
        uint64_t length = number<uint64_t>();
        return std::string((const char*)take(length), length);
    }
    const uint8_t* take(uint64_t bytes) {
        if (bytes > file_.size() - at_) throw std::runtime_error("cut off");
        const uint8_t* from = file_.data() + at_;
        at_ += bytes;
        return from;
    }
    uint64_t at() const { return at_; }

    /* A metadata value: kind → skipped, or a number where it is a uint32. */
    uint32_t value(uint32_t kind, int depth = 0) {
        static const int sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, -1, -1, 8, 8, 8};
        enum { U32 = 4, STRING = 8, ARRAY = 9, KINDS = 13 };
        if (kind >= KINDS || depth > 1) throw std::runtime_error("unknown kind");
        if (kind == U32) return number<uint32_t>();
        if (kind == STRING) {
            take(number<uint64_t>());
        } else if (kind == ARRAY) {
            uint32_t item = number<uint32_t>();
            uint64_t count = number<uint64_t>();
            if (item < KINDS && sizes[item] > 0) {
                if (count > file_.size()) throw std::runtime_error("cut off");
                take(count * sizes[item]);
            } else {
                for (uint64_t i = 0; i < count; i++) value(item, depth + 1);
            }
        } else {
            take(sizes[kind]);
        }
        return 0;
    }

private:
    const Mapped& file_;
    uint64_t at_ = 0;
};

/* Whether a packed tensor stands at the place, whose shape it then gets. */
bool read_packed(const Mapped& file, Place* place) {
    enum { HEADER = 64 };
    if (place->offset > file.size() || place->packed > file.size() - place->offset || place->packed < HEADER) return false;
    const uint8_t* head = file.data() + place->offset;
    int64_t numbers[4]; /* out, in, group_size, bytes of the values */
    uint32_t version;
    memcpy(&version, head + 4, 4);
    memcpy(numbers, head + 8, sizeof numbers);
    const int64_t most = (int64_t)place->packed * 16;
    if (memcmp(head, "SQFT", 4) || version != 1) return false;
    for (int64_t number : numbers)
        if (number < 1 || number > most) return false;
    place->out = numbers[0], place->in = numbers[1], place->group_blocks = numbers[2] / Q4_0_WEIGHTS;
    const uint64_t masks = (uint64_t)((numbers[0] + 15) / 16) * ((uint64_t)numbers[1] / 4) * 8;
    return place->in % Q4_0_WEIGHTS == 0 && place->group_blocks > 0 && masks <= place->packed - HEADER;
}

/* The Q4_0 matrices of a file. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
Places matrices_of(const Mapped& file) {
    Reader reader(file);
    if (memcmp(reader.take(4), "GGUF", 4) || reader.number<uint32_t>() < 2) return {};
    uint64_t tensors = reader.number<uint64_t>(), entries = reader.number<uint64_t>(), alignment = 32;
    for (uint64_t i = 0; i < entries; i++) {
        std::string key = reader.text();
        uint32_t number = reader.value(reader.number<uint32_t>());
        if (key == "general.alignment" && number) alignment = number;
    }
    Places found;
    for (uint64_t i = 0; i < tensors; i++) {
        std::string name = reader.text();
        uint32_t dimensions = reader.number<uint32_t>();
        int64_t shape[4] = {1, 1, 1, 1};
        if (dimensions > 4) return {};
        for (uint32_t d = 0; d < dimensions; d++) shape[d] = (int64_t)reader.number<uint64_t>();
        uint32_t type = reader.number<uint32_t>();
        uint64_t offset = reader.number<uint64_t>();
        if (type == ggml::TYPE_Q4_0 && dimensions == 2) found[name] = {shape[1], shape[0], offset};
        if (type == ggml::TYPE_I8 && dimensions == 1) found[name] = {0, 0, offset, (uint64_t)shape[0]};
    }
    const uint64_t start = (reader.at() + alignment - 1) / alignment * alignment;
    for (auto it = found.begin(); it != found.end();) {
        Place& place = it->second;
        place.offset += start;
        if (place.packed) {
            it = read_packed(file, &place) ? std::next(it) : found.erase(it);
            continue;
        }
        const uint64_t limit = file.size() * 2; /* a weight has more than 4 bits */
        bool inside = place.out > 0 && place.in > 0 && place.in % Q4_0_WEIGHTS == 0 && (uint64_t)place.out < limit &&
                      (uint64_t)place.in < limit / (uint64_t)place.out && place.offset < file.size() &&
                      (uint64_t)(place.out * (place.in / Q4_0_WEIGHTS) * Q4_0_BYTES) <= file.size() - place.offset;
        it = inside ? std::next(it) : found.erase(it);
    }
    return found;
}

Survey survey_rows(const Mapped& file, const Place& place) {
    const int64_t blocks = place.in / Q4_0_WEIGHTS, rows = std::min(place.out, SAMPLED_ROWS);
    Survey seen;
    if (place.packed) { /* the masks of the first rows */
        const int64_t count = (rows + 15) / 16 * (place.in / 4);
        for (int64_t i = 0; i < count; i++) {
            uint64_t mask;
            memcpy(&mask, file.data() + place.offset + 64 + 8 * i, 8);
            seen.kept += __builtin_popcountll(mask);
        }
        seen.weights = rows * place.in;
        seen.group_blocks = place.group_blocks;
        return seen;
    }
    for (int64_t i = 0; i < rows; i++)
        seen.add(file.data() + place.offset + place.out * i / rows * blocks * Q4_0_BYTES, blocks);
    return seen;
}

/* What is known of one file, and when it was so. */
struct Known {
    struct stat record;
    Places places;
    std::map<std::string, Survey> surveys;
};

/* A file that was written anew may have the number, the size and the second of the one before. */
#if defined(__APPLE__)
#define SQFT_CHANGED st_ctimespec
#else
#define SQFT_CHANGED st_ctim
#endif
bool same(const struct stat& a, const struct stat& b) {
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size &&
           a.SQFT_CHANGED.tv_sec == b.SQFT_CHANGED.tv_sec && a.SQFT_CHANGED.tv_nsec == b.SQFT_CHANGED.tv_nsec;
}

std::mutex guard;
std::vector<Known> known; /* the last few files */

/* Opened anew: the descriptor may be of a kind that reads whole blocks only (O_DIRECT). → -1 where it is no GGUF file. */
int open_gguf(const char* entry, int descriptor) {
    const std::string path = std::string(DESCRIPTORS) + "/" + entry;
    int opened = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (opened < 0) return -1;
    char magic[4];
    (void)descriptor;
    if (pread(opened, magic, 4, 0) == 4 && !memcmp(magic, "GGUF", 4)) return opened;
    close(opened);
    return -1;
}

/* What the file of an open descriptor says of the tensor. */
bool survey_file(int opened, const struct stat& record, const char* name, int64_t out, int64_t in, Survey* survey) {
    auto it = std::find_if(known.begin(), known.end(), [&](const Known& k) { return same(k.record, record); });
    std::unique_ptr<Mapped> file;
    if (it == known.end()) {
        file.reset(new Mapped(opened, (size_t)record.st_size));
        if (known.size() >= 16) known.erase(known.begin());
        known.push_back({record, matrices_of(*file), {}});
        it = known.end() - 1;
    }
    auto place = it->places.find(name);
    if (place == it->places.end() || place->second.out != out || place->second.in != in) return false;
    auto seen = it->surveys.find(name);
    if (seen == it->surveys.end()) {
        if (!file) file.reset(new Mapped(opened, (size_t)record.st_size));
        seen = it->surveys.emplace(name, survey_rows(*file, place->second)).first;
    }
    *survey = seen->second;
    return true;
}

}  // namespace

Found survey_open_files(const char* name, int64_t out, int64_t in, Survey* survey) {
    std::lock_guard<std::mutex> lock(guard);
    DIR* folder = opendir(DESCRIPTORS);
    if (!folder) return NOWHERE;
    std::vector<struct stat> looked;
    Found result = NOWHERE;
    while (dirent* entry = readdir(folder)) {
        const int descriptor = atoi(entry->d_name);
        struct stat record;
        if (entry->d_name[0] == '.' || fstat(descriptor, &record) || !S_ISREG(record.st_mode) || record.st_size < 24)
            continue;
        if (std::any_of(looked.begin(), looked.end(), [&](const struct stat& s) { return same(s, record); })) continue;
        const int opened = open_gguf(entry->d_name, descriptor);
        if (opened < 0) continue;
        looked.push_back(record);
        Survey found;
        bool has = false;
        try {
            has = survey_file(opened, record, name, out, in, &found);
        } catch (const std::exception&) { /* damaged: llama.cpp says so */
        }
        close(opened);
        if (!has) continue;
        if (result == FOUND && pays(found) != pays(*survey)) result = AMBIGUOUS;
        if (result == NOWHERE) {
            result = FOUND;
            *survey = found;
        }
    }
    closedir(folder);
    return result;
}

void give_back(const void* data, size_t size) {
#if defined(__linux__)
    /* only where the memory is a file: other memory would lose what it holds */
    FILE* maps = fopen("/proc/self/maps", "re");
    if (!maps) return;
    char line[4352];
    bool mapped = false;
    while (fgets(line, sizeof line, maps)) {
        char *rest, rights[5];
        unsigned long begin = strtoul(line, &rest, 16), end = strtoul(rest + 1, &rest, 16), inode;
        if ((uintptr_t)data < begin || (uintptr_t)data + size > end) continue;
        mapped = sscanf(rest, " %4s %*x %*s %lu", rights, &inode) == 2 && inode != 0 && rights[1] == '-';
    }
    fclose(maps);
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = ((uintptr_t)data + page - 1) / page * page, last = ((uintptr_t)data + size) / page * page;
    if (mapped && last > first) madvise((void*)first, last - first, MADV_DONTNEED);
#else
    (void)data;
    (void)size;
#endif
}

}  // namespace sqft
