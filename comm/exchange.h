// [7] Dispatch and combine: rows travel from attention ranks to the ranks of their experts, expert
// outputs travel back and are summed by gate weight (DESIGN 4.2).
//
// Per MoE layer and micro-batch:   attention rank                     expert rank
//                                  dispatch(...)        ─────────▶    try_receive() / receive()
//                                  combine_ready(...)                 ... experts ...
//                                  combine(...)         ◀─────────    reply(...)
// Every attention rank takes part in every exchange, with zero tokens if it has none. Results never
// depend on arrival order, and with CombineMode::exact not on the layout either:
//   out = w_0 y_0, then out = out + w_k y_k for k = 1, 2, ... (a rounded product, then a rounded
//   sum: no fma), y_k rounded to combine_dtype(options) also when it does not leave its rank.
// Time is reported in zones pack (dispatch, and ordering received rows), dispatch_wait, reply,
// combine_wait and combine (base/trace.h); callers add none of these.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"
#include "comm/layout.h"
#include "comm/routing.h"
#include "comm/transport.h"
#include "comm/wire_rows.h"

namespace ferry {

// bounded: header and rows in one message that fits a slot registered at start; sized: a header
// first, then exactly the rows; automatic: per message, bounded where it fits.
enum class ExchangeMode : uint8_t { automatic, bounded, sized };

// exact: one row per (token, expert) comes back. reduced: an expert rank sums its experts' rows of
// a token in slot order first, by gate weight in f32; partial sums are added by expert rank: fewer
// bytes, the same bits for one layout and placement only.
enum class CombineMode : uint8_t { exact, reduced };

struct ExchangeOptions {
    int64_t dim = 0;
    int64_t topk = 1;
    // Tokens of one attention rank in one micro-batch: at most, and those that a bounded slot holds
    // in the worst case (all of them to one rank). bounded_tokens <= max_tokens; 0: max_tokens in
    // bounded mode, 256 or max_tokens in automatic.
    int64_t max_tokens = 0;
    int64_t bounded_tokens = 0;
    int num_micro_batches = 1;  // in flight, 1 ... kMaxMicroBatches
    DType dtype = DType::bf16;  // of rows on the wire: f32, bf16, fp8_e4m3
    bool f32_replies = false;   // rows come back in f32, whatever they went in
    ExchangeMode mode = ExchangeMode::automatic;
    CombineMode combine = CombineMode::exact;
    double stall_timeout_s = 60;
};
constexpr int kMaxMicroBatches = 4;

// Of rows on their way back: f32 for f32; otherwise bf16 for bf16 and for fp8 (as DeepSeek's own:
// fp8 out, bf16 back).
constexpr DType combine_dtype(const ExchangeOptions& options) {
    return options.dtype == DType::f32 || options.f32_replies ? DType::f32 : DType::bf16;
}

// A small message that rides on every exchange at no cost: expert ranks combine what all attention
// ranks said and tell all of them the same. Lets attention ranks agree whether another step follows
// without a collective.
struct Agreement {
    uint32_t any = 0;  // bit-wise or over attention ranks
    uint32_t max = 0;  // maximum over attention ranks
};

class AttentionSide {
  public:
    virtual ~AttentionSide() = default;

    // Sends rows to their experts and returns; x and routing may change afterwards. x: [tokens,
    // dim] f32. routing: [tokens, topk]. `say`: what this rank contributes to the agreement. Must
    // not be called again for a micro-batch before its combine(). Throws Error(usage) when bounded
    // mode cannot hold the tokens.
    virtual void dispatch(int layer, int micro_batch, const Tensor& x, const Routing& routing,
                          Agreement say = {}) = 0;
    // All replies are here; moves messages, never blocks.
    virtual bool combine_ready(int micro_batch) = 0;
    // Waits for the replies; out [tokens, dim] f32 is overwritten. Returns what all agreed. On a
    // colocated rank, whose own experts must answer too, call it once combine_ready() is true and
    // serve the expert side until then (or use Exchange::combine).
    virtual Agreement combine(int layer, int micro_batch, const Tensor& out) = 0;
    // Steps whose work a GPU records and repeats (Exchange::max_repeated_tokens), so that nothing
    // which differs between them may be said to dispatch(). Around the dispatches and combines of
    // all layers and micro-batches of one: what dispatch() would be told, and how many leading rows
    // of each micro-batch take part; others come back as zeros. In between `say` is not looked at,
    // and combine() returns at once and nothing. Where several ranks take part, all of them begin
    // it with the same `max_tokens`, the most rows that any micro-batch has anywhere, and do the
    // same as to launching, recording and repeating (expert ranks:
    // ExpertSide::begin_repeated_step).
    virtual void begin_repeated_step(Agreement say, std::span<const int64_t> num_tokens,
                                     int64_t max_tokens);
    // Waits for the step, whether its work was launched, or what was recorded of another.
    virtual Agreement end_repeated_step();
    // No more dispatches: expert ranks' receive() then returns null. All micro-batches combined.
    virtual void close() = 0;
};

// The rows of one (layer, micro-batch), in order of (local expert, attention rank, token).
struct ExpertBatch {
    int layer = 0;
    int micro_batch = 0;
    // n rows as they arrived, n may be 0; valid until reply(). Empty in an exchange of GPUs.
    WireRows received{};
    // [n, dim] f32, the exchange's own memory until reply(): for decode_rows() or for outputs. In
    // an exchange of GPUs the rows themselves.
    Tensor rows;
    // Rows [offsets[s], offsets[s + 1]) belong to slot s of this rank's Placement::experts().
    std::span<const int64_t> offsets;
    // Set instead of `offsets`, and in the memory of a GPU, by an exchange that leaves the counts
    // there (exchange_device.h); rows is then as large as it can become.
    std::span<const int64_t> device_offsets{};
    // By attention rank: when its last byte was seen (trace_now_ns()).
    std::span<const int64_t> arrived_ns{};
    Agreement agreed{};
};

// The rows as f32, in batch.rows. `threads` may be null.
const Tensor& decode_rows(const ExpertBatch& batch, ThreadPool* threads = nullptr);

class ExpertSide {
  public:
    virtual ~ExpertSide() = default;

