// The exchange of GPUs: rows are packed, ordered, unpacked and summed by kernels, and travel as
// blocks in the order of streams (block_transport.h). In bounded mode blocks have a fixed size, and
// while a step runs the host neither waits nor learns how many rows there are.
#pragma once
#include <memory>

#include "comm/block_transport.h"
#include "comm/exchange.h"

namespace ferry {

// Bounded mode (and automatic): every block holds bounded_tokens tokens, whoever they go to. Sized
// mode: counts travel first and reach the host once per exchange; then exactly the rows, between
// the pairs of ranks that have some, and the replies to them. Blocks are as large as in bounded
// mode, but less of them travels. The same bits as make_exchange, with these differences in what
// its sides give:
// - all attention ranks dispatch in the same order of (layer, micro-batch), layers first ...
//   last, micro-batches in turn within a layer, and combine in that order;
// - ExpertBatch::rows is as large as rows can become, `offsets` is empty and `device_offsets` is
//   set; arrival times are not known, and the agreement only where a rank has experts alone;
// - combine() knows the agreement in the last layer only, where it waits for the GPU; else it
//   returns none;
// - receive() waits for the GPU in the first layer, first micro-batch only: that is where the end
//   is told. In sized mode it always does, and on a colocated rank combine_ready() may.
// In a step that is repeated (begin_repeated_step) blocks hold no more than its micro-batches have,
// and the host waits once, at its end.
std::unique_ptr<Exchange> make_device_exchange(const ExchangeSetup& setup, BlockTransport& blocks);

}  // namespace ferry
