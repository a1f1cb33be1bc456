// Draft tokens without a draft model: what followed the last tokens of a text where they stood
// before, in prompt or output ("prompt lookup decoding", Saxena 2023; "n-gram" speculation
// elsewhere). For texts that repeat what they were given: summaries, code that is edited, answers
// that quote.
#pragma once
#include <cstdint>
#include <vector>

namespace ferry {

// Of one sequence.
class PromptLookup {
  public:
    // Adds at most `max` drafts to the end of `tokens`, which has room for them, and returns how
    // many. Looks for the place where most of the last tokens stood before, of several the last.
    // Takes time in proportion to `tokens`, some microseconds for 10,000.
    int64_t extend(std::vector<int32_t>& tokens, int64_t max) const;

    // How many of the drafts were computed, and how many leading ones of those were right. Drafts
    // that are all right become more; after others only as many as were right are tried, and the
    // more often none was, the longer the same tokens have to be before the next one is.
    void learn(int64_t num_drafts, int64_t num_right);

  private:
    int64_t most_ = kMost;
    int64_t num_misses_ = 0;  // in a row

    static constexpr int64_t kMost = 64;
    static constexpr int64_t kShortestMatch = 2, kLongestMatch = 8;
};

}  // namespace ferry
