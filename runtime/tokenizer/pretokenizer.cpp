#include "runtime/tokenizer/pretokenizer.h"

#include <fmt/core.h>

#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/pattern.h"

namespace ferry::tok {
namespace {

// What becomes of the delimiters that a splitter finds.
enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

Behavior read_behavior(const Json& json, std::string_view fallback, const Where& where) {
    const std::string name = get_string(json, "behavior", fallback, where);
    if (name == "Removed") return Behavior::removed;
    if (name == "Isolated") return Behavior::isolated;
    if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
    if (name == "MergedWithNext") return Behavior::merged_with_next;
    if (name == "Contiguous") return Behavior::contiguous;
    where.fail(fmt::format("behavior {} is not supported", show_text(name)));
}

// A stretch of text that is a delimiter, or what lies between two.
struct Stretch {
    Span span;
    bool is_delimiter;
};

// Appends the pieces of `stretches`, which cover a text without gaps; empty ones are dropped.
void append_pieces(const std::vector<Stretch>& stretches, Behavior behavior,
                   std::vector<Span>* pieces) {
    const auto append = [pieces](Span span) {
        if (!span.empty()) pieces->push_back(span);
    };
    const size_t num = stretches.size();
    switch (behavior) {
        case Behavior::removed:
            for (const Stretch& s : stretches) {
                if (!s.is_delimiter) append(s.span);
            }
            break;
        case Behavior::isolated:
            for (const Stretch& s : stretches) append(s.span);
            break;
        case Behavior::contiguous:
            for (size_t i = 0; i < num;) {
                const size_t first = i;
                while (i < num && stretches[i].is_delimiter == stretches[first].is_delimiter) ++i;
                append({stretches[first].span.begin, stretches[i - 1].span.end});
            }
            break;
        case Behavior::merged_with_previous:
            // of several delimiters in a row the first joins the text before it
            for (size_t i = 0; i < num; ++i) {
                Span span = stretches[i].span;
                if (!stretches[i].is_delimiter && i + 1 < num && stretches[i + 1].is_delimiter) {
                    span.end = stretches[++i].span.end;
                }
                append(span);
            }
            break;
        case Behavior::merged_with_next:
            for (size_t i = 0; i < num; ++i) {
                Span span = stretches[i].span;
                if (stretches[i].is_delimiter && i + 1 < num && !stretches[i + 1].is_delimiter) {
                    span.end = stretches[++i].span.end;
                }
                append(span);
            }
            break;
    }
}

// Fills `matches` with the delimiters in a text.
using FindDelimiters = std::function<void(std::string_view text, std::vector<Span>* matches)>;

void split_pieces(const FindDelimiters& find, Behavior behavior, bool invert, Pieces* pieces) {
    std::vector<Span> result, matches;
    std::vector<Stretch> stretches;
    result.reserve(pieces->text.size() / 4 + 1);
    for (size_t i = 0; i < pieces->spans.size(); ++i) {
        const Span piece = pieces->spans[i];
        find(pieces->view(i), &matches);
        stretches.clear();
        size_t pos = piece.begin;
        for (const Span& match : matches) {
            const Span found{piece.begin + match.begin, piece.begin + match.end};
            if (found.begin > pos) stretches.push_back({{pos, found.begin}, invert});
            stretches.push_back({found, !invert});
            pos = found.end;
        }
        if (pos < piece.end) stretches.push_back({{pos, piece.end}, invert});
        append_pieces(stretches, behavior, &result);
    }
    pieces->spans = std::move(result);
}

PreTokenizer make_regex_split(const Regex& pattern, Behavior behavior, bool invert) {
    const FindDelimiters find = [pattern](std::string_view text, std::vector<Span>* matches) {
        pattern.find_all(text, matches);
    };
    return
        [find, behavior, invert](Pieces* pieces) { split_pieces(find, behavior, invert, pieces); };
}

// Every character for which `is_delimiter` holds is one delimiter.
template <typename Predicate>
PreTokenizer make_char_split(Predicate is_delimiter, Behavior behavior) {
    const FindDelimiters find = [is_delimiter](std::string_view text, std::vector<Span>* matches) {
        matches->clear();
        for (size_t pos = 0; pos < text.size();) {
            const size_t begin = pos;
            if (is_delimiter(next_char(text, &pos))) matches->push_back({begin, pos});
        }
    };
    return [find, behavior](Pieces* pieces) { split_pieces(find, behavior, false, pieces); };
}

// Rewrites every piece; `append(piece, idx, out)` appends its new text.
template <typename Append>
void rewrite_pieces(Pieces* pieces, Append append) {
    std::string text;
    text.reserve(pieces->text.size() + pieces->text.size() / 4);
    for (size_t i = 0; i < pieces->spans.size(); ++i) {
        const size_t begin = text.size();
        append(pieces->view(i), i, &text);
        pieces->spans[i] = {begin, text.size()};
    }
    pieces->text = std::move(text);
}

PreTokenizer make_sequence(const Json& json, const Where& where) {
    std::vector<PreTokenizer> parts;
    for (const Json& part : need_array(json, "pretokenizers", where)) {
        parts.push_back(make_pretokenizer(part, where.at("pretokenizers", parts.size())));
    }
    return [parts](Pieces* pieces) {
        for (const PreTokenizer& part : parts) part(pieces);
    };
}

PreTokenizer make_byte_level(const Json& json, const Where& where) {
    const bool add_prefix_space = get_bool(json, "add_prefix_space", true, where);
    PreTokenizer split;
    if (get_bool(json, "use_regex", true, where)) {  // GPT-2's pattern
        const Regex pattern(
            R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
            where.text());
        split = make_regex_split(pattern, Behavior::isolated, false);
    }
    return [add_prefix_space, split](Pieces* pieces) {
        if (add_prefix_space) {
            rewrite_pieces(pieces, [](std::string_view piece, size_t, std::string* out) {
                if (piece.front() != ' ') out->push_back(' ');
                out->append(piece);
            });
        }
        if (split) split(pieces);
        rewrite_pieces(pieces, [](std::string_view piece, size_t, std::string* out) {
            append_byte_level(piece, out);
        });
    };
}

PreTokenizer make_digits(const Json& json, const Where& where) {
    const bool is_each = get_bool(json, "individual_digits", false, where);
    return make_char_split(is_numeric, is_each ? Behavior::isolated : Behavior::contiguous);
}

PreTokenizer make_whitespace(const Where& where) {
    const Regex words(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}]+|)"
                      R"([^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}\s]+)",
                      where.text());
    return make_regex_split(words, Behavior::removed, true);
}

