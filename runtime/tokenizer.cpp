#include "runtime/tokenizer.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <unordered_map>

#include "base/error.h"
#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/byte_level.h"
#include "runtime/tokenizer/decoder.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/post_processor.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/tiktoken.h"
#include "runtime/tokenizer/unicode.h"

namespace ferry {

using namespace tok;

struct Tokenizer::Impl {
    // `json`: what stands beside the model.
    Impl(Bpe bpe, const Json& json, const Where& where);

    void add_tokens(const Json& json, const Where& where);
    void encode_normalized(std::string_view text, bool is_input_start, Bpe::Scratch* scratch,
                           std::vector<int32_t>* ids) const;
    void encode_piece_run(std::string_view text, bool is_input_start, Bpe::Scratch* scratch,
                          std::vector<int32_t>* ids) const;
    // Null for an id that no token has.
    const std::string* token_of(int32_t id) const;

    Bpe model;
    Normalizer normalizer;          // may be empty
    PreTokenizer pretokenizer;      // may be empty
    PostProcessor post_processor;   // adds nothing when the file has none
    Decoder decoder;                // may be empty: tokens are then joined by spaces
    bool is_byte_level = false;     // the decoder is ByteLevel alone
    AddedTokenMatcher raw_tokens;   // matched in the text as it is
    AddedTokenMatcher norm_tokens;  // matched in normalized text
    std::unordered_map<int32_t, AddedToken> added;
    int32_t num_ids = 0;
};

namespace {

constexpr int32_t kMaxUnusedIds = 1 << 16;
constexpr const char* kTiktoken = "tiktoken.model";

bool is_byte_level_decoder(const Json& json) {
    const std::string type = json.value("type", "");
    if (type == "Sequence" && json.contains("decoders") && json["decoders"].size() == 1) {
        return is_byte_level_decoder(json["decoders"][0]);
    }
    return type == "ByteLevel";
}

std::string read_file(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (!file || !(text << file.rdbuf())) {
        throw Error(ErrorKind::checkpoint, "{}: cannot read the tokenizer: {}", path.string(),
                    std::strerror(errno));
    }
    return std::move(text).str();
}

}  // namespace

Tokenizer::Impl::Impl(Bpe bpe, const Json& json, const Where& where) : model(std::move(bpe)) {
    if (!is_absent(json, "normalizer")) {
        normalizer = make_normalizer(json["normalizer"], where.at("normalizer"));
    }
    if (!is_absent(json, "pre_tokenizer")) {
        pretokenizer = make_pretokenizer(json["pre_tokenizer"], where.at("pre_tokenizer"));
    }
    if (!is_absent(json, "decoder")) {
        decoder = make_decoder(json["decoder"], where.at("decoder"));
        is_byte_level = is_byte_level_decoder(json["decoder"]);
    }
    add_tokens(json, where);
    if (!is_absent(json, "post_processor")) {
        post_processor =
            make_post_processor(json["post_processor"], num_ids, where.at("post_processor"));
    }
}

void Tokenizer::Impl::add_tokens(const Json& json, const Where& where) {
    num_ids = model.num_ids();
    for (const AddedToken& token : read_added_tokens(json, where)) {
        const std::optional<int32_t> vocab_id = model.id_of(token.content);
        if (vocab_id && *vocab_id != token.id) {
            where.fail(fmt::format("added token {} has id {}, but {} in the vocab",
                                   show_text(token.content), token.id, *vocab_id));
        }
        if (token.id >= num_ids + kMaxUnusedIds) {
            where.fail(fmt::format("added token {} has id {}, far above the {} ids before it",
                                   show_text(token.content), token.id, num_ids));
        }
        num_ids = std::max(num_ids, token.id + 1);
        added.insert_or_assign(token.id, token);
        if (token.normalized) {
            std::string text = token.content;
            if (normalizer) normalizer(&text);
            norm_tokens.add(text, token);
        } else {
            raw_tokens.add(token.content, token);
        }
    }
}

const std::string* Tokenizer::Impl::token_of(int32_t id) const {
    const auto token = added.find(id);
    return token != added.end() ? &token->second.content : model.token_of(id);
}

// Cuts out the added tokens that are matched after normalization.
void Tokenizer::Impl::encode_normalized(std::string_view text, bool is_input_start,
                                        Bpe::Scratch* scratch, std::vector<int32_t>* ids) const {
    if (norm_tokens.is_empty()) return encode_piece_run(text, is_input_start, scratch, ids);
    for (const auto& section : norm_tokens.split(text)) {
        const auto [begin, end] = section.span;
        if (section.id) {
            ids->push_back(*section.id);
        } else {
            encode_piece_run(text.substr(begin, end - begin), is_input_start && begin == 0, scratch,
                             ids);
        }
    }
}

// Encodes text without added tokens.
void Tokenizer::Impl::encode_piece_run(std::string_view text, bool is_input_start,
                                       Bpe::Scratch* scratch, std::vector<int32_t>* ids) const {
    if (text.empty()) return;
    Pieces pieces{std::string(text), {{0, text.size()}}, is_input_start};
    if (pretokenizer) pretokenizer(&pieces);
    for (size_t i = 0; i < pieces.spans.size(); ++i) model.encode(pieces.view(i), scratch, ids);
}

Tokenizer::Tokenizer(std::shared_ptr<const Impl> impl)
    : impl_(std::move(impl)),
      before_(impl_->post_processor.prefix),
      after_(impl_->post_processor.suffix) {}

Tokenizer Tokenizer::with_special_tokens(std::vector<int32_t> before,
                                         std::vector<int32_t> after) const {
    Tokenizer changed = *this;
    changed.before_ = std::move(before);
    changed.after_ = std::move(after);
    return changed;
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
    const std::string text = read_file(path);
    if (path.filename() != kTiktoken) return from_json(text, path.string());
    return from_tiktoken(text, read_file(path.parent_path() / "tokenizer_config.json"),
                         path.string());
}

Tokenizer Tokenizer::from_json(std::string_view json, const std::string& name) {
    const Where where{name, ""};
    try {
        const Json parsed = Json::parse(json);
        Bpe model(need_object(parsed, "model", where), where.at("model"));
        return Tokenizer(std::make_shared<const Impl>(std::move(model), parsed, where));
    } catch (const Json::exception& error) {
        where.fail(fmt::format("is not a tokenizer.json: {}", error.what()));
    }
}

Tokenizer Tokenizer::from_tiktoken(std::string_view ranks, std::string_view config,
                                   const std::string& name) {
    const Where where{name, ""};
    const Json parsed = Json::parse(config, nullptr, false);
    if (!is_kimi_config(parsed))
        where.fail(
            "how it splits text is known for Kimi and Moonlight only, and tokenizer_config.json "
            "beside it does not name tokenization_kimi.TikTokenTokenizer or "
            "tokenization_moonshot.TikTokenTokenizer");
    const std::vector<std::string> tokens = read_tiktoken(ranks, where);
    Bpe model(tokens, where);
    const Json rest = kimi_components(parsed, tokens.size(), where);
    return Tokenizer(std::make_shared<const Impl>(std::move(model), rest, where));
}

std::filesystem::path Tokenizer::find(const std::filesystem::path& folder) {
    if (std::filesystem::exists(folder / "tokenizer.json")) return folder / "tokenizer.json";
    const std::filesystem::path config = folder / "tokenizer_config.json";
    if (!std::filesystem::exists(folder / kTiktoken) || !std::filesystem::exists(config)) return {};
    return is_kimi_config(Json::parse(read_file(config), nullptr, false)) ? folder / kTiktoken : "";
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
    std::string repaired;
    if (!is_valid_utf8(text)) {
        append_utf8_lossy(text, true, &repaired);
        text = repaired;
    }
    std::vector<int32_t> ids;
    Bpe::Scratch scratch;
    if (add_special_tokens) ids = before_;
    for (const auto& section : impl_->raw_tokens.split(text)) {
        const auto [begin, end] = section.span;
        if (section.id) {
            ids.push_back(*section.id);
            continue;
        }
        std::string normalized(text.substr(begin, end - begin));
        if (impl_->normalizer) impl_->normalizer(&normalized);
        impl_->encode_normalized(normalized, begin == 0, &scratch, &ids);
    }
    if (add_special_tokens) ids.insert(ids.end(), after_.begin(), after_.end());
    return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
    std::vector<std::string> tokens;
    tokens.reserve(ids.size());
    for (const int32_t id : ids) {
        const std::string* token = impl_->token_of(id);
        if (token == nullptr || (skip_special_tokens && is_special(id))) continue;
        tokens.push_back(*token);
    }
    if (impl_->decoder) impl_->decoder(&tokens);
    const std::string_view separator = impl_->decoder ? "" : " ";
    std::string text;
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (i > 0) text += separator;
        text += tokens[i];
    }
    return text;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
    for (const auto& [id, added] : impl_->added) {
        if (added.content == token) return id;
    }
    return impl_->model.id_of(token);
}

