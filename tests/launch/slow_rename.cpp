// A file system on which results take FERRY_TEST_RENAME_S seconds to get their name: loaded into
// ferry by LD_PRELOAD.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

extern "C" int rename(const char* from, const char* to) {
    static const auto next =
        reinterpret_cast<int (*)(const char*, const char*)>(dlsym(RTLD_NEXT, "rename"));
    const char* seconds = std::getenv("FERRY_TEST_RENAME_S");
    if (seconds != nullptr && std::strstr(to, "completions.jsonl") != nullptr)
        sleep(static_cast<unsigned>(std::atoi(seconds)));
    return next(from, to);
}
