#include "runtime/prompt_lookup.h"

#include <algorithm>

namespace ferry {

int64_t PromptLookup::extend(std::vector<int32_t>& tokens, int64_t max) const {
    const auto size = static_cast<int64_t>(tokens.size());
    if (size < 2 || max <= 0) return 0;
    const int32_t* const begin = tokens.data();
    const int32_t* const last = begin + size - 1;
    const int32_t* found = nullptr;
    int64_t longest = std::min(kShortestMatch + num_misses_, kLongestMatch) - 1;
    for (const int32_t* end = last - 1; end >= begin && longest < kLongestMatch; --end) {
        if (*end != *last) continue;
        int64_t length = 1;
        while (length < kLongestMatch && end - length >= begin && end[-length] == last[-length])
            ++length;
        if (length <= longest) continue;
        longest = length;
        found = end + 1;
    }
    if (found == nullptr) return 0;
    // A text that repeats itself goes on with what is drafted.
    const int64_t num = std::min(max, most_);
    for (int64_t i = found - begin, draft = 0; draft < num; ++i, ++draft)
        tokens.push_back(tokens[static_cast<size_t>(i)]);
    return num;
}

void PromptLookup::learn(int64_t num_drafts, int64_t num_right) {
    if (num_drafts == 0) return;
    num_misses_ = num_right == 0 ? num_misses_ + 1 : 0;
    most_ = num_right == num_drafts ? std::min(std::max(most_, num_drafts) * 2, kMost)
                                    : std::max<int64_t>(1, num_right);
}

}  // namespace ferry
