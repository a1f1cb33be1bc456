#include "comm/exchange_staged.h"

#include <optional>

#include "base/buffer.h"
#include "comm/staging.h"

namespace ferry {
namespace {

class StagedAttentionSide final : public AttentionSide {
  public:
    StagedAttentionSide(AttentionSide& host, Device& device)
        : host_(host),
          device_(device),
          x_(device, StageSide::host),
          experts_(device, StageSide::host),
          weights_(device, StageSide::host),
          out_(device, StageSide::host) {}

    void dispatch(int layer, int micro_batch, const Tensor& x, const Routing& routing,
                  Agreement say) override {
        host_.dispatch(layer, micro_batch, x_.copy_of(x),
                       {experts_.copy_of(routing.experts), weights_.copy_of(routing.weights)}, say);
    }
    bool combine_ready(int micro_batch) override { return host_.combine_ready(micro_batch); }
    Agreement combine(int layer, int micro_batch, const Tensor& out) override {
        const Tensor host_out = out_.shaped_like(out);
        const Agreement agreed = host_.combine(layer, micro_batch, host_out);
        put(device_, host_out, out);
        return agreed;
    }
    void close() override { host_.close(); }

  private:
    AttentionSide& host_;
    Device& device_;
    Stage x_, experts_, weights_, out_;
};

class StagedExpertSide final : public ExpertSide {
  public:
    StagedExpertSide(ExpertSide& host, Device& device)
        : host_(host), rows_(device, StageSide::device), y_(device, StageSide::host) {}

    const ExpertBatch* try_receive() override { return bring(host_.try_receive()); }
    const ExpertBatch* receive() override { return bring(host_.receive()); }
    bool closed() const override { return host_.closed(); }
    void reply(const Tensor& y) override { host_.reply(y_.copy_of(y)); }
    void reopen() override { host_.reopen(); }

  private:
    const ExpertBatch* bring(const ExpertBatch* batch) {
        if (batch == nullptr) return nullptr;
        batch_ = *batch;
        batch_.rows = rows_.copy_of(decode_rows(*batch));
        batch_.received = {};
        return &batch_;
    }

    ExpertSide& host_;
    ExpertBatch batch_;
    Stage rows_, y_;
};

class StagedExchange final : public Exchange {
  public:
    StagedExchange(std::unique_ptr<Exchange> host, Device& device) : host_(std::move(host)) {
        if (host_->attention() != nullptr) attention_.emplace(*host_->attention(), device);
        if (host_->experts() != nullptr) experts_.emplace(*host_->experts(), device);
    }
    AttentionSide* attention() override { return attention_ ? &*attention_ : nullptr; }
    ExpertSide* experts() override { return experts_ ? &*experts_ : nullptr; }
    std::span<const int64_t> expert_load(int layer) const override {
        return host_->expert_load(layer);
    }
    ExchangeTimes times() const override { return host_->times(); }
    void begin_wait(int layer, int micro_batch) override { host_->begin_wait(layer, micro_batch); }
    void wait_a_little(int micro_batch) override { host_->wait_a_little(micro_batch); }
    void end_wait() override { host_->end_wait(); }

  private:
    std::unique_ptr<Exchange> host_;
    std::optional<StagedAttentionSide> attention_;
    std::optional<StagedExpertSide> experts_;
};

}  // namespace

std::unique_ptr<Exchange> make_staged_exchange(std::unique_ptr<Exchange> host, Device& device) {
    return std::make_unique<StagedExchange>(std::move(host), device);
}

}  // namespace ferry
