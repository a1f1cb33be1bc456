#include "runtime/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <filesystem>
#include <mutex>
#include <set>
#include <sstream>

#include "base/error.h"
#include "runtime/checkpoint_format.h"
#include "runtime/checksum.h"
#include "runtime/convert_plan.h"
#include "runtime/hdf5_file.h"
#include "runtime/hf_names.h"
#include "runtime/parallel.h"
#include "runtime/problems.h"
#include "runtime/shard_index.h"

namespace ferry {
namespace {

namespace fs = std::filesystem;
using namespace checkpoint_format;

constexpr int64_t kVerifyChunkBytes = int64_t{256} << 10;  // stays in cache until it is summed

template <typename T>
const T* get_if(const Attributes& attributes, const char* name) {
    const auto it = attributes.find(name);
    return it == attributes.end() ? nullptr : std::get_if<T>(&it->second);
}

struct ShardEntry {
    std::string file;
    int64_t size_bytes;
};

std::vector<ShardEntry> parse_shards(const std::string& text, const std::string& where) {
    std::vector<ShardEntry> shards;
    std::istringstream lines(text);
    for (ShardEntry entry; lines >> entry.file >> entry.size_bytes;) {
        if (entry.file.find('/') != std::string::npos || entry.file[0] == '.')
            throw Error(ErrorKind::checkpoint, "{}: its list of shards leaves the folder", where);
        shards.push_back(entry);
    }
    if (!lines.eof() || shards.empty())
        throw Error(ErrorKind::checkpoint, "{}: its list of shards cannot be read", where);
    return shards;
}

// Turns a shard's dataset into a piece; notes what is wrong with it.
std::optional<Checkpoint::Piece> make_piece(const Hdf5Dataset& dataset, const InputFile& file,
                                            Problems& problems) {
    Checkpoint::Piece piece{.name = dataset.name,
                            .part = {.first_row = 0,
                                     .num_rows = dataset.info.shape[0],
                                     .file = &file,
                                     .offset_bytes = dataset.offset_bytes},
                            .size_bytes = size_bytes(dataset.info),
                            .checksum = 0,
                            .info = dataset.info,
                            .blocks = {}};
    if (const auto* row = get_if<int64_t>(dataset.attributes, kFirstRowAttribute))
        piece.part.first_row = *row;
    const auto* text = get_if<std::string>(dataset.attributes, kChecksumAttribute);
    const bool has_checksum =
        text != nullptr &&
        std::from_chars(text->data(), text->data() + text->size(), piece.checksum, 16).ptr ==
            text->data() + text->size();
    if (!has_checksum) {
        problems.add("{}: tensor {} has no checksum", file.path(), dataset.name);
    } else if (piece.part.first_row < 0 || piece.part.first_row > kMaxExtent) {
        problems.add("{}: tensor {} has a wrong first_row", file.path(), dataset.name);
    } else if (dataset.offset_bytes < 0 || dataset.offset_bytes > file.size_bytes() ||
               piece.size_bytes > file.size_bytes() - dataset.offset_bytes) {
        problems.add("{}: tensor {} goes beyond the end of the file (truncated?)", file.path(),
                     dataset.name);
    } else {
        return piece;
    }
    return std::nullopt;
}

// As its sums have them; 0 without any.
int64_t num_blocks(const Checkpoint::Piece& piece) {
    if (piece.blocks.rows_per_block < 1) return 0;
    return BlockLayout(piece.info, piece.blocks.rows_per_block).num_blocks();
}

// One tensor of its pieces in row order, as far as they follow each other and fit: what is missing
// shows in its shape.
StoredTensor assemble(std::vector<std::pair<Checkpoint::Piece, TensorInfo>> pieces) {
    std::ranges::sort(pieces, {}, [](const std::pair<Checkpoint::Piece, TensorInfo>& p) {
        return p.first.part.first_row;
    });
    StoredTensor tensor{.info = pieces[0].second, .parts = {}};
    int64_t rows = 0;
    for (const auto& [piece, info] : pieces) {
        const bool fits =
            info.dtype == tensor.info.dtype &&
            std::ranges::equal(info.shape.begin() + 1, info.shape.end(),
                               tensor.info.shape.begin() + 1, tensor.info.shape.end());
        if (!fits || piece.part.first_row != rows) break;
        tensor.parts.push_back(piece.part);
        rows += piece.part.num_rows;
    }
    tensor.info.shape[0] = rows;
    return tensor;
}

void check_tensor(const std::map<std::string, StoredTensor>& tensors, const TensorSpec& spec,
                  Problems& problems) {
    const auto it = tensors.find(spec.name);
    if (it == tensors.end()) {
        problems.add("tensor {} is missing", spec.name);
        return;
    }
    const TensorInfo& info = it->second.info;
    const auto shape = stored_shape(spec, info.dtype);
    if (!shape) {
        problems.add("tensor {} has dtype {}, expected f32 or bf16", spec.name,
                     to_string(info.dtype));
        return;
    }
    if (info.shape != *shape) {
        problems.add("tensor {} has shape {}, expected {}", spec.name, describe_shape(info.shape),
                     describe_shape(*shape));
        return;
    }
    if (!scale_form(info.dtype)) return;
    const auto scales = tensors.find(spec.name + "_scale");
    const TensorInfo expected = scale_info(info);
    if (scales == tensors.end())
        problems.add("tensor {}_scale is missing", spec.name);
    else if (scales->second.info.shape != expected.shape ||
             scales->second.info.dtype != expected.dtype)
        problems.add("tensor {}_scale is {} {}, expected {} {}", spec.name,
                     to_string(scales->second.info.dtype),
                     describe_shape(scales->second.info.shape), to_string(expected.dtype),
                     describe_shape(expected.shape));
}

}  // namespace

// Blocks that a box is made of are compared where they were read to. Of a box that begins or ends
// within a block, or has some columns only, the blocks that it touches are read whole, once.
struct Checkpoint::CheckedReads {
    struct Dataset {
        const Piece& piece;
        BlockLayout layout;
        std::vector<std::atomic<bool>> is_checked;  // by block that was read for that alone

