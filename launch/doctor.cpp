#include "launch/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace ferry {
namespace {

using Json = nlohmann::ordered_json;

bool same_kind(const Finding& a, const Finding& b) {
    return a.check == b.check && a.verdict == b.verdict && a.found == b.found && a.fix == b.fix;
}

void add_once(std::vector<std::string>& texts, const std::string& text) {
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(text);
}

struct HostRange {
    Figure low, high;
    std::string lowest_on;
};

std::string describe(const HostRange& range, bool one_host) {
    const Figure& low = range.low;
    if (one_host || low.value == range.high.value)
        return fmt::format("{} {:.3g} {}", low.name, low.value, low.unit);
    return fmt::format("{} {:.3g} .. {:.3g} {} (lowest on {})", low.name, low.value,
                       range.high.value, low.unit, range.lowest_on);
}

std::string describe_hosts(const std::vector<std::string>& hosts, size_t num_all) {
    if (hosts.size() == num_all) return num_all == 1 ? hosts[0] : fmt::format("all {}", num_all);
    constexpr size_t kShown = 3;
    const size_t shown = std::min(kShown, hosts.size());
    std::string text = fmt::format("{}", fmt::join(hosts.begin(), hosts.begin() + shown, ","));
    if (hosts.size() > shown) text += fmt::format(" +{}", hosts.size() - shown);
    return text;
}

std::string whole_text(const DoctorRow& row) {
    std::string text = row.finding.found;
    for (const std::string& range : row.ranges) text += (text.empty() ? "" : "; ") + range;
    return text;
}

}  // namespace

const char* to_string(Verdict verdict) {
    constexpr const char* kNames[] = {"ok", "warn", "fail"};
    return kNames[static_cast<int>(verdict)];
}

std::string encode(std::span<const Finding> findings) {
    Json list = Json::array();
    for (const Finding& finding : findings) {
        Json figures = Json::array();
        for (const Figure& figure : finding.figures)
            figures.push_back({figure.name, figure.value, figure.unit});
        list.push_back({finding.check, static_cast<int>(finding.verdict), finding.found,
                        finding.fix, finding.same_everywhere, figures});
    }
    // File names need not be UTF-8.
    return list.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<Finding> decode(const std::string& text) {
    std::vector<Finding> findings;
    for (const Json& item : Json::parse(text)) {
        Finding& finding = findings.emplace_back(Finding{.check = item[0],
                                                         .verdict = item[1],
                                                         .found = item[2],
                                                         .fix = item[3],
                                                         .same_everywhere = item[4]});
        for (const Json& figure : item[5])
            finding.figures.push_back({.name = figure[0], .value = figure[1], .unit = figure[2]});
    }
    return findings;
}

DoctorReport::DoctorReport(std::span<const RankFindings> ranks) {
    std::vector<std::vector<HostRange>> ranges;  // by row
    std::vector<std::string> order;              // of the checks, as the first rank that has them
    for (const RankFindings& rank : ranks) {
        add_once(hosts_, rank.host);
        for (const Finding& finding : rank.findings) {
            add_once(order, finding.check);
            auto row = std::find_if(rows_.begin(), rows_.end(), [&](const DoctorRow& other) {
                return same_kind(other.finding, finding);
            });
            if (row == rows_.end()) {
                row = rows_.insert(rows_.end(),
                                   DoctorRow{.finding = finding, .hosts = {}, .ranges = {}});
                row->finding.figures.clear();
                ranges.emplace_back();
            }
            add_once(row->hosts, rank.host);
            std::vector<HostRange>& own = ranges[static_cast<size_t>(row - rows_.begin())];
            for (const Figure& figure : finding.figures) {
                const auto known = std::find_if(
                    own.begin(), own.end(),
                    [&](const HostRange& range) { return range.low.name == figure.name; });
                if (known == own.end()) {
                    own.push_back({.low = figure, .high = figure, .lowest_on = rank.host});
                } else if (figure.value < known->low.value) {
                    known->low = figure;
                    known->lowest_on = rank.host;
                } else if (figure.value > known->high.value) {
                    known->high = figure;
                }
            }
        }
    }
    for (size_t i = 0; i < rows_.size(); ++i)
        for (const HostRange& range : ranges[i])
            rows_[i].ranges.push_back(describe(range, rows_[i].hosts.size() == 1));
    std::stable_sort(rows_.begin(), rows_.end(), [&](const DoctorRow& a, const DoctorRow& b) {
        return std::find(order.begin(), order.end(), a.finding.check) <
               std::find(order.begin(), order.end(), b.finding.check);
    });
    mark_differences();
}

void DoctorReport::mark_differences() {
    for (DoctorRow& row : rows_) {
        if (!row.finding.same_everywhere || row.finding.verdict != Verdict::ok) continue;
        const bool differs = std::any_of(rows_.begin(), rows_.end(), [&](const DoctorRow& other) {
            return other.finding.check == row.finding.check &&
                   other.finding.found != row.finding.found;
        });
        if (!differs) continue;
        row.finding.verdict = Verdict::warn;
        row.finding.fix =
            "hosts differ; a job is as slow as its slowest host, and needs the same "
            "build and libraries on all of them";
    }
}

int DoctorReport::count(Verdict verdict) const {
    return static_cast<int>(std::count_if(rows_.begin(), rows_.end(), [&](const DoctorRow& row) {
        return row.finding.verdict == verdict;
    }));
}

std::string DoctorReport::to_text() const {
    size_t check_width = 5, hosts_width = 5;
    for (const DoctorRow& row : rows_) {
        check_width = std::max(check_width, row.finding.check.size());
        hosts_width = std::max(hosts_width, describe_hosts(row.hosts, hosts_.size()).size());
    }
    std::string text =
        fmt::format("{:<{}}  verdict  {:<{}}  found\n", "check", check_width, "hosts", hosts_width);
    for (const DoctorRow& row : rows_) {
        text += fmt::format("{:<{}}  {:<7}  {:<{}}  {}\n", row.finding.check, check_width,
                            to_string(row.finding.verdict),
                            describe_hosts(row.hosts, hosts_.size()), hosts_width, whole_text(row));
        if (row.finding.verdict != Verdict::ok)
            text += fmt::format("{:{}}fix: {}\n", "", check_width + 2, row.finding.fix);
    }
    const int failed = count(Verdict::fail), warned = count(Verdict::warn);
    return text + fmt::format("{} failed, {} warning{}\n", failed, warned, warned == 1 ? "" : "s");
}

std::string DoctorReport::to_json() const {
    Json json;
    json["hosts"] = hosts_;
    json["failed"] = count(Verdict::fail);
    json["warned"] = count(Verdict::warn);
    json["checks"] = Json::array();
    for (const DoctorRow& row : rows_)
        json["checks"].push_back({{"check", row.finding.check},
                                  {"verdict", to_string(row.finding.verdict)},
                                  {"hosts", row.hosts},
                                  {"found", row.finding.found},
                                  {"ranges", row.ranges},
                                  {"fix", row.finding.fix}});
    return json.dump(2) + "\n";
}

}  // namespace ferry
