#include "runtime/json_text.h"

#include <optional>
#include <set>

#include "base/error.h"

namespace ferry {
namespace {

constexpr int kMaxDepth = 64;  // as in a chat template: schemas of tools are deep
constexpr size_t kMaxQuotedBytes = 100;

}  // namespace

std::string in_quotes(std::string_view text) {
    const std::string shown(text.substr(0, kMaxQuotedBytes));
    return Json(shown).dump(-1, ' ', true, Json::error_handler_t::replace) +
           (text.size() > kMaxQuotedBytes ? "..." : "");
}

Json parse_json(std::string_view text, const std::string& where, const VisitEntry& visit_entry) {
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    std::optional<std::string> entry;         // the outermost object's current key
    const auto on_event = [&](int depth, Json::parse_event_t event, Json& value) {
        switch (event) {
            case Json::parse_event_t::object_start:
            case Json::parse_event_t::array_start:
                if (depth >= kMaxDepth)
                    throw Error(ErrorKind::checkpoint, "{}: JSON nested too deeply", where);
                if (event == Json::parse_event_t::object_start) keys.emplace_back();
                return true;
            case Json::parse_event_t::key: {
                const auto& key = value.get_ref<const std::string&>();
                if (!keys.back().insert(key).second)
                    throw Error(ErrorKind::checkpoint, "{}: {} is there twice", where,
                                in_quotes(key));
                if (depth == 1) entry = key;
                return true;
            }
            case Json::parse_event_t::object_end:
                keys.pop_back();
                break;
            default:
                break;
        }
        const bool is_entry = depth == 1 && entry && visit_entry != nullptr;
        return !(is_entry && visit_entry(*entry, value));
    };
    try {
        return Json::parse(text, on_event);
    } catch (const Json::exception& error) {
        const std::string what = error.what();
        throw Error(
            ErrorKind::checkpoint, "{}: not valid JSON: {}", where,
            in_quotes(what.substr(what.find("] ") == std::string::npos ? 0 : what.find("] ") + 2)));
    }
}

}  // namespace ferry