        explicit Dataset(const Piece& p)
            : piece(p),
              layout(p.info, p.blocks.rows_per_block),
              is_checked(static_cast<size_t>(layout.num_blocks())) {}
    };

    explicit CheckedReads(const std::vector<Piece>& pieces) {
        for (const Piece& piece : pieces)
            datasets[piece.name].push_back(std::make_unique<Dataset>(piece));
        for (auto& [name, parts] : datasets)
            std::ranges::sort(parts, {}, [](const auto& p) { return p->piece.part.first_row; });
    }

    void check(const std::string& name, std::span<const Range> box, const std::byte* data) {
        const size_t rank = box.size();
        for (const auto& each : datasets.at(name)) {
            Dataset& dataset = *each;
            const StoredPart& part = dataset.piece.part;
            const int64_t begin = std::max(box[0].begin, part.first_row);
            const int64_t end = std::min(box[0].begin + box[0].num, part.first_row + part.num_rows);
            if (begin >= end) continue;
            const Range inside{begin - part.first_row, end - begin};
            const BlockLayout& layout = dataset.layout;
            if (rank == 1) {
                check_rows(dataset, {0, 1}, inside.num == part.num_rows ? data : nullptr);
                data += inside.num * size_bytes(dataset.piece.info.dtype);
                continue;
            }
            if (rank > 3) {  // of no model: all of it
                for (int64_t m = 0; m < layout.num_matrices; ++m)
                    check_rows(dataset, {m * layout.matrix_rows, layout.matrix_rows}, nullptr);
                continue;
            }
            const bool all_columns = box[rank - 1].num == dataset.piece.info.shape[rank - 1];
            const int64_t first_matrix = rank == 2 ? 0 : inside.begin;
            const int64_t num_matrices = rank == 2 ? 1 : inside.num;
            const Range rows = rank == 2 ? inside : box[1];
            for (int64_t m = first_matrix; m < first_matrix + num_matrices; ++m) {
                check_rows(dataset, {m * layout.matrix_rows + rows.begin, rows.num},
                           all_columns ? data : nullptr);
                data += all_columns ? rows.num * layout.row_bytes : 0;
            }
        }
    }

