#include "layers/mla.h"

#include <algorithm>
#include <memory>

namespace ferry {
namespace {

// Of q_norm and kv_norm, whatever rms_norm_eps is: the published code leaves it to its default.
constexpr float kLatentNormEps = 1e-6f;

// Two-dimensional view of heads [begin, begin + num) of x [rows, heads, head_dim].
Tensor slice_heads(const Tensor& x, int64_t begin, int64_t num) {
    const int64_t head_dim = x.dim(2);
    return x.reshape({x.rows(), x.dim(1) * head_dim})
        .slice_columns(begin * head_dim, num * head_dim)
        .reshape({x.rows(), num, head_dim});
}

// The stored type of a value.
template <typename T>
T stored_as(float value) {
    if constexpr (std::is_same_v<T, float>)
        return value;
    else
        return f32_to_bf16(value);
}

// to[column][row] of x [rows, columns]. Some columns at a time, whose lines stay in cache.
template <typename T>
void transpose_to(const Tensor& x, T* to) {
    constexpr int64_t kColumns = 32;
    for (int64_t begin = 0; begin < x.dim(1); begin += kColumns)
        for (int64_t row = 0; row < x.rows(); ++row)
            for (int64_t i = begin; i < std::min(begin + kColumns, x.dim(1)); ++i)
                to[i * x.rows() + row] = stored_as<T>(x.row<float>(row)[i]);
}

// absorbed_k of a head out of its rows of wkv_b, [nope, kv_lora] f32, in T, its type.
template <typename T>
void pack_absorbed_k(Kernels& kernels, const Tensor& w, int64_t head, Weight& k) {
    std::vector<T> transposed(static_cast<size_t>(w.count()));
    transpose_to(w, transposed.data());
    kernels.pack(k, head, 0, Tensor(transposed.data(), k.spec.dtype, {w.dim(1), w.rows()}),
                 nullptr);
}

// What heads [first, first + num) of wkv_b become: themselves, and parts of the absorbed matrices.
struct WkvBHeads {
    int64_t first, num;
    Weight plain, absorbed_k, absorbed_v;
};

void load_heads(WeightLoader& loader, const std::string& name, WkvBHeads& heads) {
    const int64_t nope = loader.config().qk_nope_head_dim, v = loader.config().v_head_dim;
    const int64_t rows = nope + v;
    const auto keys = [&](int64_t h) { return Range{h * rows, nope}; };
    const auto values = [&](int64_t h) { return Range{h * rows + nope, v}; };
    const bool v_as_stored = heads.absorbed_v.spec.dtype == heads.plain.spec.dtype;
    std::vector<WeightLoader::PackedRows> packed{{&heads.plain, 0, {0, heads.num * rows}}};
    for (int64_t h = 0; h < heads.num && v_as_stored; ++h)
        packed.push_back({&heads.absorbed_v, heads.first + h, values(h)});
    const OwnedTensor memory =
        loader.dequantised(name, {heads.first * rows, heads.num * rows}, packed);
    const auto f32_rows = [&](Range range) {
        return memory.view().slice_rows(range.begin, range.num);
    };
    const auto pack_k = heads.absorbed_k.spec.dtype == DType::bf16 ? pack_absorbed_k<uint16_t>
                                                                   : pack_absorbed_k<float>;
    for (int64_t h = 0; h < heads.num; ++h) {
        pack_k(loader.kernels(), f32_rows(keys(h)), heads.first + h, heads.absorbed_k);
        if (!v_as_stored)
            loader.kernels().pack(heads.absorbed_v, heads.first + h, 0, f32_rows(values(h)),
                                  nullptr);
    }
}

// Leading positions of two sequences that are in the same pages.
int64_t common_positions(const SequenceRows& a, const SequenceRows& b) {
    const int64_t most = std::min(a.end_position(), b.end_position()) / kPageTokens;
    int64_t pages = 0;
    while (pages < most &&
           a.pages[static_cast<size_t>(pages)] == b.pages[static_cast<size_t>(pages)])
        ++pages;
    return pages * kPageTokens;
}

// Rows that `sequences` lie in. They are consecutive in practice (generated tokens come last).
Range hull_of(std::span<const SequenceRows> sequences) {
    int64_t begin = sequences[0].first_row, end = begin;
    for (const SequenceRows& rows : sequences) {
        begin = std::min(begin, rows.first_row);
        end = std::max(end, rows.first_row + rows.num_rows);
    }
    return {begin, end - begin};
}

}  // namespace

Mla::Mla(WeightLoader& loader, int64_t layer)
    : config_(loader.config()), expansion_(loader.kernels().kv_expansion(config_)) {
    const std::string prefix = block_prefix(config_, layer) + "attn/";
    kv_norm_ = loader.plain(prefix + "kv_norm");
    if (config_.q_lora_rank == 0) {
        wq_ = Linear(loader.linear(prefix + "wq"));
    } else {
        wq_a_ = Linear(loader.linear(prefix + "wq_a"));
        q_norm_ = loader.plain(prefix + "q_norm");
        wq_b_ = Linear(loader.linear(prefix + "wq_b"));
    }
    wkv_a_ = Linear(loader.linear(prefix + "wkv_a"));
    wo_ = Linear(loader.linear(prefix + "wo"));
    load_wkv_b(loader, prefix + "wkv_b");
    if (config_.has_indexer(layer)) indexer_.emplace(loader, prefix + "indexer/");
}

// Read once: as it is, and absorbed. Scales do not survive the transposition that absorbed_k is: of
// fp8 it is f32, as absorbed_v then is; of int4 it has the type of the rows that it multiplies.
void Mla::load_wkv_b(WeightLoader& loader, const std::string& name) {
    const int64_t nope = config_.qk_nope_head_dim, rank = config_.kv_lora_rank;
    const int64_t head_rows = nope + config_.v_head_dim;
    const DType stored = loader.held_dtype(loader.dtype(name));
    const bool is_fp8 = stored == DType::fp8_e4m3;
    const DType k_dtype = stored == DType::int4x2 ? loader.kernels().row_dtype(DType::bf16, nope)
                                                  : (is_fp8 ? DType::f32 : stored);
    absorbed_k_ =
        loader.make_weight({.dtype = k_dtype, .groups = config_.n_heads, .out = rank, .in = nope});
    absorbed_v_ = loader.make_weight({.dtype = is_fp8 ? DType::f32 : stored,
                                      .groups = config_.n_heads,
                                      .out = config_.v_head_dim,
                                      .in = rank});
    // fp8 scale blocks are cut at multiples of 128 rows: all heads at once when a head does not end
    // on one.
    const int64_t heads_at_once = expansion_.heads_at_once;
    const bool whole = is_fp8 && heads_at_once * head_rows % kScaleBlock != 0;
    const int64_t at_once = whole ? config_.n_heads : heads_at_once;
    for (int64_t head = 0; head < config_.n_heads; head += at_once) {
        const int64_t heads = std::min(at_once, config_.n_heads - head);
        Weight weight = loader.make_weight(
            {.dtype = stored, .groups = 1, .out = heads * head_rows, .in = rank});
        if (loader.is_mine(head / at_once))
            loader.later(
                weight.size_bytes() +
                    (absorbed_k_.size_bytes() + absorbed_v_.size_bytes()) * heads / config_.n_heads,
                [&loader, name,
                 to = std::make_shared<WkvBHeads>(WkvBHeads{
                     head, heads, view_of(weight), view_of(absorbed_k_), view_of(absorbed_v_)})] {
                    load_heads(loader, name, *to);
                });
        wkv_b_.emplace_back(std::move(weight));
    }
}

void Mla::forward(Kernels& kernels, Workspace& workspace, const Tensor& x, const StepBatch& batch,
                  const Tensor& rope_table, const LayerCache& cache, const Tensor& y,
                  MlaForm form) const {
    const Workspace::Scope scope(workspace);
    const LinearInput input(kernels, workspace, x, {query_dtype(), wkv_a_.dtype(), key_dtype()});
    write_latents(kernels, workspace, input, batch, rope_table, cache);
    attend(kernels, workspace, input, batch, rope_table, cache, y, form);
}

void Mla::write_latents(Kernels& kernels, Workspace& workspace, const Tensor& x,
                        const StepBatch& batch, const Tensor& rope_table,
                        const LayerCache& cache) const {
    const Workspace::Scope scope(workspace);
    const LinearInput input(kernels, workspace, x, {wkv_a_.dtype(), key_dtype()});
    write_latents(kernels, workspace, input, batch, rope_table, cache);
}

void Mla::attend(Kernels& kernels, Workspace& workspace, const Tensor& x, const StepBatch& batch,
                 const Tensor& rope_table, const LayerCache& cache, const Tensor& y,
                 MlaForm form) const {
    const Workspace::Scope scope(workspace);
    const LinearInput input(kernels, workspace, x, {query_dtype()});
    attend(kernels, workspace, input, batch, rope_table, cache, y, form);
}

void Mla::write_latents(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                        const StepBatch& batch, const Tensor& rope_table,
                        const LayerCache& cache) const {
    const Workspace::Scope scope(workspace);
    const Tensor latent = workspace.take(DType::f32, {batch.num_tokens(), config_.latent_dim()});
    wkv_a_.forward(kernels, x, latent);
    const Tensor c = latent.slice_columns(0, config_.kv_lora_rank);
    kernels.rms_norm(c, kv_norm_, kLatentNormEps, c);
    kernels.rope_write_cache(latent, batch.positions, rope_table, config_.rope_interleave,
                             batch.slots, cache.latents);
    if (indexer_) indexer_->write_keys(kernels, workspace, x, batch, rope_table, cache.index_keys);
    for (const SequenceRows& rows : batch.prompt)
        if (rows.expanded.holds(cache.layer)) expand(kernels, workspace, cache, rows);
}

void Mla::attend(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                 const StepBatch& batch, const Tensor& rope_table, const LayerCache& cache,
                 const Tensor& y, MlaForm form) const {
    const Workspace::Scope scope(workspace);
    const int64_t tokens = batch.num_tokens();
    const Tensor out = workspace.take(DType::f32, {tokens, config_.n_heads, config_.v_head_dim});
    const Queries queries = project(kernels, workspace, x, batch, rope_table);
    if (form == MlaForm::absorb)
        attend_absorbed(kernels, workspace, queries, cache, batch.prompt, out);
    else
        attend_prompts(kernels, workspace, queries, cache, batch.prompt, out);
    if (form == MlaForm::naive && !some_choose(batch.generated, batch.most_keys))
        attend_naive(kernels, workspace, queries.q, {}, cache, batch.generated, out);
    else
        attend_absorbed(kernels, workspace, queries, cache, batch.generated, out);
    wo_.forward(kernels, workspace, out.reshape({tokens, config_.n_heads * config_.v_head_dim}), y);
}

Mla::Queries Mla::project(Kernels& kernels, Workspace& workspace, const LinearInput& x,
                          const StepBatch& batch, const Tensor& rope_table) const {
    const int64_t tokens = batch.num_tokens();
    Queries queries{
        .q = workspace.take(DType::f32, {tokens, config_.n_heads, config_.qk_head_dim()}),
        .index = {},
        .max_positions = rope_table.rows(),
        .most_keys = batch.most_keys};
    const Tensor q = queries.q.reshape({tokens, config_.n_heads * config_.qk_head_dim()});
    if (indexer_ && (some_choose(batch.prompt, batch.most_keys) ||
                     some_choose(batch.generated, batch.most_keys)))
        queries.index = indexer_->take_queries(workspace, tokens);
    const Workspace::Scope scope(workspace);
    if (config_.q_lora_rank == 0) {
        wq_.forward(kernels, x, q);
    } else {
        const Tensor q_a = workspace.take(DType::f32, {tokens, config_.q_lora_rank});
        wq_a_.forward(kernels, x, q_a);
        if (queries.index) {
            kernels.rms_norm(q_a, q_norm_, kLatentNormEps, q_a);
            const LinearInput c(kernels, workspace, q_a, {wq_b_.dtype(), indexer_->query_dtype()});
            wq_b_.forward(kernels, c, q);
            indexer_->make_queries(kernels, x, c, batch.positions, rope_table, *queries.index);
        } else {
            wq_b_.forward(kernels,
                          LinearInput::rms_norm(kernels, workspace, q_a, q_norm_, kLatentNormEps,
                                                wq_b_.dtype()),
                          q);
        }
    }
    kernels.rope(queries.q, config_.qk_nope_head_dim, batch.positions, rope_table,
                 config_.rope_interleave);
    return queries;
}

// Of a prompt that stays expanded in this layer: the new rows, read back as the cache stores them.
void Mla::expand(Kernels& kernels, Workspace& workspace, const LayerCache& cache,
                 const SequenceRows& rows) const {
    const ExpandedPrompt& kept = rows.expanded;
    const int64_t first = kept.num_expanded, num = rows.end_position() - first;
    FERRY_CHECK(num >= 0 && rows.end_position() <= kept.num_positions,
                "positions {}+{} of a prompt with room for {}", first, num, kept.num_positions);
    const Workspace::Scope scope(workspace);
    const Tensor latent = workspace.take(DType::f32, {num, config_.latent_dim()});
    kernels.read_cache(cache.latents, rows.pages, first, latent);
    const LinearInput input(kernels, workspace, latent.slice_columns(0, config_.kv_lora_rank),
                            {wkv_b_[0].dtype()});
    for (size_t piece = 0; piece < wkv_b_.size(); ++piece)
        wkv_b_[piece].forward(kernels, input,
                              kept_keys(cache, kept, piece).kv.slice_rows(first, num));
    const Tensor rope = kept_keys(cache, kept, 0).rope.slice_rows(first, num);
    kernels.copy_head_columns(latent.reshape({num, 1, latent.dim(1)}), config_.kv_lora_rank,
                              rope.reshape({num, 1, rope.dim(1)}));
}

// One after the other: keys and values of each piece of heads, and the rotated part.
Mla::Keys Mla::kept_keys(const LayerCache& cache, const ExpandedPrompt& kept, size_t piece) const {
    const int64_t positions = kept.num_positions;
    const Tensor units =
        cache.expanded.slice_rows(kept.first_unit + cache.layer * positions, positions);
    const Tensor values = units.reshape({units.count()});
    const auto columns = [&](int64_t first, int64_t num) {
        return values.slice_rows(positions * first, positions * num).reshape({positions, num});
    };
    const int64_t head_rows = config_.qk_nope_head_dim + config_.v_head_dim;
    const int64_t first_head = static_cast<int64_t>(piece) * (wkv_b_[0].out() / head_rows);
    return {.first_head = first_head,
            .kv = columns(first_head * head_rows, wkv_b_[piece].out()),
            .rope = columns(config_.n_heads * head_rows, config_.qk_rope_head_dim)};
}

void Mla::attend_expanded(Kernels& kernels, const Tensor& q, const Tensor& mask,
                          const LayerCache& cache, const SequenceRows& rows,
                          const Tensor& out) const {
    const int64_t positions = rows.end_position();
    for (size_t piece = 0; piece < wkv_b_.size(); ++piece) {
        Keys keys = kept_keys(cache, rows.expanded, piece);
        keys.kv = keys.kv.slice_rows(0, positions);
        keys.rope = keys.rope.slice_rows(0, positions);
        attend_heads(kernels, q, mask, keys, rows, out);
    }
}

void Mla::attend_naive(Kernels& kernels, Workspace& workspace, const Tensor& q, const Tensor& mask,
                       const LayerCache& cache, std::span<const SequenceRows> sequences,
                       const Tensor& out) const {
    const auto holds = [&](const SequenceRows& rows) { return rows.expanded.holds(cache.layer); };
    for (size_t first = 0, end = 0; first < sequences.size(); first = end) {
        const SequenceRows& rows = sequences[first];
        end = first + 1;
        if (holds(rows)) {
            attend_expanded(kernels, q, mask, cache, rows, out);
            continue;
        }
        // With those that follow and have at least as many leading pages in common with it as the
        // next one.
        int64_t shared = 0;
        for (; end < sequences.size() && !holds(sequences[end]); ++end) {
            const int64_t common = common_positions(rows, sequences[end]);
            if (common == 0 || common < shared) break;
            if (shared == 0) shared = common;
        }
        if (end == first + 1) shared = rows.end_position();
        attend_rebuilt(kernels, workspace, q, mask, cache, sequences.subspan(first, end - first),
                       shared, out);
    }
}

bool Mla::some_choose(std::span<const SequenceRows> sequences, int64_t most_keys) const {
    return most_keys > config_.dense_positions() ||
           std::ranges::any_of(sequences, [this](auto& rows) { return chooses(rows); });
}

// Runs of those that take the expanded form, and of those that take the absorbed form.
void Mla::attend_prompts(Kernels& kernels, Workspace& workspace, const Queries& queries,
                         const LayerCache& cache, std::span<const SequenceRows> sequences,
                         const Tensor& out) const {
    const auto is_expanded = [this](const SequenceRows& rows) {
        return rows.end_position() <= expansion_.positions;
    };
    for (size_t first = 0, end = 0; first < sequences.size(); first = end) {
        const bool expanded = is_expanded(sequences[first]);
        for (end = first; end < sequences.size() && is_expanded(sequences[end]) == expanded; ++end)
            FERRY_CHECK(expanded || sequences[end].first_position >= expansion_.positions,
                        "prompt rows {}+{} over position {}", sequences[end].first_position,
                        sequences[end].num_rows, expansion_.positions);
        const auto run = sequences.subspan(first, end - first);
        if (!expanded) {
            attend_absorbed(kernels, workspace, queries, cache, run, out);
            continue;
        }
        const bool choose = some_choose(run, 0);
        if (choose) select(kernels, workspace, queries, cache, run, true);
        attend_naive(kernels, workspace, queries.q, choose ? cache.choice.masks : Tensor(), cache,
                     run, out);
    }
}

// Into cache.choice, unless what is there was chosen for this layer, too.
void Mla::select(Kernels& kernels, Workspace& workspace, const Queries& queries,
                 const LayerCache& cache, std::span<const SequenceRows> sequences,
                 bool as_masks) const {
    if (!indexer_) return;
    const Workspace::Scope scope(workspace);
    const Range rows = hull_of(sequences);
    const auto of_rows = [&](const Tensor& all) { return all.slice_rows(rows.begin, rows.num); };
    const int64_t positions = queries.max_positions;
    kernels.select_keys({.q = of_rows(queries.index->q),
                         .weights = of_rows(queries.index->weights),
                         .keys = cache.index_keys,
                         .topk = config_.index_topk,
                         .chosen = as_masks ? Tensor() : of_rows(cache.choice.lists),
                         .mask = as_masks ? of_rows(cache.choice.masks) : Tensor(),
                         .scores = workspace.take(
                             DType::f32, {Indexer::rows_at_once(rows.num, positions), positions}),
                         .sequences = sequences,
                         .first_row = rows.begin});
}

// Prompt rows that stay expanded nowhere: K and V of all positions so far are rebuilt from the
// cache, of the first `shared` ones, which are in the same pages, once for all sequences. A prompt
// that is computed at once, or for whose chunks there was no room. The latter cost 2 x positions x
// kv_lora x heads x (nope + v) FLOPs each. Counted for bench-8 and a prompt of 4096 tokens in
// chunks of 512, it is 10 % of the FLOPs of the whole prefill (2 % in one chunk).
void Mla::attend_rebuilt(Kernels& kernels, Workspace& workspace, const Tensor& q,
                         const Tensor& mask, const LayerCache& cache,
                         std::span<const SequenceRows> sequences, int64_t shared,
                         const Tensor& out) const {
    const Workspace::Scope scope(workspace);
    int64_t most = 0;
    for (const SequenceRows& rows : sequences) most = std::max(most, rows.end_position());
    const int64_t rank = config_.kv_lora_rank;
    const Tensor latent = workspace.take(DType::f32, {most, config_.latent_dim()});
    const auto read = [&](const SequenceRows& rows, int64_t first, int64_t num) {
        const Tensor part = latent.slice_rows(first, num);
        kernels.read_cache(cache.latents, rows.pages, first, part);
        return LinearInput(kernels, workspace, part.slice_columns(0, rank), {wkv_b_[0].dtype()});
    };
    const LinearInput of_all = read(sequences[0], 0, shared);
    int64_t first_head = 0;
    for (const Linear& wkv_b : wkv_b_) {
        const Workspace::Scope head_scope(workspace);
        const Tensor kv = workspace.take(expansion_.dtype, {most, wkv_b.out()});
        wkv_b.forward(kernels, of_all, kv.slice_rows(0, shared));
        for (const SequenceRows& rows : sequences) {
            const Workspace::Scope rows_scope(workspace);
            const int64_t positions = rows.end_position();
            if (positions > shared)
                wkv_b.forward(kernels, read(rows, shared, positions - shared),
                              kv.slice_rows(shared, positions - shared));
            const Keys keys{
                .first_head = first_head,
                .kv = kv.slice_rows(0, positions),
                .rope =
                    latent.slice_rows(0, positions).slice_columns(rank, config_.qk_rope_head_dim)};
            attend_heads(kernels, q, mask, keys, rows, out);
        }
        first_head += wkv_b.out() / (config_.qk_nope_head_dim + config_.v_head_dim);
    }
}

void Mla::attend_heads(Kernels& kernels, const Tensor& q, const Tensor& mask, const Keys& keys,
                       const SequenceRows& rows, const Tensor& out) const {
    const int64_t nope = config_.qk_nope_head_dim, v = config_.v_head_dim;
    const int64_t heads = keys.kv.dim(1) / (nope + v);
    kernels.mla_prefill({.q = slice_heads(q, keys.first_head, heads),
                         .kv = keys.kv.reshape({keys.kv.rows(), heads, nope + v}),
                         .rope = keys.rope,
                         .out = slice_heads(out, keys.first_head, heads),
                         .rows = rows,
                         .nope_dim = nope,
                         .rope_dim = config_.qk_rope_head_dim,
                         .v_dim = v,
                         .scale = static_cast<float>(config_.softmax_scale()),
                         .mask = mask,
                         .topk = config_.index_topk});
}

void Mla::attend_absorbed(Kernels& kernels, Workspace& workspace, const Queries& queries,
                          const LayerCache& cache, std::span<const SequenceRows> sequences,
                          const Tensor& out) const {
    if (sequences.empty()) return;
    const Workspace::Scope scope(workspace);
    const Range hull = hull_of(sequences);  // worked on
    const int64_t begin = hull.begin, tokens = hull.num;
    const int64_t heads = config_.n_heads, nope = config_.qk_nope_head_dim;
    const int64_t rope = config_.qk_rope_head_dim, rank = config_.kv_lora_rank;
    const Tensor q_latent = workspace.take(DType::f32, {tokens, heads, rank});
    const Tensor q_rope = workspace.take(DType::f32, {tokens, heads, rope});
    const Tensor o_latent = workspace.take(DType::f32, {tokens, heads, rank});
    const Tensor q_rows = queries.q.slice_rows(begin, tokens);
    kernels.head_gemm(q_rows.reshape({tokens, heads * config_.qk_head_dim()}),
                      config_.qk_head_dim(), absorbed_k_, q_latent);
    kernels.copy_head_columns(q_rows, nope, q_rope);
    Tensor chosen;
    if (some_choose(sequences, queries.most_keys)) {
        select(kernels, workspace, queries, cache, sequences, false);
        chosen = cache.choice.lists.slice_rows(begin, tokens);
    }
    kernels.mla_decode({.q_latent = q_latent,
                        .q_rope = q_rope,
                        .cache = cache.latents,
                        .out = o_latent,
                        .sequences = sequences,
                        .chosen = chosen,
                        .first_row = begin,
                        .scale = static_cast<float>(config_.softmax_scale())});
    kernels.head_gemm(o_latent.reshape({tokens, heads * rank}), rank, absorbed_v_,
                      out.slice_rows(begin, tokens));
}

int64_t Mla::weight_bytes() const {
    int64_t bytes = wkv_a_.weight().size_bytes() + wo_.weight().size_bytes() +
                    absorbed_k_.size_bytes() + absorbed_v_.size_bytes();
    bytes += config_.q_lora_rank == 0 ? wq_.weight().size_bytes()
                                      : wq_a_.weight().size_bytes() + wq_b_.weight().size_bytes();
    return bytes + (indexer_ ? indexer_->weight_bytes() : 0);
}

int64_t Mla::expanded_values(const ModelConfig& c) {
    constexpr int64_t kValuesAtOnce = 16;  // where a layer's begin, for vector instructions
    const int64_t values = c.n_heads * (c.qk_nope_head_dim + c.v_head_dim) + c.qk_rope_head_dim;
    return ceil_div(values, kValuesAtOnce) * kValuesAtOnce;
}

size_t Mla::workspace_bytes(const ModelConfig& c, int64_t tokens, int64_t context,
                            const KvExpansion& expansion) {
    const int64_t head_rows = c.qk_nope_head_dim + c.v_head_dim;
    const int64_t per_token = c.n_heads * (c.qk_head_dim() + c.v_head_dim) + c.latent_dim() +
                              2 * (c.q_lora_rank + c.dim + c.n_heads * c.v_head_dim);
    const int64_t naive =
        std::min(context, expansion.positions) *
        (4 * (c.latent_dim() + c.kv_lora_rank + ceil_div(c.kv_lora_rank, kScaleBlock)) +
         std::min(c.n_heads, expansion.heads_at_once) * head_rows * size_bytes(expansion.dtype));
    const int64_t absorbed = 4 * tokens * c.n_heads * (2 * c.kv_lora_rank + c.qk_rope_head_dim);
    const int64_t index = c.index_topk > 0 ? Indexer::workspace_bytes(c, tokens, context) : 0;
    constexpr int64_t kSlack = 64 << 10;  // alignment
    return static_cast<size_t>(4 * tokens * per_token + std::max(naive, absorbed) + index + kSlack);
}

}  // namespace ferry
