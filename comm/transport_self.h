// Lanes of a rank to itself: both ends share one buffer, so that a message costs nothing. A whole
// transport for a world of one rank, and a part of every other transport.
#pragma once
#include <map>
#include <vector>

#include "base/buffer.h"
#include "comm/transport.h"

namespace ferry {

class SelfLanes {
  public:
    // Either end may come first; the index is the same for both ends of a channel.
    int open(const LaneSpec& spec, Device& device);
    std::byte* buffer(int index) const { return lanes_[index].memory.as<std::byte>(); }
    void reserve(int index, size_t size_bytes, Device& device);
    void expect(int index) { ++lanes_[index].num_expected; }
    void send(int index, size_t size_bytes) {
        lanes_[index].size_bytes = size_bytes;
        ++lanes_[index].num_sent;
    }
    bool arrived(int index) const {
        return lanes_[index].num_expected > 0 &&
               lanes_[index].num_sent >= lanes_[index].num_expected;
    }
    size_t arrived_bytes(int index) const { return lanes_[index].size_bytes; }

  private:
    struct Lane {
        LaneSpec spec;
        Buffer memory;
        size_t size_bytes = 0;
        uint64_t num_expected = 0;  // slots are born with one
        uint64_t num_sent = 0;
    };
    std::vector<Lane> lanes_;
    std::map<int, int> by_channel_;
};

}  // namespace ferry
