// "did you mean ...?"
#pragma once
#include <span>
#include <string>
#include <string_view>

namespace ferry {

// Insertions, deletions, replacements and swaps of neighbours that make b of a (optimal string
// alignment distance).
size_t edit_distance(std::string_view a, std::string_view b);

// The candidate nearest to `word`, when it is near enough to be meant (at most a third of its
// letters, but two always); else empty.
std::string nearest_spelling(std::string_view word, std::span<const std::string> candidates);

}  // namespace ferry
