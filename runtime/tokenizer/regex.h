// Regular expressions in the syntax of tokenizer.json (Oniguruma's, which the reference library
// uses too). regex.cpp is the only file that includes oniguruma.h.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/unicode.h"

namespace ferry::tok {

// Immutable once built; many threads may search with one Regex.
class Regex {
  public:
    // `where` names file and component in errors. Throws Error(checkpoint) for a bad pattern.
    Regex(std::string_view pattern, const std::string& where);
    // A pattern that matches `text` literally.
    static std::string escape(std::string_view text);

    // Replaces `matches` by all matches in valid UTF-8 `text`, left to right, without overlap. An
    // empty match directly behind the previous match is skipped. Searching gives up with
    // Error(input) when a pattern backtracks without end.
    void find_all(std::string_view text, std::vector<Span>* matches) const;

  private:
    struct Compiled;
    std::shared_ptr<const Compiled> compiled_;
    std::string where_;
};

}  // namespace ferry::tok
