#include "runtime/model_description.h"

#include "base/error.h"
#include "runtime/model_fields.h"

namespace ferry {
namespace {

// As visit_model_fields, with what only a checkpoint tells.
template <typename Description, typename Visit>
void visit_fields(Description& d, Visit&& visit) {
    visit_model_fields(d.model, visit);
    visit("num_mtp_layers", d.num_mtp_layers);
    visit("fp8_weights", d.fp8_weights);
    visit("int4_experts", d.int4_experts);
    visit("ue8m0_scales", d.ue8m0_scales);
}

const std::string kYarnPrefix = "yarn_";

template <typename Yarn, typename Visit>
void visit_prefixed_yarn_fields(Yarn& yarn, Visit&& visit) {
    visit_yarn_fields(
        yarn, [&](const char* name, auto& field) { visit((kYarnPrefix + name).c_str(), field); });
}

class Writer {
  public:
    void operator()(const char* name, int64_t value) { attributes[name] = value; }
    void operator()(const char* name, double value) { attributes[name] = value; }
    void operator()(const char* name, bool value) { attributes[name] = int64_t{value}; }
    void operator()(const char* name, const std::string& value) {
        if (!value.empty()) attributes[name] = value;
    }
    void operator()(const char* name, ScoreFunc value) {
        attributes[name] = std::string(value == ScoreFunc::sigmoid ? "sigmoid" : "softmax");
    }
    Attributes attributes;
};

class Reader {
  public:
    Reader(const Attributes& attributes, const std::string& where)
        : attributes_(attributes), where_(where) {}

    void operator()(const char* name, int64_t& field) const {
        if (const Attribute* value = find(name)) field = integer(name, *value);
    }
    void operator()(const char* name, bool& field) const {
        if (const Attribute* value = find(name)) field = integer(name, *value) != 0;
    }
    void operator()(const char* name, double& field) const {
        const Attribute* value = find(name);
        if (value == nullptr) return;
        if (const auto* number = std::get_if<double>(value))
            field = *number;
        else
            field = static_cast<double>(integer(name, *value));
    }
    void operator()(const char* name, std::string& field) const {
        const Attribute* value = find(name);
        if (value == nullptr) return;
        const auto* text = std::get_if<std::string>(value);
        if (text == nullptr) fail(name, "is not text");
        field = *text;
    }
    void operator()(const char* name, ScoreFunc& field) const {
        const Attribute* value = find(name);
        if (value == nullptr) return;
        if (*value == Attribute(std::string("sigmoid")))
            field = ScoreFunc::sigmoid;
        else if (*value == Attribute(std::string("softmax")))
            field = ScoreFunc::softmax;
        else
            fail(name, "is neither sigmoid nor softmax");
    }

  private:
    const Attribute* find(const char* name) const {
        const auto it = attributes_.find(name);
        return it == attributes_.end() ? nullptr : &it->second;
    }
    int64_t integer(const char* name, const Attribute& value) const {
        const auto* number = std::get_if<int64_t>(&value);
        if (number == nullptr) fail(name, "is not an integer");
        if (*number < 0 || *number > kMaxExtent) fail(name, "is not of a sensible size");
        return *number;
    }
    [[noreturn]] void fail(const char* name, const char* what) const {
        throw Error(ErrorKind::checkpoint, "{}: {} {}", where_, name, what);
    }

    const Attributes& attributes_;
    const std::string& where_;
};

}  // namespace

Attributes to_attributes(const ModelDescription& description) {
    Writer writer;
    visit_fields(description, writer);
    if (description.model.yarn) visit_prefixed_yarn_fields(*description.model.yarn, writer);
    if (description.model.index_topk == 0)
        std::erase_if(writer.attributes,
                      [](const auto& entry) { return entry.first.starts_with("index_"); });
    return std::move(writer.attributes);
}

ModelDescription to_model_description(const Attributes& attributes, const std::string& where) {
    ModelDescription description;
    const Reader reader(attributes, where);
    visit_fields(description, reader);
    if (attributes.contains(kYarnPrefix + "factor")) {
        description.model.yarn.emplace();
        visit_prefixed_yarn_fields(*description.model.yarn, reader);
    }
    validate(description, where);
    return description;
}

void validate(const ModelDescription& description, const std::string& where,
              const FieldNames& names) {
    const ModelConfig& model = description.model;
    if (model.n_layers > kMostLayers || model.n_routed_experts > 65536 ||
        description.num_mtp_layers < 0 || description.num_mtp_layers > 100)
        throw Error(ErrorKind::checkpoint,
                    "{}: {} layers, {} experts or {} prediction layers are too many", where,
                    model.n_layers, model.n_routed_experts, description.num_mtp_layers);
    model.validate(where, names);
}

std::string to_string(const Attribute& value) {
    return std::visit([](const auto& v) { return fmt::format("{}", v); }, value);
}

}  // namespace ferry
