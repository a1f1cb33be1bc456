// Any bytes as a file of requests, and as a part of an output folder that a run goes on from.
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "runtime/journal_files.h"
#include "runtime/request_reader.h"

namespace {

using namespace ferry;

PromptEncoder byte_encoder() {
    PromptEncoder encoder;
    encoder.vocab_size = 256;
    encoder.encode_text = [](std::string_view text) {
        return std::vector<int32_t>(text.size(), 7);
    };
    encoder.encode_messages = [](const std::string& messages, const std::string& variables) {
        return std::vector<int32_t>(messages.size() + variables.size(), 8);
    };
    return encoder;
}

bool is_compressed(std::string_view bytes) {
    try {
        refuse_compressed("fuzz", bytes);
    } catch (const Error&) {
        return true;
    }
    return false;
}

void read_requests(const std::string& path) {
    const std::unique_ptr<RequestReader> reader = read_jsonl(path, {}, byte_encoder());
    for (RequestLine line; reader->next(line);) {
        const bool is_failed = line.failed.has_value();
        if (is_failed != line.requests.empty()) __builtin_trap();  // one or the other
        if (is_failed) to_json(*line.failed, true);
    }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    init_log({.level = LogLevel::error, .file = "/dev/null"});
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0) return 0;
    if (::write(fd, data, size) == static_cast<ssize_t>(size)) {
        const std::string path = "/proc/self/fd/" + std::to_string(fd);
        try {
            read_requests(path);  // bad lines are no errors
        } catch (const Error&) {
            if (!is_compressed({reinterpret_cast<const char*>(data), size})) __builtin_trap();
        }
        if (read_part(path, [](const PartRecord&) {}) > static_cast<int64_t>(size))
            __builtin_trap();
    }
    ::close(fd);
    return 0;
}
