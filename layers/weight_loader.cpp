#include "layers/weight_loader.h"

#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <numeric>

#include "base/error.h"

namespace ferry {
namespace {

// What one thread fills: a huge page, of one weight or of small ones that follow each other.
// Threads that touch the same one for the first time at once would both be given one by the kernel,
// cleared, and one of them would be thrown away.
constexpr int64_t kTaskBytes = int64_t{2} << 20;

// Tasks that wait at most, some 8 GiB of weights: a model has any number.
constexpr size_t kMaxTasks = 4096;

// fn(i, thread) for [0, num) by all threads. After a failure no more are begun, and the first is
// thrown here at the end.
template <typename Fn>
void in_parallel(ThreadPool& threads, int64_t num, Fn&& fn) {
    std::atomic<bool> failed{false};
    std::exception_ptr failure;
    threads.parallel_for(num, [&](int64_t i, int thread) {
        if (failed.load(std::memory_order_relaxed)) return;
        try {
            fn(i, thread);
        } catch (...) {
            if (!failed.exchange(true)) failure = std::current_exception();
        }
    });
    if (failure) std::rethrow_exception(failure);
}

std::vector<Range> whole_box(std::span<const int64_t> shape) {
    std::vector<Range> box;
    for (int64_t extent : shape) box.push_back({0, extent});
    return box;
}

int64_t count_elements(std::span<const Range> box) {
    int64_t count = 1;
    for (const Range& range : box) count *= range.num;
    return count;
}

constexpr auto kFp8Values = [] {
    std::array<float, 256> values{};
    for (size_t code = 0; code < values.size(); ++code)
        values[code] = fp8_e4m3_to_f32(static_cast<uint8_t>(code));
    return values;
}();

void widen(const void* from, DType dtype, int64_t count, float* to) {
    switch (dtype) {
        case DType::f32:
            std::copy_n(static_cast<const float*>(from), count, to);
            break;
        case DType::bf16:
            std::transform(static_cast<const uint16_t*>(from),
                           static_cast<const uint16_t*>(from) + count, to, bf16_to_f32);
            break;
        default:
            std::transform(static_cast<const uint8_t*>(from),
                           static_cast<const uint8_t*>(from) + count, to,
                           [](uint8_t code) { return kFp8Values[code]; });
    }
}

// Memory of this thread for a piece on its way: a huge page, since a cache holds no more than a
// part of a piece whose small pages lie anywhere.
std::span<std::byte> staging_memory(int64_t num_bytes) {
    thread_local Buffer memory;
    const size_t size = static_cast<size_t>(num_bytes);
    if (memory.size_bytes() < size)
        memory = Buffer(cpu_device(), std::max(size, static_cast<size_t>(kTaskBytes)));
    return {memory.as<std::byte>(), size};
}

Buffer view_of(const Buffer& buffer) {
    return Buffer::adopt(buffer.data(), buffer.size_bytes(), [] {});
}

Range scale_range(Range range, int64_t block) {
    return {range.begin / block, ceil_div(range.num, block)};
}

// Rows of int4x2 as bf16.
void dequantise_int4(const Tensor& codes, const Tensor& scales, uint16_t* to) {
    for (int64_t row = 0; row < codes.rows(); ++row) {
        const uint16_t* const row_scales = scales.row<uint16_t>(row);
        for (int64_t i = 0; i < codes.dim(1); ++i) {
            const uint8_t byte = codes.row<uint8_t>(row)[i];
            const float scale = bf16_to_f32(row_scales[2 * i / kInt4Group]);
            for (int64_t half = 0; half < 2; ++half)
                *to++ = f32_to_bf16(static_cast<float>(int4_value(byte, half)) * scale);
        }
    }
}

// Rows of a matrix as f32; `scales`: of types that have them.
void widen_rows(const Tensor& w, const Tensor& scales, const Tensor& to) {
    const std::optional<ScaleForm> form = scale_form(w.dtype());
    const int64_t in = to.dim(1);
    if (w.dtype() == DType::int4x2) {
        const auto* const codes = w.as<uint8_t>();
        float* const values = to.as<float>();
        for (int64_t i = 0; i < to.count(); ++i)
            values[i] = static_cast<float>(int4_value(codes[i / 2], i % 2));
    } else {
        widen(w.data(), w.dtype(), w.count(), to.as<float>());
    }
    if (!form) return;
    for (int64_t row = 0; row < to.rows(); ++row)
        for (int64_t block = 0; block < scales.dim(1); ++block) {
            const int64_t scale_row = row / form->rows;
            const float scale = form->dtype == DType::f32
                                    ? scales.row<float>(scale_row)[block]
                                    : bf16_to_f32(scales.row<uint16_t>(scale_row)[block]);
            float* const at = to.row<float>(row) + block * form->columns;
            const int64_t num = std::min(form->columns, in - block * form->columns);
            for (int64_t i = 0; i < num; ++i) at[i] *= scale;
        }
}

}  // namespace

Weight view_of(const Weight& weight) {
    Weight view{
        .spec = weight.spec, .data = view_of(weight.data), .scales = view_of(weight.scales)};
    for (const Weight::Group& group : weight.apart)
        view.apart.push_back({view_of(group.data), view_of(group.scales)});
    return view;
}

ModelPart ModelPart::whole(const ModelConfig& config) {
    ModelPart part;
    std::vector<int32_t>& all =
        part.experts.emplace_back(static_cast<size_t>(config.n_routed_experts));
    std::iota(all.begin(), all.end(), 0);
    return part;
}

namespace {

// Of one list for all MoE layers, or one per MoE layer.
template <typename T>
std::span<const T> list_of(const std::vector<std::vector<T>>& lists, const ModelConfig& config,
                           int64_t layer) {
    if (lists.empty() || !config.is_moe_layer(layer)) return {};
    return lists.size() == 1 ? lists[0] : lists[static_cast<size_t>(layer - config.n_dense_layers)];
}

}  // namespace

std::span<const int32_t> ModelPart::experts_of(const ModelConfig& config, int64_t layer) const {
    return list_of(experts, config, layer);
}

std::span<const SharedExpert> NodeShares::shared_experts_of(const ModelConfig& config,
                                                            int64_t layer) const {
    return list_of(shared_experts, config, layer);
}

WeightLoader::WeightLoader(WeightSource& source, Kernels& kernels,
                           std::function<void(int64_t)> progress)
    : source_(source), kernels_(kernels), progress_(std::move(progress)) {}

WeightLoader::~WeightLoader() {
    FERRY_CHECK(tasks_.empty() || std::uncaught_exceptions() > 0);
}

void WeightLoader::later(int64_t num_bytes, std::function<void()> part) {
    if (!tasks_.empty() && tasks_.back().num_bytes + num_bytes <= kTaskBytes) {
        tasks_.back().num_bytes += num_bytes;
        tasks_.back().parts.push_back(std::move(part));
        return;
    }
    if (tasks_.size() >= kMaxTasks) finish();
    tasks_.push_back({num_bytes, {}});
    tasks_.back().parts.push_back(std::move(part));
}

void WeightLoader::finish() {
    const std::vector<Task> tasks = std::exchange(tasks_, {});
    in_parallel(kernels_.threads(), static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
        for (const auto& part : tasks[static_cast<size_t>(i)].parts) part();
        if (thread == 0) tell_progress();
    });
    tell_progress();
}

