// An exchange for a device whose memory the transport cannot reach: rows go through host memory on
// both ends of an exchange over host lanes. Several ranks may share one GPU that way.
#pragma once
#include <memory>

#include "base/device.h"
#include "comm/exchange.h"

namespace ferry {

// Tensors that callers give to and get from the result are `device`'s; `host` is what
// make_exchange made. Same results, bit for bit.
std::unique_ptr<Exchange> make_staged_exchange(std::unique_ptr<Exchange> host, Device& device);

}  // namespace ferry
