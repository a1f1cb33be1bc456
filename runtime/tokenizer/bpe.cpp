#include "runtime/tokenizer/bpe.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry::tok {
namespace {

// Ids may leave this many holes, so that a damaged file cannot ask for a table of 2^31 entries.
constexpr size_t kMaxUnusedIds = 1 << 16;
// Longer tokens are merged like any other text: pieces that long are rare.
constexpr size_t kMaxWholeWordBytes = 64;

struct MergeText {
    std::string left;
    std::string right;
};

// Both written forms: "a b" and ["a", "b"].
MergeText read_merge(const Json& merge, const Where& where) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    }
    if (merge.is_string()) {
        const std::string text = merge.get<std::string>();
        const size_t space = text.find(' ');
        if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
            return {text.substr(0, space), text.substr(space + 1)};
        }
    }
    where.fail("is neither \"left right\" nor [\"left\", \"right\"]");
}

void refuse_affix(const Json& model, const char* key, const Where& where) {
    if (!get_string(model, key, "", where).empty()) {
        where.fail(fmt::format("{} is not supported", key));
    }
}

}  // namespace

Bpe::Bpe(const Json& model, const Where& where) {
    if (!model.is_object()) where.fail("is not an object");
    // the oldest files do not name the type of their only model
    const std::string type = get_string(model, "type", "BPE", where);
    if (type != "BPE") where.fail(fmt::format("model {} is not supported", show_text(type)));
    if (!is_absent(model, "dropout") && model["dropout"] != 0.0) {
        where.fail("dropout is not supported");
    }
    refuse_affix(model, "continuing_subword_prefix", where);
    refuse_affix(model, "end_of_word_suffix", where);
    byte_fallback_ = get_bool(model, "byte_fallback", false, where);
    ignore_merges_ = get_bool(model, "ignore_merges", false, where);
    fuse_unk_ = get_bool(model, "fuse_unk", false, where);

    read_vocab(model, where);
    if (!is_absent(model, "unk_token")) {
        const std::string unk = need_string(model, "unk_token", where);
        unk_id_ = id_of(unk);
        if (!unk_id_) where.fail(fmt::format("unk_token {} is not in the vocab", show_text(unk)));
    }
    read_merges(model, where);
    find_whole_words();
}

Bpe::Bpe(const std::vector<std::string>& tokens, const Where& where) : ignore_merges_(true) {
    ids_.reserve(tokens.size());
    for (const std::string& token : tokens) add_token(token, num_ids(), where);
    note_short_tokens();
    for (const char32_t c : kByteAlphabet.char_of) {
        if (short_char_ids_[c] < 0)
            where.fail(fmt::format("byte {} is no token", kByteAlphabet.byte_of[c]));
    }

    struct Pair {
        int32_t left, right, id;
    };
    std::vector<Pair> pairs;
    for (int32_t id = 0; id < num_ids(); ++id) {
        const std::string_view token = *tokens_[size_t(id)];
        for (size_t at = 0; next_char(token, &at), at < token.size();) {
            const auto left = ids_.find(token.substr(0, at));
            if (left == ids_.end()) continue;
            const auto right = ids_.find(token.substr(at));
            if (right != ids_.end()) pairs.push_back({left->second, right->second, id});
        }
    }
    merges_ = MergeTable(pairs.size());
    for (const auto& [left, right, id] : pairs) merges_.insert(left, right, {id, id});
}

void Bpe::read_vocab(const Json& model, const Where& where) {
    const Json& vocab = need_object(model, "vocab", where);
    const int64_t max_id = int64_t(vocab.size() + kMaxUnusedIds);
    ids_.reserve(vocab.size());
    for (const auto& [token, id] : vocab.items()) {
        if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t(max_id)) {
            where.fail(fmt::format("vocab: id of {} is not an integer from 0 to {}",
                                   show_text(token), max_id));
        }
        add_token(token, id.get<int32_t>(), where);
    }
    note_short_tokens();
}

void Bpe::add_token(const std::string& token, int32_t id, const Where& where) {
    const auto [entry, is_new] = ids_.emplace(token, id);
    if (!is_new) {
        where.fail(
            fmt::format("vocab: {} has the ids {} and {}", show_text(token), entry->second, id));
    }
    const size_t idx = size_t(id);
    if (idx >= tokens_.size()) tokens_.resize(idx + 1, nullptr);
    if (tokens_[idx] != nullptr) {
        where.fail(fmt::format("vocab: {} and {} have the same id {}", show_text(*tokens_[idx]),
                               show_text(token), idx));
    }
    tokens_[idx] = &entry->first;
}

void Bpe::note_short_tokens() {
    for (char32_t c = 0; c < short_char_ids_.size(); ++c) {
        std::string text;
        append_char(c, &text);
        short_char_ids_[c] = id_of(text).value_or(-1);
    }
    for (int byte = 0; byte < 256; ++byte) {
        byte_ids_[size_t(byte)] = id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1);
    }
}

void Bpe::read_merges(const Json& model, const Where& where) {
    const Json& merges = need_array(model, "merges", where);
    merges_ = MergeTable(merges.size());
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const Where here = where.at("merges", rank);
        const auto [left, right] = read_merge(merges[rank], here);
        const auto need_id = [&](const std::string& token) {
            const std::optional<int32_t> id = id_of(token);
            if (!id) here.fail(fmt::format("{} is not in the vocab", show_text(token)));
            return *id;
        };
        const int32_t left_id = need_id(left);
        const int32_t right_id = need_id(right);
        merges_.insert(left_id, right_id, {int32_t(rank), need_id(left + right)});
    }
}

