// The sections of a report, each from the results that it needs. One that finds none says so in
// `absent`.
#pragma once
#include "runtime/report/document.h"
#include "runtime/report/results.h"

namespace ferry::report {

// All of them, in order.
Document make_document(const Results& results, const std::string& title);

Section overview_section(const Results& results);
Section runs_section(const Results& results);
Section throughput_section(const Results& results);
Section latency_section(const Results& results);
Section scaling_section(const Results& results);
Section frontier_section(const Results& results);
Section phases_section(const Results& results);
Section expert_load_section(const Results& results);
Section wait_section(const Results& results);
Section exchange_section(const Results& results);
Section layer_section(const Results& results);
Section loading_section(const Results& results);
Section timeline_section(const Results& results);
Section comparison_section(const Results& results);

// For .cpp files of sections.

// Results of ferry bench scaling: a part of scaling_section.
void add_scaling_results(const Results& results, Section& section);

// "exchange-a: " when a report has several results of the benchmark, else empty.
std::string prefix_of(const BenchResult& bench, const Results& results);
// Rows of throughput and scaling results that were not skipped.
struct NamedRow {
    const BenchResult* bench;
    Row row;
    std::string name;  // prefix and case
};
std::vector<NamedRow> measured_rows(const Results& results);
// False when the row's own checks failed: it is shown, but is the best of nothing.
bool counts(const Row& row);
// A column per entry of `columns` that any row has: {key, name, unit, scale}.
struct Field {
    const char* key;
    const char* name;
    const char* unit;
    double scale = 1;
    int digits = 4;
};
Table table_of(const std::vector<NamedRow>& rows, const std::string& first_column,
               const std::vector<Field>& fields);

}  // namespace ferry::report
