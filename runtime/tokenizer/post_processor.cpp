#include "runtime/tokenizer/post_processor.h"

#include <fmt/core.h>

namespace ferry::tok {
namespace {

int32_t read_id(const Json& id, int32_t num_ids, const Where& where) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t(num_ids)) {
        where.fail(fmt::format("a special token id is not an integer from 0 to {}", num_ids - 1));
    }
    return id.get<int32_t>();
}

PostProcessor make_template(const Json& json, int32_t num_ids, const Where& where) {
    PostProcessor result;
    bool has_text = false;
    for (const Json& part : need_array(json, "single", where)) {
        if (!is_absent(part, "Sequence")) {
            const std::string name = need_string(part["Sequence"], "id", where);
            if (name != "A" || has_text) where.fail("'single' is not one text A");
            has_text = true;
            continue;
        }
        const std::string name = need_string(need_object(part, "SpecialToken", where), "id", where);
        const Json& token =
            need_object(need_object(json, "special_tokens", where), name.c_str(), where);
        for (const Json& id : need_array(token, "ids", where)) {
            (has_text ? result.suffix : result.prefix).push_back(read_id(id, num_ids, where));
        }
    }
    if (!has_text) where.fail("'single' has no text A");
    return result;
}

// "cls" and "sep", each [token, id].
PostProcessor make_classifier(const Json& json, int32_t num_ids, const Where& where) {
    const auto need_token = [&](const char* key) {
        const Json& pair = need_array(json, key, where);
        if (pair.size() != 2) where.fail(fmt::format("'{}' is not [token, id]", key));
        return read_id(pair[1], num_ids, where);
    };
    return {{need_token("cls")}, {need_token("sep")}};
}

PostProcessor make_sequence(const Json& json, int32_t num_ids, const Where& where) {
    PostProcessor result;
    size_t idx = 0;
    for (const Json& part : need_array(json, "processors", where)) {
        PostProcessor outer = make_post_processor(part, num_ids, where.at("processors", idx++));
        outer.prefix.insert(outer.prefix.end(), result.prefix.begin(), result.prefix.end());
        result.prefix = std::move(outer.prefix);
        result.suffix.insert(result.suffix.end(), outer.suffix.begin(), outer.suffix.end());
    }
    return result;
}

}  // namespace

PostProcessor make_post_processor(const Json& json, int32_t num_ids, const Where& where) {
    const std::string type = component_type(json, where);
    if (type == "Sequence") return make_sequence(json, num_ids, where);
    if (type == "TemplateProcessing") return make_template(json, num_ids, where);
    if (type == "RobertaProcessing" || type == "BertProcessing") {
        return make_classifier(json, num_ids, where);
    }
    if (type == "ByteLevel") return {};
    where.fail(fmt::format("post-processor {} is not supported", show_text(type)));
}

}  // namespace ferry::tok