void WeightLoader::read(const std::string& name, std::span<const Range> box,
                        std::span<std::byte> to) {
    source_.read(name, box, to.data());
    bytes_read_ += static_cast<int64_t>(to.size());
}

void WeightLoader::tell_progress() const {
    if (progress_) progress_(bytes_read_);
}

Buffer WeightLoader::take(size_t size_bytes) {
    return is_shared() ? share_->take(size_bytes) : Buffer(kernels_.device(), size_bytes);
}

Weight WeightLoader::make_weight(const WeightSpec& spec) {
    if (!is_shared()) return kernels_.make_weight(spec);
    Weight weight{.spec = spec,
                  .data = share_->take(static_cast<size_t>(kernels_.packed_bytes(spec))),
                  .scales = {}};
    if (spec.dtype == DType::fp8_e4m3)
        weight.scales = share_->take(static_cast<size_t>(
            4 * spec.groups * ceil_div(spec.out, kScaleBlock) * ceil_div(spec.in, kScaleBlock)));
    return weight;
}

TensorInfo WeightLoader::info(const std::string& name) const {
    const std::optional<TensorInfo> found = source_.find(name);
    if (!found) throw Error(ErrorKind::checkpoint, "tensor {} is missing", name);
    return *found;
}
DType WeightLoader::dtype(const std::string& name) const {
    return info(name).dtype;
}
std::vector<int64_t> WeightLoader::shape(const std::string& name) const {
    return info(name).shape;
}

