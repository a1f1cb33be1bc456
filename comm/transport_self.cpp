#include "comm/transport_self.h"

#include "base/check.h"

namespace ferry {

int SelfLanes::open(const LaneSpec& spec, Device& device) {
    const auto [found, is_new] = by_channel_.try_emplace(spec.channel, lanes_.size());
    if (is_new) {
        lanes_.push_back({.spec = spec,
                          .memory = Buffer(device, spec.capacity_bytes),
                          .num_expected = spec.kind == LaneKind::slot ? 1u : 0u});
    } else {
        const LaneSpec& other = lanes_[found->second].spec;
        FERRY_CHECK(other.kind == spec.kind && other.capacity_bytes == spec.capacity_bytes,
                    "both ends of channel {} must agree", spec.channel);
    }
    return found->second;
}

void SelfLanes::reserve(int index, size_t size_bytes, Device& device) {
    Lane& lane = lanes_[index];
    // The receiver's reserve comes after the sender has packed: same size, nothing moves.
    if (size_bytes > lane.memory.size_bytes()) lane.memory = Buffer(device, size_bytes * 5 / 4);
}

namespace {

class SelfTransport final : public Transport {
  public:
    std::string_view name() const override { return "self"; }
    int rank() const override { return 0; }
    int num_ranks() const override { return 1; }
    std::string host(int) const override { return "this host"; }
    Device& device() override { return cpu_device(); }

    LaneId open_send(const LaneSpec& spec) override { return open(spec); }
    LaneId open_receive(const LaneSpec& spec) override { return open(spec); }
    void connect() override {}

    std::byte* buffer(LaneId lane) override { return lanes_.buffer(lane); }
    void reserve(LaneId lane, size_t size_bytes) override {
        lanes_.reserve(lane, size_bytes, device());
    }
    void expect(LaneId lane, size_t) override { lanes_.expect(lane); }
    bool arrived(LaneId lane) override { return lanes_.arrived(lane); }
    size_t arrived_bytes(LaneId lane) override { return lanes_.arrived_bytes(lane); }
    void send(std::span<const LaneSend> sends) override {
        for (const LaneSend& each : sends) lanes_.send(each.lane, each.size_bytes);
    }
    bool sent(LaneId) override { return true; }

  private:
    bool move() override { return false; }
    LaneId open(const LaneSpec& spec) {
        FERRY_CHECK(spec.peer == 0, "a world of one rank has no rank {}", spec.peer);
        return lanes_.open(spec, device());
    }
    SelfLanes lanes_;
};

}  // namespace

std::unique_ptr<Transport> make_self_transport() {
    return std::make_unique<SelfTransport>();
}

}  // namespace ferry
