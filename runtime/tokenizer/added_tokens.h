// The `added_tokens` of tokenizer.json: strings that are cut out of the text as one token each,
// before the model sees it.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/json_read.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry::tok {

struct AddedToken {
    int32_t id = 0;
    std::string content;
    bool single_word = false;  // only where no word character touches it
    bool lstrip = false;       // takes the white space on its left with it
    bool rstrip = false;       // and on its right
    bool normalized = false;   // matched in normalized text, in its own normalized form
    bool special = false;      // left out by decode(skip_special_tokens)
};

// Reads the list; a missing one is empty. Throws Error(checkpoint).
std::vector<AddedToken> read_added_tokens(const Json& tokenizer, const Where& where);

// Finds tokens in a text: leftmost first, the longest at one place.
class AddedTokenMatcher {
  public:
    // `text` is what is looked for, `token` what it stands for. Of equal texts the first counts.
    void add(std::string_view text, const AddedToken& token);
    bool is_empty() const { return tokens_.empty(); }

    // A part of a text: a token, or what lies between two (id is empty).
    struct Section {
        Span span;
        std::optional<int32_t> id;
    };
    // Cuts valid UTF-8 `text` into sections that cover it; no section is empty.
    std::vector<Section> split(std::string_view text) const;

  private:
    struct Node {
        std::unordered_map<char, int32_t> children;
        int32_t token_idx = -1;
    };
    struct Match {
        size_t end;
        const AddedToken* token;
    };
    std::optional<Match> match_at(std::string_view text, size_t pos) const;

    std::vector<AddedToken> tokens_;
    std::vector<Node> nodes_ = std::vector<Node>(1);
};

}  // namespace ferry::tok