    // Of one matrix; `data` may be null.
    void check_rows(Dataset& dataset, Range rows, const std::byte* data) {
        if (rows.num == 0) return;
        const BlockLayout& layout = dataset.layout;
        const int64_t first = layout.block_of(rows.begin);
        const int64_t last = layout.block_of(rows.begin + rows.num - 1);
        for (int64_t block = first; block <= last; ++block) {
            const Range all = layout.rows_of(block);
            const bool is_there = data != nullptr && all.begin >= rows.begin &&
                                  all.begin + all.num <= rows.begin + rows.num;
            if (is_there)
                compare(dataset, block, data + (all.begin - rows.begin) * layout.row_bytes);
            else if (!dataset.is_checked[static_cast<size_t>(block)].exchange(true))
                read_and_compare(dataset, block);
        }
    }
    void read_and_compare(Dataset& dataset, int64_t block) {
        thread_local std::vector<std::byte> bytes;
        const Range rows = dataset.layout.rows_of(block);
        const StoredPart& part = dataset.piece.part;
        bytes.resize(static_cast<size_t>(rows.num * dataset.layout.row_bytes));
        part.file->read_at(part.offset_bytes + rows.begin * dataset.layout.row_bytes, bytes.size(),
                           bytes.data());
        compare(dataset, block, bytes.data());
    }
    void compare(const Dataset& dataset, int64_t block, const std::byte* data) {
        const int64_t num_bytes = dataset.layout.rows_of(block).num * dataset.layout.row_bytes;
        const uint64_t expected = dataset.piece.blocks.sums[static_cast<size_t>(block)];
        if (checksum(data, static_cast<size_t>(num_bytes)) == expected) return;
        const std::lock_guard lock(mutex);
        damaged.insert(fmt::format("{}: tensor {} fails its checksum",
                                   dataset.piece.part.file->path(), dataset.piece.name));
    }
    void require_sound(const std::string& directory) const {
        const std::lock_guard lock(mutex);
        Problems problems;
        for (const std::string& text : damaged) problems.add("{}", text);
        problems.throw_if_any(directory);
    }

    std::map<std::string, std::vector<std::unique_ptr<Dataset>>> datasets;
    mutable std::mutex mutex;
    std::set<std::string> damaged;
};

Checkpoint::Checkpoint(const std::string& path) {
    const fs::path given(path);
    const std::string master_path = fs::is_directory(given) ? (given / kMasterFile).string() : path;
    directory_ = fs::path(master_path).parent_path().string();
    if (directory_.empty()) directory_.assign(1, '.');

    const Hdf5File master = Hdf5File::open(master_path);
    const Attributes attributes = master.attributes("");
    const auto* version = get_if<int64_t>(attributes, kVersionAttribute);
    const auto* fingerprint = get_if<std::string>(attributes, kFingerprintAttribute);
    const auto* shard_list = get_if<std::string>(attributes, kShardsAttribute);
    if (version == nullptr || fingerprint == nullptr || shard_list == nullptr)
        throw Error(ErrorKind::checkpoint, "{}: is not the master file of a checkpoint",
                    master_path);
    if (*version != kVersion)
        throw Error(ErrorKind::checkpoint, "{}: has format {}, this build reads {}; convert again",
                    master_path, *version, kVersion);
    description_ = to_model_description(attributes, master_path);
    config_text_ = master.read_text(kConfigText);

    Problems problems;
    std::map<std::string, std::vector<std::pair<Piece, TensorInfo>>> found;
    for (const ShardEntry& entry : parse_shards(*shard_list, master_path)) {
        try {
            const std::string shard_path = directory_ + "/" + entry.file;
            const Hdf5File shard = Hdf5File::open(shard_path);
            shards_.push_back(std::make_unique<InputFile>(shard_path));
            const Attributes shard_attributes = shard.attributes("");
            const auto* shard_print = get_if<std::string>(shard_attributes, kFingerprintAttribute);
            if (shard_print == nullptr || *shard_print != *fingerprint)
                throw Error(ErrorKind::checkpoint, "{}: belongs to another checkpoint", shard_path);
            if (shards_.back()->size_bytes() != entry.size_bytes)
                throw Error(ErrorKind::checkpoint, "{}: has {} bytes, expected {}", shard_path,
                            shards_.back()->size_bytes(), entry.size_bytes);
            const std::optional<std::string> index = shard.find_text(kIndexText);
            const std::optional<std::string> sums = shard.find_text(kBlockSumsText);
            std::map<std::string, BlockSums> blocks;
            if (sums) blocks = parse_block_sums(*sums, shard_path);
            for (const Hdf5Dataset& dataset :
                 index ? parse_shard_index(*index, shard_path) : shard.datasets())
                if (std::optional<Piece> piece = make_piece(dataset, *shards_.back(), problems)) {
                    found[dataset.name].emplace_back(*piece, dataset.info);
                    if (const auto of_piece = blocks.find(dataset.name); of_piece != blocks.end())
                        piece->blocks = std::move(of_piece->second);
                    if (sums && std::ssize(piece->blocks.sums) != num_blocks(*piece))
                        throw Error(ErrorKind::checkpoint,
                                    "{}: its list of block checksums does not fit tensor {}; "
                                    "convert again",
                                    shard_path, dataset.name);
                    pieces_.push_back(std::move(*piece));
                }
        } catch (const Error& error) {
            problems.add("{}", error.what());
        }
    }
    problems.throw_if_any(master_path);  // a broken shard would make all of its tensors missing
    for (auto& [name, pieces] : found) tensors_.emplace(name, assemble(std::move(pieces)));
    for (const TensorSpec& spec : model_tensors(config())) check_tensor(tensors_, spec, problems);
    for (int64_t idx = 0; idx < description_.num_mtp_layers; ++idx) {
        if (!tensors_.contains(fmt::format("mtp/{}/eh_proj", idx))) continue;
        for (const TensorSpec& spec : mtp_tensors(config(), idx))
            if (!is_shared_with_model(spec) || tensors_.contains(spec.name))
                check_tensor(tensors_, spec, problems);
    }
    problems.throw_if_any(master_path);
}

Checkpoint::~Checkpoint() = default;

std::optional<TensorInfo> Checkpoint::find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? std::nullopt : std::optional(it->second.info);
}

