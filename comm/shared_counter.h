// Requests are claimed from one counter as ranks have room. Served by messages, not by one-sided
// operations: MPI's fetch_and_op does not work everywhere (across hosts over TCP it refuses or
// needs the target to poll anyway), while two small lanes per rank do.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "comm/transport.h"

namespace ferry {

struct Claim {
    int64_t begin = 0;
    int64_t count = 0;  // 0: nothing is left
};

// The first member owns the counter and answers whenever it makes progress, so a claim takes as
// long as that rank's current kernel: ask a step ahead. A rank with a claim under way must count as
// having work, so that the owner is still there to answer.
class SharedCounter {
  public:
    // Opens lanes (channels kCounterChannel, +1); made by all members before transport.connect().
    // members: world ranks. limit: number of items, known to the owner at least.
    SharedCounter(Transport& transport, std::vector<int> members, int64_t limit);
    SharedCounter(const SharedCounter&) = delete;
    SharedCounter& operator=(const SharedCounter&) = delete;

    // About how many items there are, fewer than the limit, where the owner learns of it later.
    void expect(int64_t num_items) { expected_ = num_items; }
    // Asks for up to `count` items; one claim at a time. The answer is less towards the end, at
    // least one: half of what would be this member's share of what is left (guided
    // self-scheduling), so that all members end together.
    void request(int64_t count);
    bool requested() const { return requested_; }
    // The answer, once; moves messages, never blocks.
    std::optional<Claim> poll();
    // Hands out everything again. Owner only, while no member has a claim under way.
    void restart() { next_ = 0; }
    // Nothing more is handed out, by no rank (stop claiming). Owner only; others see empty claims.
    void close() { limit_ = next_; }

  private:
    struct Peer {
        LaneId in = -1;
        LaneId out = -1;
    };
    Claim take(int64_t count);
    bool serve();

    Transport& transport_;
    bool owner_;
    int64_t limit_;
    int64_t expected_ = limit_;
    int64_t next_ = 0;
    std::vector<Peer> peers_;  // owner: of each other member; others: of the owner
    bool requested_ = false;
    Claim own_claim_;
};

}  // namespace ferry
