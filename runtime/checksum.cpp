#include "runtime/checksum.h"

#if defined(FERRY_XXHASH_DISPATCHES)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include <new>

namespace ferry {

struct Checksum::State {
    XXH3_state_t* xxh = XXH3_createState();
    State() {
        if (xxh == nullptr) throw std::bad_alloc();
        XXH3_64bits_reset(xxh);
    }
    ~State() { XXH3_freeState(xxh); }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
};

Checksum::Checksum() : state_(std::make_unique<State>()) {}
Checksum::~Checksum() = default;
Checksum::Checksum(Checksum&&) noexcept = default;
Checksum& Checksum::operator=(Checksum&&) noexcept = default;

void Checksum::add(const void* data, size_t num_bytes) {
    XXH3_64bits_update(state_->xxh, data, num_bytes);
}

uint64_t Checksum::value() const {
    return XXH3_64bits_digest(state_->xxh);
}

uint64_t checksum(const void* data, size_t num_bytes) {
    return XXH3_64bits(data, num_bytes);
}

}  // namespace ferry
