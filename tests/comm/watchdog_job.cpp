// A job for watchdog_job.sh: ranks exchange rows for ever until one is killed, stopped (frozen), or
// falls asleep. Survivors end as launch/ does: message, then World::abort(exit code).
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "base/log.h"
#include "comm/exchange.h"
#include "comm/progress_state.h"
#include "comm/watchdog.h"
#include "comm/world.h"
#include "tests/comm/exchange_reference.h"

int main(int argc, char** argv) {
    using namespace ferry;
    World world(&argc, &argv);
    init_log({});
    const char* how = argc > 1 ? argv[1] : "none";
    const int victim = world.size() - 1;
    try {
        Watchdog watchdog(world, {.heartbeat_s = 0.3,
                                  .dead_after_s = 3,
                                  .stall_timeout_s = 3,
                                  .report = {},
                                  .give_up = {}});
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
                if (std::strcmp(how, "kill") == 0) raise(SIGKILL);
                if (std::strcmp(how, "freeze") == 0) raise(SIGSTOP);
                if (std::strcmp(how, "sleep") == 0) sleep(60);
            }
            exchange->attention()->dispatch(0, 0, tokens.x_view(), tokens.routing());
            exchange->combine(0, 0, Tensor(out.data(), DType::f32, {8, 64}),
                              [](const ExpertBatch& batch) { return decode_rows(batch); });
            usleep(1000);
        }
    } catch (const Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        world.abort(exit_code(error.kind()));
    }
}
