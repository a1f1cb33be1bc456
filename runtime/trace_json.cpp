#include "runtime/trace_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace ferry {
namespace {

constexpr int64_t kRateWindowNs = 20'000'000;  // of tokens per second
constexpr int kMaxPairs = 64;  // of ranks with an arrow for each; beyond: one expert rank in turn
constexpr int kGpuTrack = 1 + kMaxMicroBatches;

class Writer {
  public:
    explicit Writer(const RankTrace& trace) : trace_(trace) {}

    std::string write() {
        name_tracks();
        spans(trace_.events, 0);
        if (!trace_.gpu_events.empty()) {
            name_track(kGpuTrack, "GPU stream");
            spans(trace_.gpu_events, kGpuTrack);
        }
        in_flight();
        arrows();
        counters();
        return std::move(text_);
    }

  private:
    template <typename... Args>
    void event(fmt::format_string<Args...> format, Args&&... args) {
        if (!text_.empty()) text_ += ",\n";
        fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    }
    double us(int64_t ns) const { return trace_.to_us(ns); }

    void name_tracks() {
        event(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":"{}"}}}})", trace_.rank,
              trace_.name);
        event(R"({{"ph":"M","name":"process_sort_index","pid":{0},"args":{{"sort_index":{0}}}}})",
              trace_.rank);
        name_track(0, "compute");
    }
    void name_track(int track, const std::string& name) {
        event(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":"{}"}}}})",
              trace_.rank, track, name);
    }

    void spans(std::span<const TraceEvent> events, int track) {
        for (const TraceEvent& span : events)
            if (span.begin_ns >= trace_.begin_ns)
                event(R"({{"ph":"X","name":"{}","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},)"
                      R"("args":{{"layer":{},"micro_batch":{},"bytes":{}}}}})",
                      to_string(span.zone), trace_.rank, track, us(span.begin_ns),
                      us(span.end_ns) - us(span.begin_ns), span.layer, span.micro_batch,
                      span.bytes);
    }

    // From the end of a dispatch until its replies are taken: what computing may hide.
    void in_flight() {
        std::array<const TraceMark*, kMaxMicroBatches> sent{};
        std::array<bool, kMaxMicroBatches> named{};
        for (const TraceMark& mark : trace_.marks) {
            const TraceMark*& begun = sent.at(static_cast<size_t>(mark.micro_batch));
            if (mark.at_ns < trace_.begin_ns) continue;
            if (mark.station == Station::dispatched) begun = &mark;
            if (mark.station != Station::combine || begun == nullptr) continue;
            bool& is_named = named.at(static_cast<size_t>(mark.micro_batch));
            if (!is_named)
                name_track(1 + mark.micro_batch,
                           fmt::format("in flight, micro-batch {}", mark.micro_batch));
            is_named = true;
            event(R"({{"ph":"X","name":"exchange","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},)"
                  R"("args":{{"layer":{},"micro_batch":{},"sequence":{}}}}})",
                  trace_.rank, 1 + mark.micro_batch, us(begun->at_ns),
                  us(mark.at_ns) - us(begun->at_ns), mark.layer, mark.micro_batch, mark.sequence);
            begun = nullptr;
        }
    }

    bool has_arrow(int attention, int expert, uint32_t sequence) const {
        if (trace_.num_attention * trace_.num_expert <= kMaxPairs) return true;
        return (static_cast<uint32_t>(attention) + sequence) %
                   static_cast<uint32_t>(trace_.num_expert) ==
               static_cast<uint32_t>(expert);
    }
    void arrow(char phase, int attention, int expert, const TraceMark& mark) {
        if (!has_arrow(attention, expert, mark.sequence)) return;
        const int64_t pair =
            (int64_t{attention} * trace_.num_expert + expert) * kMaxMicroBatches + mark.micro_batch;
        event(R"({{"ph":"{}","name":"rows","cat":"exchange","pid":{},"tid":0,"ts":{:.3f},)"
              R"("id":{}{}}})",
              phase, trace_.rank, us(mark.at_ns), (pair << 28) + mark.sequence,
              phase == 's' ? "" : R"(,"bp":"e")");
    }
    void arrows() {
        for (const TraceMark& mark : trace_.marks) {
            const auto m = static_cast<size_t>(mark.micro_batch);
            if (mark.at_ns < trace_.begin_ns || mark.sequence < trace_.whole.first.at(m) ||
                mark.sequence > trace_.whole.last.at(m))
                continue;
            if (mark.station == Station::dispatch || mark.station == Station::combine)
                for (int expert = 0; expert < trace_.num_expert; ++expert)
                    arrow(mark.station == Station::dispatch ? 's' : 'f', trace_.attention_rank,
                          expert, mark);
            if (mark.station == Station::received)
                for (int attention = 0; attention < trace_.num_attention; ++attention)
                    arrow('t', attention, trace_.expert_rank, mark);
        }
    }

    void counters() {
        int32_t running = -1;
        const CounterSample* window = nullptr;
        for (const CounterSample& sample : trace_.samples) {
            if (sample.at_ns < trace_.begin_ns) continue;
            if (sample.running != running)
                event(R"({{"ph":"C","name":"running requests","pid":{},"ts":{:.3f},)"
                      R"("args":{{"requests":{}}}}})",
                      trace_.rank, us(sample.at_ns), sample.running);
            running = sample.running;
            if (window == nullptr) window = &sample;
            const int64_t passed_ns = sample.at_ns - window->at_ns;
            if (passed_ns < kRateWindowNs) continue;
            event(R"({{"ph":"C","name":"output tokens/s","pid":{},"ts":{:.3f},)"
                  R"("args":{{"tokens/s":{:.1f}}}}})",
                  trace_.rank, us(sample.at_ns),
                  static_cast<double>(sample.tokens - window->tokens) * 1e9 /
                      static_cast<double>(passed_ns));
            window = &sample;
        }
    }

    const RankTrace& trace_;
    std::string text_;
};

}  // namespace

WholeExchanges whole_exchanges(std::span<const TraceMark> marks, bool is_attention, bool is_expert,
                               int64_t begin_ns, int64_t end_ns) {
    // By station: the first and the last sequence number of each micro-batch.
    constexpr int64_t kNone = int64_t{1} << 40;
    const auto range = [&](Station station, WholeExchanges& whole) {
        std::array<int64_t, kMaxMicroBatches> first{}, last{};
        first.fill(kNone);
        last.fill(-kNone);
        for (const TraceMark& mark : marks) {
            if (mark.station != station || mark.at_ns < begin_ns || mark.at_ns > end_ns) continue;
            const auto m = static_cast<size_t>(mark.micro_batch);
            first.at(m) = std::min<int64_t>(first.at(m), mark.sequence);
            last.at(m) = std::max<int64_t>(last.at(m), mark.sequence);
        }
        for (size_t m = 0; m < first.size(); ++m) {
            whole.first[m] = std::max(whole.first[m], first[m]);
            whole.last[m] = std::min(whole.last[m], last[m]);
        }
    };
    WholeExchanges whole;
    whole.first.fill(0);
    whole.last.fill(kNone);
    if (is_attention) {
        range(Station::dispatch, whole);
        range(Station::combine, whole);
    }
    if (is_expert) {
        range(Station::received, whole);
        range(Station::replied, whole);
    }
    return whole;
}

std::string trace_events_json(const RankTrace& trace) {
    return Writer(trace).write();
}

}  // namespace ferry
