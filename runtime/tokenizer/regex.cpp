#include "runtime/tokenizer/regex.h"

#include <oniguruma.h>

#include <algorithm>
#include <climits>
#include <mutex>

#include "base/error.h"

namespace ferry::tok {
namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;
constexpr unsigned kMaxParseDepth = 256;
// A search may step back this often, plus a share for each byte of text: far above what real
// patterns need (a few per byte), low enough that a hostile pattern ends within a second.
constexpr unsigned long kRetriesPerSearch = 200'000;
constexpr unsigned long kRetriesPerByte = 64;
// Room for the points to step back to; a greedy `+` leaves one per character.
constexpr size_t kMatchStackPerSearch = 1 << 16;
constexpr size_t kMatchStackPerByte = 8;

const OnigUChar* bytes(std::string_view text) {
    return reinterpret_cast<const OnigUChar*>(text.data());
}

std::string describe(int code, OnigErrorInfo* info) {
    OnigUChar message[ONIG_MAX_ERROR_MESSAGE_LEN];
    const int size = info != nullptr ? onig_error_code_to_str(message, code, info)
                                     : onig_error_code_to_str(message, code);
    return std::string(reinterpret_cast<const char*>(message), size_t(size));
}

void initialize_once() {
    static std::once_flag once;
    std::call_once(once, [] {
        OnigEncoding utf8 = ONIG_ENCODING_UTF8;
        onig_initialize(&utf8, 1);
        onig_set_parse_depth_limit(kMaxParseDepth);
    });
}

// Where one search keeps its state; one per thread, so that a search does not allocate.
struct SearchState {
    OnigRegion* region = onig_region_new();
    OnigMatchParam* param = onig_new_match_param();
    SearchState() = default;
    SearchState(const SearchState&) = delete;
    SearchState& operator=(const SearchState&) = delete;
    ~SearchState() {
        onig_region_free(region, 1);
        onig_free_match_param(param);
    }
};

}  // namespace

struct Regex::Compiled {
    OnigRegex handle = nullptr;
    ~Compiled() {
        if (handle != nullptr) onig_free(handle);
    }
};

Regex::Regex(std::string_view pattern, const std::string& where) : where_(where) {
    initialize_once();
    if (pattern.size() > kMaxPatternBytes) {
        throw Error(ErrorKind::checkpoint, "{}: regex of {} bytes is longer than {}", where,
                    pattern.size(), kMaxPatternBytes);
    }
    auto compiled = std::make_shared<Compiled>();
    OnigErrorInfo info;
    const int code = onig_new(&compiled->handle, bytes(pattern), bytes(pattern) + pattern.size(),
                              ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &info);
    if (code != ONIG_NORMAL) {
        throw Error(ErrorKind::checkpoint, "{}: bad regex: {}", where, describe(code, &info));
    }
    compiled_ = std::move(compiled);
}

std::string Regex::escape(std::string_view text) {
    std::string out;
    for (const char c : text) {
        if (std::string_view(R"(\.+*?()|[]{}^$#&-~)").find(c) != std::string_view::npos) {
            out.push_back('\\');
        }
        out.push_back(c);
    }
    return out;
}

void Regex::find_all(std::string_view text, std::vector<Span>* matches) const {
    matches->clear();
    thread_local SearchState state;
    onig_initialize_match_param(state.param);
    const size_t max_stack = kMatchStackPerSearch + kMatchStackPerByte * text.size();
    onig_set_match_stack_limit_size_of_match_param(state.param,
                                                   unsigned(std::min<size_t>(max_stack, INT_MAX)));
    onig_set_retry_limit_in_search_of_match_param(
        state.param, kRetriesPerSearch + kRetriesPerByte * text.size());
    const OnigUChar* begin = bytes(text);
    const OnigUChar* end = begin + text.size();
    size_t from = 0;
    size_t last_match_end = std::string_view::npos;
    while (from <= text.size()) {
        const int found = onig_search_with_param(compiled_->handle, begin, end, begin + from, end,
                                                 state.region, ONIG_OPTION_NONE, state.param);
        if (found == ONIG_MISMATCH) return;
        if (found < 0) {
            throw Error(ErrorKind::input, "{}: regex search in {} bytes of text failed: {}", where_,
                        text.size(), describe(found, nullptr));
        }
        const Span match{size_t(state.region->beg[0]), size_t(state.region->end[0])};
        if (match.empty() && match.end == last_match_end) {
            if (from == text.size()) return;
            next_char(text, &from);
            continue;
        }
        matches->push_back(match);
        from = last_match_end = match.end;
    }
}

}  // namespace ferry::tok
