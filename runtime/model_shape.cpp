#include "runtime/model_shape.h"

#include <fstream>

#include "runtime/input_file.h"
#include "runtime/model_fields.h"
#include "runtime/yaml.h"

namespace ferry {
namespace {

enum class Weights { f32, bf16, fp8, int4 };

constexpr DType to_dtype(Weights weights) {
    constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::fp8_e4m3, DType::int4x2};
    return kTypes[static_cast<size_t>(weights)];
}

// Adds a model's fields to a table.
class FieldAdder {
  public:
    FieldAdder(std::vector<Field>& fields, std::string prefix)
        : fields_(fields), prefix_(std::move(prefix)) {}

    void operator()(const char* name, int64_t& value) const { add(name, &value, {0, 1e12}); }
    void operator()(const char* name, double& value) const { add(name, &value); }
    void operator()(const char* name, bool& value) const { add(name, &value); }
    void operator()(const char* name, std::string& value) const { add(name, &value); }
    void operator()(const char* name, ScoreFunc& value) const {
        add(name, choice(value, {"softmax", "sigmoid"}));
    }

  private:
    template <typename Target>
    void add(const char* name, Target target, NumberRange range = {}) const {
        fields_.push_back({prefix_ + name, std::move(target), range, Changes::results, ""});
    }

    std::vector<Field>& fields_;
    std::string prefix_;
};

std::vector<Field> shape_fields(ModelShape& shape, Weights& weights, YarnConfig& yarn) {
    std::vector<Field> fields = {
        {"name", &shape.name, {}, Changes::results, ""},
        {"weights", choice(weights, {"f32", "bf16", "fp8", "int4"}), {}, Changes::results, ""}};
    visit_model_fields(shape.config, FieldAdder(fields, ""));
    visit_yarn_fields(yarn, FieldAdder(fields, "yarn."));
    return fields;
}

}  // namespace

ModelShape load_model_shape(const std::string& path) {
    return parse_model_shape(read_text_file(path, kMaxYamlBytes), path);
}

ModelShape parse_model_shape(std::string_view text, const std::string& name) {
    ModelShape shape;
    Weights weights = Weights::bf16;
    YarnConfig yarn;
    FieldOrigins origins;
    assign_all(shape_fields(shape, weights, yarn), parse_yaml(text, name, ErrorKind::checkpoint),
               name, ErrorKind::checkpoint, &origins);
    shape.weights = to_dtype(weights);
    const auto first_yarn = origins.lower_bound("yarn.");
    if (first_yarn != origins.end() && first_yarn->first.starts_with("yarn."))
        shape.config.yarn = yarn;
    shape.config.validate(name);
    return shape;
}

}  // namespace ferry
