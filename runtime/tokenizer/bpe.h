// The BPE `model` of tokenizer.json: turns one piece of text into ids by merging neighbours,
// lowest rank first, leftmost first among equals.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/json_read.h"
#include "runtime/tokenizer/merge_table.h"

namespace ferry::tok {

class Bpe {
  public:
    // Working memory of encode, reused between calls so that encoding does not allocate.
    class Scratch {
        friend class Bpe;
        struct Symbol {
            int32_t id;
            int32_t prev;  // -1 at the start
            int32_t next;  // -1 at the end
            bool is_merged_away;
        };
        struct Candidate {
            int32_t rank;
            int32_t pos;
            int32_t new_id;
        };
        std::vector<Symbol> symbols;
        std::vector<Candidate> heap;
    };

    // Reads the `model` object: BPE with vocab, merges (both written forms), byte_fallback,
    // ignore_merges, unk_token, fuse_unk. Throws Error(checkpoint) for anything else.
    Bpe(const Json& model, const Where& where);
    // tiktoken's: `tokens` by id, written as in tokenizer.json. Any two neighbours merge that
    // together are a token, in the order of ids; a piece that is one is not split at all. Throws
    // Error(checkpoint) when a byte is no token.
    Bpe(const std::vector<std::string>& tokens, const Where& where);

    // Appends the ids of valid UTF-8 `piece`. Characters without an id become the unknown token,
    // or vanish when the model has none (as the reference library does).
    void encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

    std::optional<int32_t> id_of(std::string_view token) const;
    // Null for an id that no token has.
    const std::string* token_of(int32_t id) const;
    // The highest id plus one.
    int32_t num_ids() const { return int32_t(tokens_.size()); }

  private:
    struct Hash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const {
            return std::hash<std::string_view>{}(text);
        }
    };

    void read_vocab(const Json& model, const Where& where);
    void add_token(const std::string& token, int32_t id, const Where& where);
    void note_short_tokens();
    void read_merges(const Json& model, const Where& where);
    void find_whole_words();
    void split_into_symbols(std::string_view piece, Scratch* scratch) const;
    bool add_bytes(std::string_view character, Scratch* scratch) const;
    void merge_symbols(Scratch* scratch) const;
    void push_candidate(int32_t pos, Scratch* scratch) const;

    std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
    std::vector<const std::string*> tokens_;  // by id, into ids_
    std::vector<bool> is_whole_word_;  // by id: encoding the token's text gives this id alone
    std::array<int32_t, 512> short_char_ids_{};  // by character, -1 for none
    std::array<int32_t, 256> byte_ids_{};        // of "<0x41>", -1 for none
    MergeTable merges_;
    bool byte_fallback_ = false;
    bool ignore_merges_ = false;
    bool fuse_unk_ = false;
    std::optional<int32_t> unk_id_;
};

}  // namespace ferry::tok