OwnedTensor WeightLoader::plain(const std::string& name) {
    const TensorInfo tensor = info(name);
    const std::vector<Range> box = whole_box(tensor.shape);
    const int64_t num = count_elements(box);
    Buffer memory = take(static_cast<size_t>(num) * sizeof(float));
    OwnedTensor result =
        tensor.shape.size() == 1
            ? OwnedTensor(std::move(memory), DType::f32, {num})
            : OwnedTensor(std::move(memory), DType::f32, {tensor.shape[0], num / tensor.shape[0]});
    if (!is_mine(num_plain_++)) return result;
    std::vector<std::byte> stored(static_cast<size_t>(num * size_bytes(tensor.dtype)));
    read(name, box, stored);
    tell_progress();
    std::vector<float> wide(static_cast<size_t>(num));
    widen(stored.data(), tensor.dtype, num, wide.data());
    kernels_.device().copy_from_host(result.view().data(), wide.data(), wide.size() * 4);
    return result;
}

OwnedTensor WeightLoader::rows(const std::string& name, Range rows, Weight* packed) {
    const TensorInfo tensor = info(name);
    if (tensor.dtype != DType::f32 && tensor.dtype != DType::bf16)
        throw Error(ErrorKind::checkpoint, "tensor {} is {}, only f32 and bf16 rows are supported",
                    name, to_string(tensor.dtype));
    const int64_t columns = tensor.shape[1], row_bytes = columns * size_bytes(tensor.dtype);
    OwnedTensor result(take(static_cast<size_t>(rows.num * row_bytes)), tensor.dtype,
                       {rows.num, columns});
    if (packed != nullptr)
        *packed = make_weight({.dtype = tensor.dtype, .groups = 1, .out = rows.num, .in = columns});
    const int64_t at_once = rows_at_once(row_bytes);
    const int64_t rows_per_piece =
        std::max<int64_t>(1, kTaskBytes / (at_once * row_bytes)) * at_once;
    const std::shared_ptr<Weight> also =
        packed == nullptr ? nullptr : std::make_shared<Weight>(view_of(*packed));
    const auto load_piece = [this, name, rows, all = result.view(), also](int64_t first,
                                                                          int64_t num) {
        const Range box[] = {{rows.begin + first, num}, {0, all.dim(1)}};
        const size_t bytes = static_cast<size_t>(num * all.dim(1) * size_bytes(all.dtype()));
        const bool in_place = kernels_.device().type() == DeviceType::cpu;
        std::vector<std::byte> staging(in_place ? 0 : bytes);
        std::byte* to = in_place ? all.row<std::byte>(first) : staging.data();
        read(name, box, {to, bytes});
        if (!in_place)
            kernels_.device().copy_from_host(all.row<std::byte>(first), to, staging.size());
        if (also != nullptr)
            pack(name, *also, 0, first, Tensor(to, all.dtype(), {num, all.dim(1)}), nullptr);
    };
    for (int64_t i = 0; i * rows_per_piece < rows.num; ++i) {
        if (!is_mine(i)) continue;
        const int64_t first = i * rows_per_piece;
        const int64_t num = std::min(rows_per_piece, rows.num - first);
        if (kernels_.device().type() == DeviceType::cpu)
            later(num * row_bytes, [load_piece, first, num] { load_piece(first, num); });
        else
            load_piece(first, num);
    }
    return result;
}