// A string field that holds one character.
std::string need_char(const Json& json, const char* key, const Where& where) {
    const std::string text = need_string(json, key, where);
    size_t num_bytes = 0;
    if (!text.empty()) next_char(text, &num_bytes);
    if (text.empty() || num_bytes != text.size()) {
        where.fail(fmt::format("'{}' is not one character", key));
    }
    return text;
}

PreTokenizer make_char_delimiter_split(const Json& json, const Where& where) {
    const std::string delimiter = need_char(json, "delimiter", where);
    const Regex pattern(Regex::escape(delimiter), where.text());
    return make_regex_split(pattern, Behavior::removed, false);
}

enum class PrependScheme { always, first, never };

PrependScheme read_prepend_scheme(const Json& json, const Where& where) {
    const bool add_prefix = get_bool(json, "add_prefix_space", true, where);  // older files
    const std::string name =
        get_string(json, "prepend_scheme", add_prefix ? "always" : "never", where);
    if (name == "always") return PrependScheme::always;
    if (name == "first") return PrependScheme::first;
    if (name == "never") return PrependScheme::never;
    where.fail(fmt::format("prepend_scheme {} is not supported", show_text(name)));
}

PreTokenizer make_metaspace(const Json& json, const Where& where) {
    const std::string mark = need_char(json, "replacement", where);
    const PrependScheme scheme = read_prepend_scheme(json, where);
    PreTokenizer split;
    if (get_bool(json, "split", true, where)) {
        const Regex pattern(Regex::escape(mark), where.text());
        split = make_regex_split(pattern, Behavior::merged_with_next, false);
    }
    return [mark, scheme, split](Pieces* pieces) {
        const bool has_start = pieces->is_input_start;
        const auto replace = [&](std::string_view piece, size_t idx, std::string* out) {
            const bool wants_mark = scheme == PrependScheme::always ||
                                    (scheme == PrependScheme::first && idx == 0 && has_start);
            if (wants_mark && piece.front() != ' ' && !piece.starts_with(mark)) out->append(mark);
            for (const char c : piece) {
                if (c == ' ') {
                    out->append(mark);
                } else {
                    out->push_back(c);
                }
            }
        };
        rewrite_pieces(pieces, replace);
        if (split) split(pieces);
    };
}

}  // namespace

PreTokenizer make_pretokenizer(const Json& json, const Where& where) {
    const std::string type = component_type(json, where);
    if (type == "Sequence") return make_sequence(json, where);
    if (type == "Split") {
        return make_regex_split(read_pattern(json, where), read_behavior(json, "", where),
                                get_bool(json, "invert", false, where));
    }
    if (type == "ByteLevel") return make_byte_level(json, where);
    if (type == "Digits") return make_digits(json, where);
    if (type == "Punctuation") {
        return make_char_split(is_punctuation, read_behavior(json, "Isolated", where));
    }
    if (type == "Whitespace") return make_whitespace(where);
    if (type == "WhitespaceSplit") return make_char_split(is_whitespace, Behavior::removed);
    if (type == "CharDelimiterSplit") return make_char_delimiter_split(json, where);
    if (type == "Metaspace") return make_metaspace(json, where);
    where.fail(fmt::format("pre-tokenizer {} is not supported", show_text(type)));
}

}  // namespace ferry::tok
