// `ferry generate`: requests in, completions out.
#include <fmt/core.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>

#include "base/log.h"
#include "comm/watchdog.h"
#include "comm/world.h"
#include "launch/chat.h"
#include "launch/command_line.h"
#include "launch/commands.h"
#include "launch/end_job.h"
#include "launch/keeper.h"
#include "launch/load_progress.h"
#include "launch/progress.h"
#include "launch/result_sinks.h"
#include "launch/status_file.h"
#include "launch/text_output.h"
#include "launch/versions.h"
#include "runtime/checksum.h"
#include "runtime/json_text.h"
#include "runtime/loaded_engine.h"
#include "runtime/placements.h"
#include "runtime/routing_record.h"
#include "runtime/run_trace.h"
#include "runtime/stop_signal.h"

namespace ferry {
namespace {

struct Arguments {
    std::string config_file, model, input, output;
    std::vector<std::string> prompts, overrides;
    bool interactive = false;
};

// Nothing of a command line is dropped in silence.
void refuse_set(const Arguments& arguments, std::string_view keys, const std::string& option) {
    for (const std::string& assignment : arguments.overrides)
        if (assignment.starts_with(keys))
            throw Error(ErrorKind::usage, "--set {}: {} is given too; give one of them",
                        in_quotes(assignment), option);
}

Config make_config(const Arguments& arguments) {
    if (!arguments.prompts.empty()) refuse_set(arguments, "input.", "--prompt");
    if (!arguments.input.empty()) refuse_set(arguments, "input.", "--input " + arguments.input);
    if (!arguments.output.empty())
        refuse_set(arguments, "output.dir=", "--output " + arguments.output);
    if (arguments.interactive) refuse_set(arguments, "input.", "--interactive");
    Config config = load_config(arguments.config_file, arguments.overrides);
    if (!arguments.model.empty()) use_checkpoint(config, arguments.model, arguments.overrides);
    if (!arguments.output.empty()) config.output.dir = arguments.output;
    if (!arguments.prompts.empty() || !arguments.input.empty()) config.input = {};
    if (!arguments.prompts.empty()) config.input.prompt = arguments.prompts;
    if (!arguments.input.empty()) config.input.file = arguments.input;
    check_config(config, {}, "command line");
    return config;
}

void start_log(const Config& config) {
    init_log({.level = static_cast<LogLevel>(config.log.level), .file = config.log.file});
}

// What identifies the input, and how many requests it holds (0: not known).
struct InputSummary {
    int64_t num_requests = 0;
    std::string identity;
};

InputSummary summarize_input(const Config& config) {
    InputSummary summary;
    uint64_t sum = 0;
    if (can_be_read_once(config.input.file)) {
        if (!config.output.dir.empty())
            throw Error(ErrorKind::usage,
                        "input.file: {} cannot be read again by a run that resumes; write it to a "
                        "file, or leave output.dir out",
                        config.input.file == "-" ? "standard input" : config.input.file);
        return summary;
    }
    if (!config.input.file.empty()) {
        const TextSummary text = summarize_text(config.input.file);
        summary.num_requests = text.num_lines;
        sum = text.checksum;
    } else {
        summary.num_requests = static_cast<int64_t>(config.input.prompt.size());
        Checksum checksum;
        for (const std::string& prompt : config.input.prompt)
            checksum.add(prompt.data(), prompt.size() + 1);
        sum = checksum.value();
    }
    summary.num_requests *= config.sampling.n;
    summary.identity = fmt::format("input: {:016x}\n", sum);
    return summary;
}

std::unique_ptr<RequestReader> open_input(const Config& config, const OpenedModel& model) {
    if (!config.input.file.empty())
        return read_jsonl(config.input.file, config.sampling, model.prompt_encoder());
    return read_prompts(config.input.prompt, config.sampling, model.prompt_encoder());
}

void print_line(const Completion& completion, bool with_timings) {
    print_text(to_json(completion, with_timings) + "\n");
}

// For people: the prompt and what the model wrote after it.
void print_prompt_and_text(const Completion& completion, const std::string& prompt) {
    const bool bold = ::isatty(STDOUT_FILENO) != 0;
    std::string text = fmt::format("{}{}{}", bold ? "\033[1m" : "", prompt, bold ? "\033[0m" : "");
    text += completion.finish_reason == FinishReason::error ? "\n(failed: " + completion.error + ")"
                                                            : completion.text;
    print_text(text + "\n\n");
}

bool shows_progress(const Config& config) {
    return config.log.progress != Config::Log::Progress::off;
}

// What the watchdog knows of all ranks; a world of one rank has none.
using Totals = std::function<int64_t(Tally)>;

Totals totals_of(const Watchdog* watchdog) {
    if (watchdog == nullptr) return [](Tally tally) { return progress_state().get(tally); };
    return [watchdog](Tally tally) { return watchdog->total(tally); };
}

JobDescription describe_job(const Config& config, const OpenedModel& model, World& world,
                            int64_t num_requests, int64_t num_done_before) {
    const Layout layout = layout_of(config, world);
    return {.command = "generate",
            .model = model.name,
            .layout = layout_text(layout),
            .num_requests = num_requests,
            .num_done_before = num_done_before,
            .ranks = describe_ranks(layout, world)};
}

ProgressCounts counts_of(const Totals& total, int64_t done_before) {
    return {.done = done_before + total(Tally::done),
            .failed = total(Tally::failed),
            .running = total(Tally::running),
            .tokens = total(Tally::tokens)};
}

// What speculative decoding came to. Collective; `engine` is null on a rank without one.
void note_drafts(const Engine* engine, World& world) {
    const auto sum = [&](int64_t (Engine::*count)() const) {
        return world.all_sum(engine != nullptr ? (engine->*count)() : 0);
    };
    const int64_t tokens = sum(&Engine::num_generated_tokens), drafts = sum(&Engine::num_drafts);
    const int64_t right = sum(&Engine::num_accepted_drafts);
    if (world.rank() != 0 || tokens == 0) return;
    log_info(
        "engine.draft_tokens: {} drafts were computed, {} of them ({:.0f} %) were right: a "
        "request got {:.2f} tokens in a step",
        drafts, right,
        100 * static_cast<double>(right) / static_cast<double>(std::max<int64_t>(drafts, 1)),
        static_cast<double>(tokens) / static_cast<double>(tokens - right));
}

// Collective.
void write_trace(const RunTrace& run_trace, const Config& config, const Layout& layout,
                 World& world) {
    run_trace.write(world, layout, config.log.trace);
    const std::string table = run_trace.phase_table(world, layout);
    if (world.rank() == 0) log_info("{}: {}", config.log.trace, table);
}

// Collective.
void write_expert_load(const std::string& path, RankFabric& fabric, const ModelConfig& model,
                       World& world) {
    const ExpertLoad load = gather_expert_load(fabric, model, world);
    if (world.rank() != 0) return;
    write_text(path, to_json(load));
}

// Collective.
void write_routing(const std::string& path, RankFabric& fabric, const ModelConfig& model,
                   World& world) {
    const bool first = world.rank() == 0;
    std::string text =
        RoutingRecorder::first_line(model.n_routed_experts, model.n_activated_experts);
    for (int rank = 0; rank < world.size(); ++rank) {  // there may be gigabytes of it
        std::string lines =
            rank == world.rank() ? routing_recorder().lines(fabric.attention_rank()) : "";
        lines = world.broadcast(lines, rank);
        if (first) text += lines;
    }
    if (first) write_text(path, text);
    world.wait_quietly();  // however long writing took
}

// Runs this rank's share of the requests into `sink`, or serves experts. Collective.
LoopEnd run(const Config& config, OpenedModel& model, World& world, Watchdog* watchdog,
            int64_t num_requests, ResultSink& sink, ResultCounts& counts) {
    const bool shows = world.rank() == 0 && shows_progress(config);
    const Totals total = totals_of(watchdog);
    const int64_t done_before = counts.done;
    std::optional<JobSnapshot> last;  // heartbeats are a little behind
    StatusFile status(world.rank() == 0 ? config.output.dir : "",
                      describe_job(config, model, world, num_requests, done_before),
                      [&] { return last ? *last : take_snapshot(world.size(), watchdog); });
    LoadProgress load_progress(shows, total);
    LoadedEngine loaded(config, model, world, load_progress.callback());
    load_progress.finish(world, loaded);
    Progress progress({.enabled = shows,
                       .terminal = ::isatty(STDERR_FILENO) != 0,
                       .total = num_requests,
                       .done_before = done_before});
    const bool traced = !config.log.trace.empty();
    if (!config.log.routing.empty()) routing_recorder().start();
    std::optional<RunTrace> run_trace;
    if (traced) run_trace.emplace(world, true, &loaded.device());
    if (loaded.claims() != nullptr && num_requests > 0)
        loaded.claims()->expect(num_requests / config.sampling.n);  // rank 0 knows, and owns it
    if (watchdog != nullptr) watchdog->arm(true);
    LoopEnd end = LoopEnd::finished;
    if (loaded.engine() == nullptr) {
        loaded.serve_experts();
    } else {
        Engine& engine = *loaded.engine();
        const auto reader = open_input(config, model);
        const auto after_step = [&] {
            ProgressState& state = progress_state();
            state.set(Tally::done, counts.done - done_before);
            state.set(Tally::failed, counts.failed);
            note_engine(engine, state);
            status.update();
            if (shows) progress.update(counts_of(total, done_before));
        };
        const auto wait_for_input = [] {  // a pipe that has nothing to say
            ScopedZone zone(Zone::idle);
            progress_state().beat();
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        };
        const LoopHooks hooks{.stop_requested = stop_requested,
                              .after_step = after_step,
                              .wait_for_arrival = wait_for_input};
        end = loaded.claims() == nullptr
                  ? run_requests(engine, *reader, sink, hooks)
                  : run_claimed_requests(engine, *reader, sink, *loaded.claims(), hooks);
        loaded.close();
    }
    if (world.rank() == 0 && loaded.engine() != nullptr)
        if (const StepGraphs::Counts steps = loaded.engine()->step_counts(); steps.recorded > 0)
            log_info(
                "engine.cuda_graphs: {} decode steps were launched as a whole, {} of them had "
                "been recorded for it, {} were launched kernel by kernel",
                steps.recorded + steps.repeated, steps.recorded, steps.launched);
    if (run_trace) run_trace->finish();
    if (watchdog != nullptr) watchdog->arm(false);
    const auto sum = [&](Tally tally) { return world.all_sum(progress_state().get(tally)); };
    progress.finish(counts_of(sum, done_before));
    if (config.engine.draft_tokens > 0) note_drafts(loaded.engine(), world);
    last = gather_snapshot(world);
    status.finish(end == LoopEnd::stopped ? JobState::stopped : JobState::finished);
    if (run_trace) write_trace(*run_trace, config, loaded.fabric().layout(), world);
    if (!config.log.expert_load.empty())
        write_expert_load(config.log.expert_load, loaded.fabric(), model.source->config(), world);
    if (!config.log.routing.empty())
        write_routing(config.log.routing, loaded.fabric(), model.source->config(), world);
    return world.all_max(end == LoopEnd::stopped ? 1 : 0) > 0 ? LoopEnd::stopped
                                                              : LoopEnd::finished;
}

// A signal stopped all ranks.
[[noreturn]] void requeue(const Config& config, int64_t num_done) {
    const int signal = stop_signal();
    throw Error(ErrorKind::requeue, "{} after {} requests{}",
                signal == 0 ? "stopped" : ::strsignal(signal), num_done,
                config.output.dir.empty() ? "" : "; they are kept, run again to go on");
}

void generate_to_folder(const Config& config, OpenedModel& model, World& world,
                        Watchdog* watchdog) {
    const std::string& dir = config.output.dir;
    const bool first = world.rank() == 0;
    InputSummary input;
    std::string state;
    if (first) {
        input = summarize_input(config);
        state = prepare_output(dir, result_fields(config) + model.identity + input.identity) ==
                        OutputState::finished
                    ? "finished"
                    : "unfinished";
    }
    if (world.broadcast(state, 0) == "finished") {
        if (first) tell("{}/completions.jsonl is finished already, nothing to do\n", dir);
        return;
    }
    ResultCounts counts;
    std::optional<FolderSink> folder(
        std::in_place, dir, world.rank(),
        Journal::Options{.sync_interval_s = config.output.sync_interval_s,
                         .with_timings = config.output.timings},
        counts);
    world.barrier();  // nobody appends before everybody has read all parts
    int64_t num_done = counts.done;
    if (first && num_done > 0) log_info("{}: {} requests are done already", dir, num_done);
    ShowingSink showing(*folder, [&](const Completion& completion) {
        if (config.input.file.empty())
            print_prompt_and_text(completion,
                                  config.input.prompt[static_cast<size_t>(completion.index)]);
    });
    const LoopEnd end = run(config, model, world, watchdog, input.num_requests, showing, counts);
    num_done += world.all_sum(counts.done - num_done);
    folder->sync();
    if (!first) folder.reset();  // the first one's keeps other runs out until the end
    const int64_t num_failed = world.all_sum(counts.failed);  // also: every part is on the disk
    if (end == LoopEnd::stopped) requeue(config, num_done);
    int64_t num_lines = 0;
    try {
        if (first) num_lines = merge_output(dir, num_done);
    } catch (const Error& error) {
        throw Error(error.kind(), "{}; finished requests are kept, run again to go on",
                    error.what());
    }
    world.wait_quietly();  // however long merging took
    if (first)
        tell("{} completions{} in {}/completions.jsonl\n", num_lines,
             num_failed > 0 ? fmt::format(", {} of this run failed,", num_failed) : "", dir);
}

void generate_to_stdout(const Config& config, OpenedModel& model, World& world) {
    if (world.size() > 1)
        throw Error(ErrorKind::usage, "output.dir: {} ranks need a folder for their results",
                    world.size());
    ResultCounts counts;
    OrderedSink sink(
        [&](const Completion& completion) {
            if (config.input.file.empty())
                print_prompt_and_text(completion,
                                      config.input.prompt[static_cast<size_t>(completion.index)]);
            else
                print_line(completion, config.output.timings);
        },
        counts);
    const int64_t num_requests = summarize_input(config).num_requests;
    if (run(config, model, world, nullptr, num_requests, sink, counts) == LoopEnd::stopped)
        requeue(config, counts.done);
}

// A line of standard input that a signal can interrupt.
bool read_person(std::string& line, bool& interrupted) {
    line.clear();
    char c = 0;
    for (;;) {
        const ssize_t got = ::read(STDIN_FILENO, &c, 1);
        if (got < 0 && errno == EINTR) {
            interrupted = stop_signal() == SIGINT;
            if (!interrupted) return false;
            clear_stop_signal();
            return true;
        }
        if (got <= 0) return !line.empty();
        if (c == '\n') return true;
        line += c;
    }
}

void talk(const Config& config, OpenedModel& model, World& world) {
    if (world.size() > 1)
        throw Error(ErrorKind::usage, "--interactive: runs on one rank, the launcher started {}",
                    world.size());
    if (!model.tokenizer)
        throw Error(ErrorKind::usage, "{}: has no tokenizer, and a person writes text", model.name);
    LoadProgress load_progress(shows_progress(config), totals_of(nullptr));
    LoadedEngine loaded(config, model, world, load_progress.callback());
    load_progress.finish(world, loaded);
    Engine& engine = *loaded.engine();
    int64_t num_asked = 0;

    ChatModel chat_model;
    if (model.chat_template)
        chat_model.render = [&](const std::vector<ChatMessage>& messages) {
            return model.chat_template->render(messages);
        };
    chat_model.answer = [&](const std::string& prompt, bool raw,
                            const std::function<void(std::string_view)>& show) {
        Request request;
        request.index = num_asked++;
        request.id = {std::to_string(num_asked), true};
        request.prompt_tokens = model.tokenizer->encode(prompt, !raw);
        request.sampling = config.sampling;
        request.sampling.n = 1;
        std::string answer;
        engine.set_token_callback([&](const Request&, int32_t, std::string_view text) {
            answer += text;
            show(text);
        });
        engine.submit(std::move(request));
        while (engine.step() && stop_signal() == 0) continue;
        engine.cancel_all();
        if (stop_signal() == SIGINT) clear_stop_signal();
        for (const Completion& completion : engine.take_finished())
            if (completion.finish_reason == FinishReason::error)
                throw Error(ErrorKind::input, completion.error);
        return answer;
    };
    chat({.read_line = read_person, .write = print_text}, chat_model);
    if (stop_requested()) throw Error(ErrorKind::requeue, "{}", ::strsignal(stop_signal()));
}

// What every rank must agree on before anything is loaded.
void check_world(const Config& config, World& world) {
    check_same_everywhere(world, "build", describe_versions());
    check_same_everywhere(world, "executable", build_id());
    check_same_everywhere(world, "configuration", effective_yaml(config));
    layout_of(config, world);  // throws when it does not fit
    const std::string warning =
        oversubscription_warning(world, threads_of(config, world.own_cores()));
    if (world.rank() == 0 && !warning.empty()) log_warn("{}", warning);
}

void generate_on(const Arguments& arguments, World& world) {
    if (arguments.interactive &&
        !(arguments.prompts.empty() && arguments.input.empty() && arguments.output.empty()))
        throw Error(ErrorKind::usage,
                    "--interactive: reads and writes here; leave --prompt, --input and --output "
                    "out");
    const Config config = with_launcher_layout(make_config(arguments));
    start_log(config);
    if (world.size() > 1) set_log_rank(world.rank(), world.host());
    if (!arguments.interactive && config.input.file.empty() && config.input.prompt.empty())
        throw Error(ErrorKind::usage,
                    "nothing to do: set input.file or input.prompt, or give --prompt, --input or "
                    "--interactive");
    check_supported(config);
    check_world(config, world);
    if (world.rank() == 0)
        for (const std::string& path :
             {config.log.trace, config.log.expert_load, config.log.routing})
            check_writable(path);
    std::optional<Watchdog> watchdog;
    if (world.size() > 1) {
        WatchdogOptions options;
        options.stall_timeout_s = config.engine.patience_s();
        watchdog.emplace(world, options);
    }
    OpenedModel model = open_model(config);
    if (world.rank() == 0)
        for (const std::string& warning : model.warnings) log_warn("{}", warning);
    if (arguments.interactive)
        talk(config, model, world);
    else if (!config.output.dir.empty())
        generate_to_folder(config, model, world, watchdog ? &*watchdog : nullptr);
    else
        generate_to_stdout(config, model, world);
}

void generate(const Arguments& arguments) {
    go_on_under_keeper();
    install_stop_signals();
    bool stopped = false;
    {
        World world = start_world();
        try {
            generate_on(arguments, world);
        } catch (const Error& error) {
            if (world.size() == 1) throw;
            if (error.kind() != ErrorKind::requeue) end_job(world, error);
            stopped = true;
            tell_stop(world, error);
        }
    }
    if (stopped) std::exit(exit_code(ErrorKind::requeue));
}

}  // namespace

void add_generate(Command& app) {
    Command command = app.add_command("generate", "Generate text for requests");
    const auto arguments = std::make_shared<Arguments>();
    command.option("CONFIG", arguments->config_file, "YAML (see ferry config --help)");
    command.option("--model", arguments->model, "Checkpoint, instead of the file's model");
    command.option("--prompt", arguments->prompts, "Text to continue; may be repeated")
        .one_each_time();
    command.option("--input", arguments->input, "JSONL with one request in each line; - : stdin");
    command.option("--output", arguments->output, "Folder for completions.jsonl");
    command.option("--set", arguments->overrides, "section.key=value, after the file")
        .one_each_time();
    command.flag("--interactive", arguments->interactive, "Talk to the model");
    command.on_run([arguments] { generate(*arguments); });
}

}  // namespace ferry
