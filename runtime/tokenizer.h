// Text to token ids and back, from a Hugging Face tokenizer.json with a BPE model.
//
// Supported: byte-level BPE as in GPT-2, Llama-3, Qwen and DeepSeek files, and byte-fallback BPE as
// in Llama-2 files; each header under tokenizer/ lists its component types. Anything else in a file
// is refused by name. Ids and text agree exactly with the `tokenizers` library (tests/golden).
// Kimi and Moonlight have a tiktoken.model instead (tokenizer/tiktoken.h); ids are those of its own
// Python, but for text with 25 000 characters on end without white space, or of it, which that
// cuts. Not applied: `truncation` and `padding` of the file, clean_up_tokenization_spaces, dropout.
//
// Invalid UTF-8 in a text is replaced by U+FFFD before anything else, one per maximal subpart (as
// Python's bytes.decode(errors="replace")).
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

// Immutable and cheap to copy; any number of threads may use one tokenizer.
class Tokenizer {
  public:
    // Throws Error(checkpoint) that names file and component, for an unreadable file, bad JSON, or
    // a component that is not supported.
    static Tokenizer load(const std::filesystem::path& path);
    // `name` stands for the file in error messages.
    static Tokenizer from_json(std::string_view json, const std::string& name);
    // Kimi's tiktoken.model; `config` is the tokenizer_config.json beside it.
    static Tokenizer from_tiktoken(std::string_view ranks, std::string_view config,
                                   const std::string& name);
    // The file of a Hugging Face folder that load() takes: tokenizer.json, or Kimi's
    // tiktoken.model; empty when there is none.
    static std::filesystem::path find(const std::filesystem::path& folder);

    // Special tokens written in `text` become their ids; `add_special_tokens` adds those of the
    // file's post-processor (often begin-of-sentence). Chat templates write them themselves: pass
    // false then. Throws Error(input) when a pattern of the file gives up on this text.
    std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const;

    // The same tokenizer with these special tokens around a text, not those of the file.
    Tokenizer with_special_tokens(std::vector<int32_t> before, std::vector<int32_t> after) const;

    // Always valid UTF-8. Ids that no token has are left out.
    std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;

    // The token as the file writes it (byte-level: "Ġhello" for " hello").
    std::optional<int32_t> token_id(std::string_view token) const;
    bool is_special(int32_t id) const;
    // The highest id plus one; a model's embedding may have more rows.
    int32_t vocab_size() const;

  private:
    friend class StreamDecoder;
    struct Impl;
    explicit Tokenizer(std::shared_ptr<const Impl> impl);
    std::shared_ptr<const Impl> impl_;
    std::vector<int32_t> before_, after_;  // special tokens around a text
};

// Decodes ids one at a time and returns only whole characters: the parts joined, flush() included,
// are what decode() gives for all ids.
//
// With a byte-level decoder that holds for any ids. Other decoders look at a window of the last
// ids; there it holds as long as the bytes are UTF-8 in the end.
class StreamDecoder {
  public:
    explicit StreamDecoder(Tokenizer tokenizer, bool skip_special_tokens = true);

    // The text that `id` completes, often empty.
    std::string push(int32_t id);
    // What is left, with U+FFFD for an unfinished character; the decoder is then as new.
    std::string flush();

  private:
    std::string push_to_window(int32_t id);

    Tokenizer tokenizer_;
    bool skip_special_tokens_;
    std::string pending_bytes_;    // byte-level: an unfinished character
    std::vector<int32_t> window_;  // others: ids of the last returned text, then those after it
    size_t num_returned_ = 0;      // ids of window_ whose text was returned
};

}  // namespace ferry