void Bpe::find_whole_words() {
    is_whole_word_.assign(tokens_.size(), false);
    Scratch scratch;
    std::vector<int32_t> ids;
    for (size_t id = 0; id < tokens_.size(); ++id) {
        if (tokens_[id] == nullptr || tokens_[id]->size() > kMaxWholeWordBytes) continue;
        ids.clear();
        encode(*tokens_[id], &scratch, &ids);
        is_whole_word_[id] = ids.size() == 1 && ids[0] == int32_t(id);
    }
}

std::optional<int32_t> Bpe::id_of(std::string_view token) const {
    const auto entry = ids_.find(token);
    if (entry == ids_.end()) return std::nullopt;
    return entry->second;
}

const std::string* Bpe::token_of(int32_t id) const {
    return id >= 0 && size_t(id) < tokens_.size() ? tokens_[size_t(id)] : nullptr;
}

void Bpe::encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
    if (ignore_merges_ || piece.size() <= kMaxWholeWordBytes) {
        const auto entry = ids_.find(piece);
        if (entry != ids_.end() && (ignore_merges_ || is_whole_word_[size_t(entry->second)])) {
            ids->push_back(entry->second);
            return;
        }
    }
    split_into_symbols(piece, scratch);
    merge_symbols(scratch);
    for (const Scratch::Symbol& symbol : scratch->symbols) {
        if (!symbol.is_merged_away) ids->push_back(symbol.id);
    }
}

void Bpe::split_into_symbols(std::string_view piece, Scratch* scratch) const {
    FERRY_CHECK(piece.size() < size_t(std::numeric_limits<int32_t>::max()));
    auto& symbols = scratch->symbols;
    symbols.clear();
    // An unknown character waits until the next known one, so that several can be fused. Bytes of
    // the byte fallback do not end the wait: the reference library emits them first.
    bool has_unknown = false;
    const auto add = [&symbols](int32_t id) { symbols.push_back({id, 0, 0, false}); };
    for (size_t pos = 0; pos < piece.size();) {
        const size_t begin = pos;
        const char32_t c = next_char(piece, &pos);
        const std::string_view character = piece.substr(begin, pos - begin);
        const int32_t id =
            c < short_char_ids_.size() ? short_char_ids_[c] : id_of(character).value_or(-1);
        if (id >= 0) {
            if (has_unknown) add(*unk_id_);
            has_unknown = false;
            add(id);
        } else if (!(byte_fallback_ && add_bytes(character, scratch)) && unk_id_) {
            if (has_unknown && !fuse_unk_) add(*unk_id_);
            has_unknown = true;
        }
    }
    if (has_unknown) add(*unk_id_);
    for (size_t i = 0; i < symbols.size(); ++i) {
        symbols[i].prev = int32_t(i) - 1;
        symbols[i].next = i + 1 < symbols.size() ? int32_t(i) + 1 : -1;
    }
}

// Adds the byte tokens of `character` when the vocab has all of them.
bool Bpe::add_bytes(std::string_view character, Scratch* scratch) const {
    const auto has_token = [this](char byte) { return byte_ids_[uint8_t(byte)] >= 0; };
    if (!std::all_of(character.begin(), character.end(), has_token)) return false;
    for (const char byte : character) {
        scratch->symbols.push_back({byte_ids_[uint8_t(byte)], 0, 0, false});
    }
    return true;
}

namespace {
// Orders a heap so that its top has the lowest rank, then the lowest position.
constexpr auto kComesLater = [](const auto& a, const auto& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.pos > b.pos;
};
}  // namespace

void Bpe::push_candidate(int32_t pos, Scratch* scratch) const {
    const Scratch::Symbol& left = scratch->symbols[size_t(pos)];
    if (left.next < 0) return;
    const auto* merge = merges_.find(left.id, scratch->symbols[size_t(left.next)].id);
    if (merge == nullptr) return;
    scratch->heap.push_back({merge->rank, pos, merge->new_id});
    std::push_heap(scratch->heap.begin(), scratch->heap.end(), kComesLater);
}

void Bpe::merge_symbols(Scratch* scratch) const {
    auto& symbols = scratch->symbols;
    auto& heap = scratch->heap;
    heap.clear();
    for (size_t pos = 0; pos + 1 < symbols.size(); ++pos) push_candidate(int32_t(pos), scratch);
    while (!heap.empty()) {
        const Scratch::Candidate top = heap.front();
        std::pop_heap(heap.begin(), heap.end(), kComesLater);
        heap.pop_back();

        Scratch::Symbol& left = symbols[size_t(top.pos)];
        if (left.is_merged_away || left.next < 0) continue;
        Scratch::Symbol& right = symbols[size_t(left.next)];
        const auto* merge = merges_.find(left.id, right.id);
        if (merge == nullptr || merge->new_id != top.new_id) continue;  // out of date

        left.id = top.new_id;
        left.next = right.next;
        right.is_merged_away = true;
        if (left.next >= 0) symbols[size_t(left.next)].prev = top.pos;
        if (left.prev >= 0) push_candidate(left.prev, scratch);
        push_candidate(top.pos, scratch);
    }
}

}  // namespace ferry::tok