Weight WeightLoader::linear(const std::string& name) {
    const TensorInfo tensor = info(name);
    return linear(name, {0, tensor.shape[0]}, {0, num_values(tensor.dtype, tensor.shape[1])});
}

Weight WeightLoader::linear_f32(const std::string& name) {
    const std::vector<int64_t> sizes = shape(name);
    Weight weight =
        make_weight({.dtype = DType::f32, .groups = 1, .out = sizes[0], .in = sizes[1]});
    if (is_mine(0))
        later(weight.size_bytes(),
              [this, name, rows = sizes[0], to = std::make_shared<Weight>(view_of(weight))] {
                  kernels().pack(*to, 0, 0, dequantised(name, {0, rows}), nullptr);
              });
    return weight;
}

Weight WeightLoader::linear(const std::string& name, Range out, Range in) {
    const DType stored = info(name).dtype;
    const ScaleForm form = scale_form(stored).value_or(ScaleForm{DType::f32, 1, 1});
    Weight weight =
        make_weight({.dtype = held_dtype(stored), .groups = 1, .out = out.num, .in = in.num});
    const Range columns{stored_columns(stored, in.begin), stored_columns(stored, in.num)};
    const int64_t rows_per_piece = rows_at_once(columns.num * size_bytes(stored));
    std::vector<Piece> pieces;
    for (int64_t first = 0; first < out.num; first += rows_per_piece) {
        const Range rows{out.begin + first, std::min(rows_per_piece, out.num - first)};
        pieces.push_back({0,
                          first,
                          rows.num,
                          is_mine(first / rows_per_piece),
                          {rows, columns},
                          {scale_range(rows, form.rows), scale_range(in, form.columns)}});
    }
    fill_later(name, stored, weight, std::move(pieces));
    return weight;
}

// GPUs multiply int4 in groups only.
DType WeightLoader::held_dtype(DType stored) const {
    return stored == DType::int4x2 && kernels_.device().type() != DeviceType::cpu ? DType::bf16
                                                                                  : stored;
}

// Those that the node's ranks share lie in its memory, once; all its expert ranks take it, those
// that do not hold them too.
Weight WeightLoader::make_expert_weight(const WeightSpec& spec, std::span<const int32_t> experts,
                                        std::span<const SharedExpert> shared) {
    if (shared.empty()) return kernels_.make_weight(spec);
    const HeldAlike held_alike(*this, shares_.experts);
    WeightSpec one = spec;
    one.groups = 1;
    Weight weight{.spec = spec, .data = {}, .scales = {}};
    weight.apart.resize(experts.size());
    for (const SharedExpert& copies : shared) {
        Weight memory = make_weight(one);
        for (size_t group = 0; group < experts.size(); ++group) {
            if (experts[group] != copies.expert) continue;
            Weight::Group& place = weight.apart[group];
            place.data = std::exchange(memory.data, view_of(memory.data));
            place.scales = std::exchange(memory.scales, view_of(memory.scales));
        }
    }
    for (Weight::Group& place : weight.apart) {
        if (place.data.data() != nullptr) continue;
        Weight memory = kernels_.make_weight(one);
        place = {std::move(memory.data), std::move(memory.scales)};
    }
    return weight;
}

