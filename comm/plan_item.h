// One item of an exchange's plan. Plain: kernels of GPUs use it too.
#pragma once
#include <cstdint>

namespace ferry {

// Where (token, k) goes. Rows of a message are in order of tokens, entries in order of (row, k): a
// token that goes to several experts of one rank is one row with several entries.
struct PlanItem {
    int32_t expert_rank = 0;
    int32_t row = 0;    // in the message to expert_rank
    int32_t entry = 0;  // in the message to expert_rank; also the row of an exact reply
    uint16_t slot = 0;
    bool first = false;  // the first item of its row: whoever packs this item packs the row
};

}  // namespace ferry
