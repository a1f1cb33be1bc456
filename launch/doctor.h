// `ferry doctor`: what checks of the ranks found, put together into one table.
#pragma once
#include <span>
#include <string>
#include <vector>

namespace ferry {

enum class Verdict { ok, warn, fail };
const char* to_string(Verdict verdict);

// A measured value, of which the table shows the range over all hosts and who is last.
struct Figure {
    std::string name;  // "write"
    double value = 0;
    std::string unit;  // "GB/s"; more is better
};

// What one check found on one rank.
struct Finding {
    std::string check;  // "memlock"
    Verdict verdict = Verdict::ok;
    std::string found;             // "64 KiB"
    std::string fix;               // what to do, when the verdict is not ok
    bool same_everywhere = false;  // hosts that differ in `found` are a warning of their own
    std::vector<Figure> figures = {};
};

// Findings as text, and back, to send them between ranks.
std::string encode(std::span<const Finding> findings);
std::vector<Finding> decode(const std::string& text);

struct RankFindings {
    std::string host;
    std::vector<Finding> findings;
};

// Equal findings of several ranks, figures aside.
struct DoctorRow {
    Finding finding;  // `figures` empty
    std::vector<std::string> hosts;
    std::vector<std::string> ranges;  // "write 0.4 .. 1.2 GB/s (lowest on node7)"
};

class DoctorReport {
  public:
    explicit DoctorReport(std::span<const RankFindings> ranks);

    const std::vector<DoctorRow>& rows() const { return rows_; }  // in order of the checks
    int count(Verdict verdict) const;                             // rows
    // Aligned columns; a fix below each row that needs one; the sum last.
    std::string to_text() const;
    // {"hosts": [], "failed": 0, "warned": 1, "checks": [{"check", "verdict", "hosts": [], "found",
    // "ranges": [], "fix"}]}
    std::string to_json() const;

  private:
    void mark_differences();

    std::vector<std::string> hosts_;
    std::vector<DoctorRow> rows_;
};

}  // namespace ferry