void Checkpoint::read(const std::string& name, std::span<const Range> ranges, void* dst) {
    const auto it = tensors_.find(name);
    if (it == tensors_.end())
        throw Error(ErrorKind::checkpoint, "{}: has no tensor {}", directory_, name);
    read_box(it->second, ranges, dst);
    if (checked_reads_) checked_reads_->check(name, ranges, static_cast<const std::byte*>(dst));
}

bool Checkpoint::has_block_sums() const {
    return std::ranges::all_of(pieces_, [](const Piece& p) { return !p.blocks.sums.empty(); });
}

void Checkpoint::check_reads() {
    FERRY_CHECK(has_block_sums(), "{} has no checksums of blocks", directory_);
    checked_reads_ = std::make_unique<CheckedReads>(pieces_);
}

void Checkpoint::require_sound() const {
    if (checked_reads_) checked_reads_->require_sound(directory_);
}

void Checkpoint::verify(ThreadPool& pool, const std::function<void(int64_t bytes)>& progress,
                        size_t part, size_t num_parts) const {
    FERRY_CHECK(part < num_parts, "part {} of {}", part, num_parts);
    std::vector<const Piece*> mine;
    for (size_t i = part; i < pieces_.size(); i += num_parts) mine.push_back(&pieces_[i]);
    std::ranges::stable_sort(mine, std::ranges::greater{}, &Piece::size_bytes);  // evens the end

    Problems problems;
    std::mutex mutex;
    parallel_tasks(pool, static_cast<int64_t>(mine.size()), [&](int64_t task) {
        const Piece& piece = *mine[static_cast<size_t>(task)];
        thread_local std::vector<std::byte> chunk(static_cast<size_t>(kVerifyChunkBytes));
        Checksum sum;
        for (int64_t done = 0; done < piece.size_bytes;) {
            const int64_t num = std::min(kVerifyChunkBytes, piece.size_bytes - done);
            piece.part.file->read_at(piece.part.offset_bytes + done, static_cast<size_t>(num),
                                     chunk.data());
            sum.add(chunk.data(), static_cast<size_t>(num));
            done += num;
            if (progress) progress(num);
        }
        if (sum.value() == piece.checksum) return;
        const std::lock_guard lock(mutex);
        problems.add("{}: tensor {} fails its checksum", piece.part.file->path(), piece.name);
    });
    problems.throw_if_any(directory_);
}

}  // namespace ferry
