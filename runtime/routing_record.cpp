#include "runtime/routing_record.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "base/error.h"
#include "runtime/json_text.h"

namespace ferry {
namespace {

class RecordReader {
  public:
    explicit RecordReader(const std::string& name) : name_(name) {}

    RoutingRecord read(const std::string& text) {
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            ++line_number_;
            const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
            if (!json.is_object()) refuse("is no JSON object");
            if (line_number_ == 1)
                read_model(json);
            else
                read_dispatch(json);
        }
        if (by_rank_.empty()) refuse("no choices follow");
        for (auto& [rank, choices] : by_rank_) record_.choices.push_back(std::move(choices));
        return std::move(record_);
    }

  private:
    [[noreturn]] void refuse(const std::string& what) const {
        throw Error(ErrorKind::input, "{}:{}: {}; log.routing writes such files", name_,
                    line_number_, what);
    }
    int64_t count(const Json& json, const char* key, int64_t lowest, int64_t highest) const {
        const auto it = json.find(key);
        if (it == json.end() || !it->is_number_integer() || it->get<int64_t>() < lowest ||
            it->get<int64_t>() > highest)
            refuse(fmt::format("{} is not a number of {} ... {}", key, lowest, highest));
        return it->get<int64_t>();
    }
    void read_model(const Json& json) {
        record_.num_experts = count(json, "experts", 1, 1 << 14);
        record_.topk = count(json, "top_k", 1, record_.num_experts);
    }
    void read_dispatch(const Json& json) {
        std::vector<int32_t>& choices = by_rank_[count(json, "attention_rank", 0, 1 << 20)];
        const auto rows = json.find("experts");
        if (rows == json.end() || !rows->is_array() || rows->empty())
            refuse("experts is not a list of lists");
        for (const Json& row : *rows) {
            if (!row.is_array() || static_cast<int64_t>(row.size()) != record_.topk)
                refuse(fmt::format("a token has other than {} experts", record_.topk));
            const size_t first = choices.size();
            for (const Json& expert : row) {
                if (!expert.is_number_unsigned() ||
                    expert.get<uint64_t>() >= static_cast<uint64_t>(record_.num_experts))
                    refuse(fmt::format("an expert is not one of {}", record_.num_experts));
                choices.push_back(expert.get<int32_t>());
            }
            std::vector<int32_t> sorted(choices.begin() + static_cast<std::ptrdiff_t>(first),
                                        choices.end());
            std::sort(sorted.begin(), sorted.end());
            if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
                refuse("a token has an expert twice");
        }
    }

    const std::string& name_;
    int64_t line_number_ = 0;
    RoutingRecord record_;
    std::map<int64_t, std::vector<int32_t>> by_rank_;
};

}  // namespace

RoutingRecord parse_routing_record(const std::string& text, const std::string& name) {
    return RecordReader(name).read(text);
}

void RoutingRecorder::keep(int layer, const Tensor& experts) {
    const int64_t num = std::min(experts.rows(), kMaxRows - num_rows_);
    if (num == 0) return;
    topk_ = experts.dim(1);
    num_rows_ += num;
    dispatches_.push_back({layer, num});
    for (int64_t row = 0; row < num; ++row)
        choices_.insert(choices_.end(), experts.row<int32_t>(row),
                        experts.row<int32_t>(row) + topk_);
}

std::string RoutingRecorder::first_line(int64_t num_experts, int64_t topk) {
    return fmt::format("{{\"experts\": {}, \"top_k\": {}}}\n", num_experts, topk);
}

std::string RoutingRecorder::lines(int attention_rank) const {
    std::string text;
    const int32_t* row = choices_.data();
    for (const Dispatch& dispatch : dispatches_) {
        text += fmt::format("{{\"attention_rank\": {}, \"layer\": {}, \"experts\": [",
                            attention_rank, dispatch.layer);
        for (int64_t i = 0; i < dispatch.num_rows; ++i, row += topk_)
            text += fmt::format("{}[{}]", i == 0 ? "" : ", ", fmt::join(row, row + topk_, ", "));
        text += "]}\n";
    }
    return text;
}

RoutingRecorder& routing_recorder() {
    static RoutingRecorder recorder;
    return recorder;
}

}  // namespace ferry
