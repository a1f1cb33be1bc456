#include "launch/bench_report.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace ferry {
namespace {

BenchReport example() {
    BenchReport report("layer",
                       {{.key = "stage", .heading = "stage"},
                        {.key = "layers", .heading = "layers"},
                        {.key = "of_peak", .heading = "%", .num_digits = 1, .scale = 100}});
    report.add_parameter("threads", int64_t{2});
    report.add_row({"gate, first", int64_t{7}, 0.25});
    report.add_row({"head", int64_t{10}, 0.0});
    return report;
}

TEST(BenchReport, TextIsAligned) {
    EXPECT_EQ(example().to_text(),
              "# threads: 2\n"
              "stage        layers     %\n"
              "gate, first       7  25.0\n"
              "\n"
              "head             10     -\n");
}

TEST(BenchReport, WholeNumbersAreScaledToo) {
    BenchReport report("load", {{.key = "bytes", .heading = "MB", .num_digits = 1, .scale = 1e-6}});
    report.add_row({int64_t{12'119'936}});
    EXPECT_EQ(report.to_text(), "  MB\n12.1\n");
}

TEST(BenchReport, JsonAndCsvHoldTheValues) {
    EXPECT_EQ(example().to_csv(),
              "# benchmark: layer\n# threads: 2\nstage,layers,of_peak\n\"gate, first\",7,0.25\n"
              "head,10,0\n");
    EXPECT_EQ(example().to_json(), R"({
  "benchmark": "layer",
  "parameters": {
    "threads": 2
  },
  "rows": [
    {
      "stage": "gate, first",
      "layers": 7,
      "of_peak": 0.25
    },
    {
      "stage": "head",
      "layers": 10,
      "of_peak": 0.0
    }
  ]
}
)");
}

// As file names have them.
TEST(BenchReport, TextThatIsNoUtf8EndsNothing) {
    BenchReport report("layer", {{.key = "stage", .heading = "stage"}});
    report.add_parameter("model", "mod\xE8le");
    report.add_row({"gate"});
    EXPECT_NE(report.to_json().find("\"model\": \"mod\xEF\xBF\xBDle\""), std::string::npos);
}

TEST(BenchReport, PublishWritesFiles) {
    const testing::TempDir dir;
    example().publish(dir / "a.json", dir / "a.csv");
    EXPECT_EQ(testing::read_file(dir / "a.json"), example().to_json());
    EXPECT_EQ(testing::read_file(dir / "a.csv"), example().to_csv());
    EXPECT_ERROR(example().publish(dir / "no/a.json", ""), ErrorKind::input, "no/a.json");
}

}  // namespace
}  // namespace ferry
