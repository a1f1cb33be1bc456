#include "runtime/tokenizer/added_tokens.h"

#include <fmt/core.h>

#include <array>
#include <limits>

namespace ferry::tok {
namespace {

bool touches_word(std::string_view text, Span span) {
    size_t after = span.end;
    return (span.begin > 0 && is_word(char_before(text, span.begin))) ||
           (span.end < text.size() && is_word(next_char(text, &after)));
}

// Start of the white space that ends at `end`, not before `limit`.
size_t whitespace_begin(std::string_view text, size_t end, size_t limit) {
    while (end > limit) {
        if (!is_whitespace(char_before(text, end))) break;
        do --end;
        while ((uint8_t(text[end]) & 0xC0) == 0x80);
    }
    return end;
}

// End of the white space that starts at `begin`.
size_t whitespace_end(std::string_view text, size_t begin) {
    while (begin < text.size()) {
        size_t pos = begin;
        if (!is_whitespace(next_char(text, &pos))) break;
        begin = pos;
    }
    return begin;
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const Json& tokenizer, const Where& where) {
    std::vector<AddedToken> tokens;
    if (is_absent(tokenizer, "added_tokens")) return tokens;
    for (const Json& json : need_array(tokenizer, "added_tokens", where)) {
        const Where here = where.at("added_tokens", tokens.size());
        if (!json.is_object()) here.fail("is not an object");
        AddedToken token;
        token.id = int32_t(need_int(json, "id", 0, std::numeric_limits<int32_t>::max(), here));
        token.content = need_string(json, "content", here);
        token.single_word = get_bool(json, "single_word", false, here);
        token.lstrip = get_bool(json, "lstrip", false, here);
        token.rstrip = get_bool(json, "rstrip", false, here);
        token.special = get_bool(json, "special", false, here);
        token.normalized = get_bool(json, "normalized", !token.special, here);
        tokens.push_back(std::move(token));
    }
    return tokens;
}

void AddedTokenMatcher::add(std::string_view text, const AddedToken& token) {
    if (text.empty()) return;
    size_t node = 0;
    for (const char byte : text) {
        const auto [child, is_new] = nodes_[node].children.try_emplace(byte, int(nodes_.size()));
        node = size_t(child->second);
        if (is_new) nodes_.emplace_back();
    }
    if (nodes_[node].token_idx >= 0) return;
    nodes_[node].token_idx = int32_t(tokens_.size());
    tokens_.push_back(token);
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::match_at(std::string_view text,
                                                                    size_t pos) const {
    std::optional<Match> longest;
    for (size_t node = 0; pos < text.size(); ++pos) {
        const auto child = nodes_[node].children.find(text[pos]);
        if (child == nodes_[node].children.end()) break;
        node = size_t(child->second);
        const int32_t token_idx = nodes_[node].token_idx;
        if (token_idx >= 0) longest = Match{pos + 1, &tokens_[size_t(token_idx)]};
    }
    return longest;
}

std::vector<AddedTokenMatcher::Section> AddedTokenMatcher::split(std::string_view text) const {
    std::vector<Section> sections;
    size_t done = 0;
    std::array<bool, 256> can_start{};
    for (const auto& [byte, child] : nodes_[0].children) can_start[uint8_t(byte)] = true;
    for (size_t pos = 0; pos < text.size();) {
        const std::optional<Match> match =
            can_start[uint8_t(text[pos])] ? match_at(text, pos) : std::nullopt;
        if (!match) {
            ++pos;
            continue;
        }
        Span span{pos, match->end};
        pos = match->end;
        const AddedToken& token = *match->token;
        if (span.begin < done || (token.single_word && touches_word(text, span))) continue;
        if (token.lstrip) span.begin = whitespace_begin(text, span.begin, done);
        if (token.rstrip) span.end = whitespace_end(text, span.end);
        if (span.begin > done) sections.push_back({{done, span.begin}, std::nullopt});
        sections.push_back({span, token.id});
        done = span.end;
    }
    if (done < text.size()) sections.push_back({{done, text.size()}, std::nullopt});
    return sections;
}

}  // namespace ferry::tok