Weight WeightLoader::experts(const std::string& name, std::span<const int32_t> experts,
                             std::span<const SharedExpert> shared) {
    const TensorInfo tensor = info(name);
    const DType stored = tensor.dtype;
    const int64_t out = tensor.shape[1], columns = tensor.shape[2];
    const int64_t in = num_values(stored, columns);
    Weight weight = make_expert_weight(
        {.dtype = stored, .groups = static_cast<int64_t>(experts.size()), .out = out, .in = in},
        experts, shared);
    const ScaleForm form = scale_form(stored).value_or(ScaleForm{DType::f32, 1, 1});
    const int64_t rows_per_piece = rows_at_once(columns * size_bytes(stored));
    std::vector<Piece> pieces;
    for (size_t group = 0; group < experts.size(); ++group) {
        const auto copies = std::ranges::find(shared, experts[group], &SharedExpert::expert);
        const bool again = std::ranges::find(experts.first(group), experts[group]) !=
                           experts.begin() + static_cast<int64_t>(group);
        for (int64_t first = 0; first < out; first += rows_per_piece) {
            const Range rows{first, std::min(rows_per_piece, out - first)};
            const bool mine =
                copies == shared.end() ||
                (!again && first / rows_per_piece % copies->num_holders == copies->holder);
            pieces.push_back({static_cast<int64_t>(group),
                              first,
                              rows.num,
                              mine,
                              {{experts[group], 1}, rows, {0, columns}},
                              {{experts[group], 1},
                               scale_range(rows, form.rows),
                               scale_range({0, in}, form.columns)}});
        }
    }
    fill_later(name, stored, weight, std::move(pieces));
    return weight;
}

// Pieces of one group whose rows follow each other: their scales are a single read.
void WeightLoader::fill(const std::string& name, DType stored, Weight& weight,
                        std::span<const Piece> pieces) {
    thread_local std::vector<std::byte> scales;
    thread_local std::vector<uint16_t> wide;
    const std::optional<ScaleForm> form = scale_form(stored);
    const int64_t in = weight.spec.in, blocks = form ? ceil_div(in, form->columns) : 0;
    const auto num_scale_rows = [&](const Piece& piece) {
        return form ? ceil_div(piece.num_out, form->rows) : 0;
    };
    int64_t scale_rows = 0;
    if (form) {
        for (const Piece& piece : pieces) scale_rows += num_scale_rows(piece);
        std::vector<Range> box = pieces[0].scale_box;
        box[box.size() - 2].num = scale_rows;
        scales.resize(static_cast<size_t>(scale_rows * blocks * size_bytes(form->dtype)));
        read(name + "_scale", box, scales);
    }
    if (kernels_.device().type() == DeviceType::cpu) {
        // The kernel clears a huge page when it is first touched: before a piece is in the caches.
        const int64_t group_bytes = kernels_.packed_bytes(weight.spec) / weight.spec.groups;
        *static_cast<volatile std::byte*>(weight.group_data(pieces[0].group) +
                                          group_bytes * pieces[0].first_out / weight.spec.out) = {};
    }
    const Tensor all_scales(scales.data(), form ? form->dtype : DType::f32, {scale_rows, blocks});
    int64_t scale_row = 0;
    for (const Piece& piece : pieces) {
        const std::span<std::byte> staging =
            staging_memory(count_elements(piece.box) * size_bytes(stored));
        read(name, piece.box, staging);
        const Tensor w(staging.data(), stored, {piece.num_out, stored_columns(stored, in)});
        const int64_t num = num_scale_rows(piece);
        const Tensor piece_scales = all_scales.slice_rows(scale_row, num);
        scale_row += num;
        if (stored == weight.spec.dtype) {
            pack(name, weight, piece.group, piece.first_out, w, form ? &piece_scales : nullptr);
            continue;
        }
        wide.resize(static_cast<size_t>(piece.num_out * in));
        dequantise_int4(w, piece_scales, wide.data());
        pack(name, weight, piece.group, piece.first_out,
             Tensor(wide.data(), DType::bf16, {piece.num_out, in}), nullptr);
    }
}

void WeightLoader::pack(const std::string& name, Weight& weight, int64_t group, int64_t first_out,
                        const Tensor& w, const Tensor* scales) {
    try {
        kernels_.pack(weight, group, first_out, w, scales);
    } catch (const Error& error) {
        const std::string of_group = weight.spec.groups > 1 ? fmt::format(" [{}]", group) : "";
        throw Error(error.kind(), "tensor {}{}: {}", name, of_group, error.what());
    }
}