bool Tokenizer::is_special(int32_t id) const {
    const auto token = impl_->added.find(id);
    return token != impl_->added.end() && token->second.special;
}

int32_t Tokenizer::vocab_size() const {
    return impl_->num_ids;
}

namespace {
constexpr size_t kMaxWindow = 64;
constexpr std::string_view kReplacement = "\uFFFD";
}  // namespace

StreamDecoder::StreamDecoder(Tokenizer tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens) {}

std::string StreamDecoder::push(int32_t id) {
    if (!tokenizer_.impl_->is_byte_level) return push_to_window(id);
    const std::string* token = tokenizer_.impl_->token_of(id);
    if (token == nullptr || (skip_special_tokens_ && tokenizer_.is_special(id))) return "";
    append_token_bytes(*token, &pending_bytes_);
    std::string text;
    pending_bytes_.erase(0, append_utf8_lossy(pending_bytes_, false, &text));
    return text;
}

// Text ends inside a character when it ends with U+FFFD: wait for more. A long wait means that the
// bytes are not UTF-8 at all.
std::string StreamDecoder::push_to_window(int32_t id) {
    window_.push_back(id);
    const std::span<const int32_t> ids(window_);
    const size_t num_old_bytes =
        tokenizer_.decode(ids.first(num_returned_), skip_special_tokens_).size();
    const std::string text = tokenizer_.decode(ids, skip_special_tokens_);
    const bool is_whole = !text.ends_with(kReplacement) || ids.size() > num_returned_ + kMaxWindow;
    if (text.size() <= num_old_bytes || !is_whole) return "";
    window_.erase(window_.begin(), window_.begin() + int64_t(num_returned_));
    num_returned_ = window_.size();
    return text.substr(num_old_bytes);
}

std::string StreamDecoder::flush() {
    std::string text;
    append_utf8_lossy(pending_bytes_, true, &text);
    pending_bytes_.clear();
    const std::span<const int32_t> ids(window_);
    const size_t num_old_bytes =
        tokenizer_.decode(ids.first(num_returned_), skip_special_tokens_).size();
    const std::string rest = tokenizer_.decode(ids, skip_special_tokens_);
    if (rest.size() > num_old_bytes) text += rest.substr(num_old_bytes);
    window_.clear();
    num_returned_ = 0;
    return text;
}

}  // namespace ferry
