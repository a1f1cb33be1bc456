// Lanes over UCX (UCP directly): the low-latency path on CPU ranks and the one that uses RDMA. MPI
// only carries addresses at start-up.
//
// How the rows of a slot reach a peer is chosen per pair of ranks, by what UCX can do between them:
//   mapped   the peer's slots are visible here (same node): the sender packs straight into them and
//            publishes a flag; nothing is copied besides pack and unpack, and UCX is not called
//   put      one-sided puts into the peer's slots, a fence, then the flag (RDMA)
//   message  tagged messages into the posted slot (where UCX only emulates one-sided access: TCP)
// Sized lanes are tagged messages, by rendezvous when they are large. FERRY_UCX_PATH=put or message
// forces a slower way, for tests and comparisons.
#pragma once
#include <memory>

#include "comm/transport.h"

namespace ferry {

// Throws Error(usage) in a build without UCX, Error(communication) when UCX cannot be set up.
std::unique_ptr<Transport> make_ucx_transport(World& world, const TransportOptions& options);

}  // namespace ferry
