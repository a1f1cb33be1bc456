// A job for watchdog_job.sh: ranks exchange rows for ever until one is killed, stopped (frozen), or
// falls asleep; or one is frozen before there is a watchdog. Survivors end as launch/ does:
// message, then World::abort(exit code).
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "base/error.h"
#include "base/log.h"
#include "comm/exchange.h"
#include "comm/launcher.h"
#include "comm/progress_state.h"
#include "comm/watchdog.h"
#include "comm/world.h"
#include "tests/comm/exchange_reference.h"

namespace {

using namespace ferry;

void work(World& world, const std::string& how) {
    const int victim = world.size() - 1;
    Watchdog watchdog(
        world,
        {.heartbeat_s = 0.3, .dead_after_s = 3, .stall_timeout_s = 3, .report = {}, .give_up = {}});
    ExchangeSetup setup{
        .options = {.dim = 64, .topk = 2, .max_tokens = 8, .stall_timeout_s = 30},
        .layout = make_layout({.mode = LayoutMode::colocated}, world.node_of_rank()),
        .placements = {contiguous_placement(8, world.size())}};
    const auto transport = make_transport("auto", world, nullptr);
    const auto exchange = make_exchange(setup, *transport, nullptr);
    watchdog.arm(true);
    const Tokens tokens = make_tokens(1, 8, 64, 2, 8, false);
    std::vector<float> out(tokens.x.size());
    for (int step = 0; step < 100000000; ++step) {
        progress_state().step = step;
        if (step == 200 && world.rank() == victim) {
            if (how == "kill") raise(SIGKILL);
            if (how == "freeze") raise(SIGSTOP);
            if (how == "sleep") sleep(60);
        }
        exchange->attention()->dispatch(0, 0, tokens.x_view(), tokens.routing());
        exchange->combine(0, 0, Tensor(out.data(), DType::f32, {8, 64}),
                          [](const ExpertBatch& batch) { return decode_rows(batch); });
        usleep(1000);
    }
}

int report(const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return exit_code(error.kind());
}

}  // namespace

int main(int argc, char** argv) {
    init_log({});
    const std::string how = argc > 1 ? argv[1] : "none";
    const auto freeze_last = [&] {
        if (how == "freeze_starting" &&
            launcher_rank(own_environment) == launcher_tasks(own_environment) - 1)
            raise(SIGSTOP);
    };
    try {
        World world(&argc, &argv, freeze_last);
        if (how == "freeze_first_met" && world.rank() == 0) raise(SIGSTOP);
        if (how == "freeze_ending") {
            world.set_deadline(3, "at the end");
            if (world.rank() == 1) raise(SIGSTOP);
            return 0;
        }
        try {
            work(world, how);
        } catch (const Error& error) {
            world.abort(report(error));
        }
    } catch (const Error& error) {
        return report(error);
    }
}
