// Whole safetensors files; inputs that begin with '{' are taken as an index and as a config.json.
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "runtime/hf_config.h"
#include "runtime/safetensors.h"

namespace {

template <typename Fn>
void run(Fn&& fn) {
    try {
        fn();
    } catch (const ferry::Error&) {  // what hostile input must end in
    }
}

void read_all(const std::string& path) {
    const ferry::SafetensorsFile file(path);
    for (const ferry::SafeTensor& tensor : file.tensors()) {
        std::vector<char> bytes(static_cast<size_t>(tensor.size_bytes));
        file.file().read_at(tensor.offset_bytes, bytes.size(), bytes.data());
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string text(reinterpret_cast<const char*>(data), size);
    if (text.starts_with('{')) {
        run([&] { ferry::parse_safetensors_index(text, "index"); });
        run([&] { ferry::parse_hf_config(text, "config"); });
        return 0;
    }
    const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0) return 0;
    if (::write(fd, data, size) == static_cast<ssize_t>(size))
        run([&] { read_all("/proc/self/fd/" + std::to_string(fd)); });
    ::close(fd);
    return 0;
}
