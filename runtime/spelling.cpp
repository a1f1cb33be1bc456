#include "runtime/spelling.h"

#include <algorithm>
#include <vector>

namespace ferry {

size_t edit_distance(std::string_view a, std::string_view b) {
    // Rows i-2, i-1 and i of the table of distances between prefixes.
    std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
    for (size_t i = 1; i <= a.size(); ++i) {
        row[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
            row[j] = std::min({replaced, last[j] + 1, row[j - 1] + 1});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = std::min(row[j], before_last[j - 2] + 1);
        }
        before_last.swap(last);
        last.swap(row);
    }
    return last[b.size()];
}

std::string nearest_spelling(std::string_view word, std::span<const std::string> candidates) {
    constexpr size_t kMaxWord = 64;  // longer ones are no misspelling of ours
    if (word.size() > kMaxWord) return {};
    std::string nearest;
    size_t nearest_distance = std::max<size_t>(2, word.size() / 3) + 1;
    for (const std::string& candidate : candidates) {
        const size_t distance = edit_distance(word, candidate);
        if (distance >= nearest_distance || distance >= candidate.size()) continue;
        nearest_distance = distance;
        nearest = candidate;
    }
    return nearest;
}

}  // namespace ferry
