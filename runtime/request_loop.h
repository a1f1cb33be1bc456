// [16] From requests to results on one rank: the engine takes requests as it has room, and every
// finished one goes to the sink.
#pragma once
#include <cstdint>
#include <functional>

#include "base/log.h"
#include "base/trace.h"
#include "comm/progress_state.h"
#include "runtime/request_reader.h"

namespace ferry {

// Where results go.
class ResultSink {
  public:
    virtual ~ResultSink() = default;
    // There already, from an earlier run.
    virtual bool is_done(int64_t index, int64_t sample) const = 0;
    // A line was read that gives so many results, some of which may be done. In input order.
    virtual void expect(int64_t index, int64_t num_results) { (void)index, (void)num_results; }
    // Once for each request, in order of finishing.
    virtual void accept(Completion completion) = 0;
    // Between steps.
    virtual void tick() {}
};

enum class LoopEnd { finished, stopped };

struct LoopHooks {
    // Asked between steps: true ends the loop after flushing what is finished; requests that are
    // running are dropped, to be done again by a later run.
    std::function<bool()> stop_requested = [] { return false; };
    std::function<void()> after_step = [] {};
    // Called instead of a step when there is nothing to do until the reader is ready.
    std::function<void()> wait_for_arrival = [] {};
};

// Takes one line of the input into the engine.
template <typename Engine>
void take_line(Engine& engine, RequestLine& line, ResultSink& sink) {
    sink.expect(line.index, line.failed ? 1 : static_cast<int64_t>(line.requests.size()));
    if (line.failed && !sink.is_done(line.index, 0)) sink.accept(std::move(*line.failed));
    for (Request& request : line.requests)
        if (!sink.is_done(request.index, request.sample)) engine.submit(std::move(request));
}

// What a step left behind.
template <typename Engine>
void give_out(Engine& engine, ResultSink& sink, const LoopHooks& hooks) {
    ScopedZone zone(Zone::output);
    for (Completion& completion : engine.take_finished()) {
        if (completion.finish_reason == FinishReason::error) log_error("{}", completion.error);
        sink.accept(std::move(completion));
    }
    sink.tick();
    hooks.after_step();
    progress_state().publish(trace());
}

// `Engine` is runtime/engine.h's, or a test's with the same submit, room_left, step, take_finished
// and num_unfinished. `reader` gives lines in order; each is parsed when there is room for it.
template <typename Engine>
LoopEnd run_requests(Engine& engine, RequestReader& reader, ResultSink& sink,
                     const LoopHooks& hooks) {
    bool more_lines = true;
    RequestLine line;
    while (more_lines || engine.num_unfinished() > 0) {
        ScopedZone step(Zone::step);
        if (hooks.stop_requested()) return LoopEnd::stopped;
        bool took_lines = false;  // of which all may be refused, to be given out
        while (more_lines && engine.room_left() > 0 && reader.ready()) {
            ScopedZone zone(Zone::schedule);
            line = {};
            more_lines = reader.next(line);
            if (!more_lines) break;
            took_lines = true;
            take_line(engine, line, sink);
            if (hooks.stop_requested()) return LoopEnd::stopped;
        }
        if (more_lines && !took_lines && engine.num_unfinished() == 0 && !reader.ready()) {
            hooks.wait_for_arrival();
            continue;
        }
        engine.step();
        give_out(engine, sink, hooks);
    }
    return LoopEnd::finished;
}

// The same on each of several attention ranks: lines are claimed from a counter that all share, as
// there is room; every rank passes over the lines of others. All ranks step together until none has
// work. `Claims` is comm/shared_counter.h's SharedCounter.
template <typename Engine, typename Claims>
LoopEnd run_claimed_requests(Engine& engine, RequestReader& reader, ResultSink& sink,
                             Claims& claims, const LoopHooks& hooks) {
    bool more_lines = true, stopped = false, more_steps = true;
    int64_t num_claimed = 0;  // of the reader's next lines, which may not have arrived
    int64_t num_read = 0;
    RequestLine line;
    while (more_steps || claims.requested()) {
        ScopedZone step(Zone::step);
        if (hooks.stop_requested()) engine.announce_stop();
        if (!stopped && (hooks.stop_requested() || engine.stop_announced())) {
            stopped = true;
            more_lines = false;
            engine.cancel_all();
        }
        {
            ScopedZone zone(Zone::schedule);
            // Lines still to come go to whoever has room when they do.
            if (more_lines && num_claimed == 0 && !claims.requested() && engine.room_left() > 0)
                claims.request(reader.all_ready() ? engine.room_left() : 1);
            if (const auto claim = claims.poll(); claim && more_lines) {
                for (; more_lines && num_read < claim->begin; ++num_read)
                    more_lines = reader.skip();
                num_claimed = claim->count;
                if (num_claimed == 0) more_lines = false;
            }
            while (more_lines && num_claimed > 0 && engine.room_left() > 0 && reader.ready()) {
                line = {};
                more_lines = reader.next(line);
                ++num_read;
                --num_claimed;
                if (more_lines) take_line(engine, line, sink);
            }
        }
        more_steps = engine.step(more_lines || claims.requested());
        give_out(engine, sink, hooks);
    }
    return stopped ? LoopEnd::stopped : LoopEnd::finished;
}

}  // namespace ferry
