#include "comm/shared_counter.h"

#include <algorithm>

#include "base/check.h"

namespace ferry {
namespace {

constexpr int kCounterChannel = 48;  // above the exchange's, below tensor parallelism's

}  // namespace

SharedCounter::SharedCounter(Transport& transport, std::vector<int> members, int64_t limit)
    : transport_(transport), owner_(members.at(0) == transport.rank()), limit_(limit) {
    const auto open = [&](int peer) {
        const int in = owner_ ? kCounterChannel : kCounterChannel + 1;
        const int out = owner_ ? kCounterChannel + 1 : kCounterChannel;
        peers_.push_back({.in = transport.open_receive({peer, in, LaneKind::slot, kMessageUnit}),
                          .out = transport.open_send({peer, out, LaneKind::slot, kMessageUnit})});
    };
    if (!owner_) {
        open(members[0]);
        return;
    }
    for (size_t i = 1; i < members.size(); ++i) open(members[i]);
    transport.add_service([this] { return serve(); });
}

Claim SharedCounter::take(int64_t count) {
    const int64_t left = limit_ - next_;
    const int64_t expected = std::clamp<int64_t>(expected_ - next_, 0, left);
    const int64_t share = expected / (2 * (std::ssize(peers_) + 1)) + 1;
    const Claim claim{next_, std::min({std::max<int64_t>(count, 0), share, left})};
    next_ += claim.count;
    return claim;
}

void SharedCounter::request(int64_t count) {
    FERRY_CHECK(!requested_, "one claim at a time");
    requested_ = true;
    if (owner_) {
        own_claim_ = take(count);
        return;
    }
    *reinterpret_cast<int64_t*>(transport_.buffer(peers_[0].out)) = count;
    const LaneSend send{peers_[0].out, kMessageUnit};
    transport_.send({&send, 1});
}

std::optional<Claim> SharedCounter::poll() {
    // Also for the owner's sake, whom others ask: rows may travel by another transport.
    transport_.progress();
    if (!requested_) return std::nullopt;
    Claim claim = own_claim_;
    if (!owner_) {
        const Peer& peer = peers_[0];
        // The next request needs the send buffer: an answer alone is not enough.
        if (!transport_.arrived(peer.in) || !transport_.sent(peer.out)) return std::nullopt;
        claim = *reinterpret_cast<const Claim*>(transport_.buffer(peer.in));
        transport_.expect(peer.in, kMessageUnit);
    }
    requested_ = false;
    return claim;
}

bool SharedCounter::serve() {
    bool served = false;
    for (const Peer& peer : peers_) {
        if (!transport_.arrived(peer.in) || !transport_.sent(peer.out)) continue;
        const int64_t count = *reinterpret_cast<const int64_t*>(transport_.buffer(peer.in));
        transport_.expect(peer.in, kMessageUnit);
        *reinterpret_cast<Claim*>(transport_.buffer(peer.out)) = take(count);
        const LaneSend send{peer.out, kMessageUnit};
        transport_.send({&send, 1});
        served = true;
    }
    return served;
}

}  // namespace ferry