    // One batch at a time: reply() comes before the next receive. Returns null when no batch is
    // complete; `closed()` tells whether any may still come. Never blocks. Batches come in order of
    // readiness (per micro-batch in order of layers), which results cannot depend on.
    virtual const ExpertBatch* try_receive() = 0;
    // Waits; null when every attention rank has closed.
    virtual const ExpertBatch* receive() = 0;
    virtual bool closed() const = 0;
    // Around all batches of a step that attention ranks begin so. In between receive() returns at
    // once, never null.
    virtual void begin_repeated_step(int64_t max_tokens);
    // Waits for the step; what the attention ranks agreed in it.
    virtual Agreement end_repeated_step();
    // y: [n, dim] f32, row i is the output for row i of the batch. May be the batch's rows,
    // computed in place. y may change afterwards.
    virtual void reply(const Tensor& y) = 0;
    // After closed(): dispatches may come again. Attention ranks dispatch only once they know that
    // every expert rank has reopened (a barrier of the caller).
    virtual void reopen() = 0;
};

// How long exchanges took that this attention rank began.
struct ExchangeTimes {
    int64_t num = 0;
    int64_t in_flight_ns = 0;  // from the end of dispatch() until all replies were seen to be here
};

// What the rank's role needs. Rows received so far, for `log.expert_load`.
class Exchange {
  public:
    virtual ~Exchange() = default;
    virtual AttentionSide* attention() = 0;  // null on a rank that is expert only
    virtual ExpertSide* experts() = 0;       // null on a rank that is attention only

    // Rows that a micro-batch of a step may have whose work a GPU records and repeats (StepGraphs
    // of layers/kernels.h), the same on all ranks; 0: there are no such steps, the host has a hand
    // in every exchange.
    virtual int64_t max_repeated_tokens() const { return 0; }
    // Rows that each slot of this rank received in `layer` since the start (log.expert_load).
    virtual std::span<const int64_t> expert_load(int layer) const = 0;
    // Since the start; zero on a rank that is expert only.
    virtual ExchangeTimes times() const = 0;

    // Waits until replies of the micro-batch are here and combines, serving this rank's own experts
    // meanwhile: serve(batch) computes and returns y (see reply()). Ranks without the expert role
    // never call it.
    template <typename Serve>
    Agreement combine(int layer, int micro_batch, const Tensor& out, Serve&& serve) {
        if (experts() != nullptr) serve_until_ready(layer, micro_batch, serve);
        return attention()->combine(layer, micro_batch, out);
    }

    // For combine() above.
    virtual void begin_wait(int layer, int micro_batch) = 0;
    // Between these two: yields, keeps the deadline, throws Error(communication).
    virtual void wait_a_little(int micro_batch) = 0;
    virtual void end_wait() = 0;

  private:
    // Looking for messages counts as waiting: on a busy machine the look itself may take a while.
    template <typename Serve>
    void serve_until_ready(int layer, int micro_batch, Serve&& serve) {
        begin_wait(layer, micro_batch);
        while (!attention()->combine_ready(micro_batch)) {
            if (const ExpertBatch* batch = experts()->try_receive()) {
                end_wait();
                experts()->reply(serve(*batch));
                begin_wait(layer, micro_batch);
            } else {
                wait_a_little(micro_batch);
            }
        }
        end_wait();
    }
};

struct ExchangeSetup {
    ExchangeOptions options{};
    Layout layout{};
    // MoE layers: dispatch() takes layers [first_layer, first_layer + num_layers). placements: one
    // for all, or one per layer; slots per rank may differ between layers.
    int first_layer = 0;
    int num_layers = 1;
    // Behind those of each step so many exchanges of one layer more, with the next number (drafts).
    // Between GPUs each step has them; what ranks agree on comes with the layers before.
    int num_rounds = 0;
    std::vector<Placement> placements{};

    int num_blocks() const { return num_layers + (num_rounds > 0 ? 1 : 0); }
};

// Collective over all ranks of the transport: opens lanes and connects. Keeps a reference to the
// transport; `threads` (may be null) packs and unpacks and must be idle while the exchange is
// called. Other users of the transport (tensor parallel groups) open their lanes before `connect`;
// pass connect = false and call transport.connect() later when there are some.
std::unique_ptr<Exchange> make_exchange(const ExchangeSetup& setup, Transport& transport,
                                        ThreadPool* threads, bool connect = true);

}  // namespace ferry
