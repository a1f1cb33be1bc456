// trace_check FILE: exit code 0 when the trace keeps all rules of trace_check.h.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "tests/support/trace_check.h"

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    std::ifstream file(argv[1], std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const ferry::testing::TraceCheck check = ferry::testing::check_trace(text);
    for (const std::string& problem : check.problems) std::printf("%s\n", problem.c_str());
    std::printf("%d ranks, %d spans, %d flows, %d counters, %zu problems\n", check.num_ranks,
                check.num_spans, check.num_flows, check.num_counters, check.problems.size());
    return check.problems.empty() ? 0 : 1;
}
