// Memory that some ranks of a node share: one copy of what all of them hold alike. On other nodes,
// other copies.
#pragma once
#include <cstddef>
#include <memory>

#include "base/buffer.h"
#include "comm/world.h"

namespace ferry {

class NodeMemory {
  public:
    // Collective over the world, which must outlive this. Ranks of a node with the same `group`
    // share; -1: this rank shares with none. Shared-memory windows of MPI; they live until MPI is
    // finalised, since their end is collective and may be reached while another rank is gone.
    NodeMemory(World& world, int group);
    ~NodeMemory();
    NodeMemory(const NodeMemory&) = delete;
    NodeMemory& operator=(const NodeMemory&) = delete;

    int rank() const { return rank_; }  // among the members of this node
    int size() const { return size_; }

    // Collective over the node's members, which all take the same sizes in the same order: each
    // gets the same memory, zero-filled, 64-byte aligned. Throws Error(memory).
    Buffer take(size_t size_bytes);
    // What members wrote before is seen by all members afterwards.
    void barrier();
    // Gives all that was taken back to the system; collective over the node's members.
    void release();

  private:
    void grow(size_t size_bytes);

    struct Impl;
    std::unique_ptr<Impl> impl_;
    int rank_ = 0;
    int size_ = 1;
    std::byte* free_ = nullptr;
    size_t num_free_bytes_ = 0;
};

}  // namespace ferry
