// XXH3-64, the checksum of every dataset of a checkpoint.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace ferry {

uint64_t checksum(const void* data, size_t num_bytes);

// The same of data that comes piece by piece.
class Checksum {
  public:
    Checksum();
    ~Checksum();
    Checksum(Checksum&&) noexcept;
    Checksum& operator=(Checksum&&) noexcept;

    void add(const void* data, size_t num_bytes);
    uint64_t value() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace ferry