void WeightLoader::fill_later(const std::string& name, DType stored, const Weight& weight,
                              std::vector<Piece> pieces) {
    if (pieces.empty()) return;
    struct Filling {
        std::string name;
        DType stored;
        Weight weight;
        std::vector<Piece> pieces;
    };
    const int64_t piece_bytes = count_elements(pieces[0].box) * size_bytes(stored);
    const auto at_once = static_cast<size_t>(std::max<int64_t>(1, kTaskBytes / piece_bytes));
    const auto filling =
        std::make_shared<Filling>(Filling{name, stored, view_of(weight), std::move(pieces)});
    for (size_t begin = 0; begin < filling->pieces.size(); begin += at_once) {
        const size_t end = std::min(begin + at_once, filling->pieces.size());
        later(static_cast<int64_t>(end - begin) * piece_bytes, [this, filling, begin, end] {
            const std::span<const Piece> all(filling->pieces);
            for (size_t first = begin; first < end;) {
                size_t last = first;
                while (last < end && all[last].mine && all[last].group == all[first].group) ++last;
                if (last > first)
                    fill(filling->name, filling->stored, filling->weight,
                         all.subspan(first, last - first));
                first = std::max(first + 1, last);
            }
        });
    }
}

OwnedTensor WeightLoader::dequantised(const std::string& name, Range out,
                                      std::span<const PackedRows> packed) {
    const DType stored = dtype(name);
    const int64_t columns = shape(name)[1], in = num_values(stored, columns);
    std::vector<std::byte> memory(static_cast<size_t>(out.num * columns * size_bytes(stored)));
    read(name, std::vector<Range>{out, {0, columns}}, memory);
    const Tensor values(memory.data(), stored, {out.num, columns});
    const std::optional<ScaleForm> form = scale_form(stored);
    std::vector<std::byte> scale_memory;
    Tensor scales;
    if (form) {
        FERRY_CHECK(out.begin % form->rows == 0, "rows {}+{} of {}", out.begin, out.num, name);
        const Range rows = scale_range(out, form->rows),
                    blocks = scale_range({0, in}, form->columns);
        scale_memory.resize(static_cast<size_t>(rows.num * blocks.num * size_bytes(form->dtype)));
        read(name + "_scale", std::vector<Range>{rows, blocks}, scale_memory);
        scales = Tensor(scale_memory.data(), form->dtype, {rows.num, blocks.num});
    }
    // Of the heap, which has it again for the next: a mapping would be cleared and faulted in.
    const auto result_memory =
        std::make_shared_for_overwrite<float[]>(static_cast<size_t>(out.num * in));
    OwnedTensor result(Buffer::adopt(result_memory.get(), static_cast<size_t>(out.num * in) * 4,
                                     [result_memory] {}),
                       DType::f32, {out.num, in});
    widen_rows(values, scales, result.view());

    const bool as_stored = held_dtype(stored) == stored;
    std::vector<uint16_t> wide;
    if (!as_stored) {
        wide.resize(static_cast<size_t>(out.num * in));
        const float* const from = result.view().as<float>();
        std::transform(from, from + wide.size(), wide.begin(), f32_to_bf16);
    }
    for (const PackedRows& part : packed) {
        if (as_stored) {
            const Tensor part_scales = form ? scales.slice_rows(part.rows.begin / form->rows,
                                                                ceil_div(part.rows.num, form->rows))
                                            : Tensor();
            pack(name, *part.weight, part.group, 0,
                 values.slice_rows(part.rows.begin, part.rows.num), form ? &part_scales : nullptr);
        } else {
            pack(name, *part.weight, part.group, 0,
                 Tensor(wide.data() + part.rows.begin * in, DType::bf16, {part.rows.num, in}),
                 nullptr);
        }
    }
    return result;
}

}  // namespace ferry
