// Checksums of blocks of a dataset, beside the one of all of it: a load checks what it reads on its
// way, in one pass. A block is some rows of one matrix of [..., rows, columns], as many as a load
// reads at once; a vector is one block. A shard has them in its text /block_sums: lines "NAME
// ROWS_PER_BLOCK XXH3...", the last one "xxh3 HEX" of all before it.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "layers/kernels.h"
#include "layers/weight_source.h"
#include "runtime/checksum.h"

namespace ferry {

// Rows are numbered over all matrices of a dataset, one after the other.
struct BlockLayout {
    int64_t num_matrices = 1;
    int64_t matrix_rows = 1;  // 1 of a vector, whose row is all of it
    int64_t row_bytes = 0;
    int64_t rows_per_block = 1;  // the last block of a matrix may have fewer

    explicit BlockLayout(const TensorInfo& info);  // as a load reads it
    BlockLayout(const TensorInfo& info, int64_t num_rows_per_block);

    int64_t blocks_per_matrix() const { return ceil_div(matrix_rows, rows_per_block); }
    int64_t num_blocks() const { return num_matrices * blocks_per_matrix(); }
    Range rows_of(int64_t block) const;
    int64_t block_of(int64_t row) const;
};

struct BlockSums {
    int64_t rows_per_block = 0;
    std::vector<uint64_t> sums;  // in order of blocks
};

// Of a dataset whose bytes come in order.
class BlockSummer {
  public:
    explicit BlockSummer(const TensorInfo& info) : layout_(info) {}
    void add(const void* data, size_t num_bytes);
    BlockSums take();  // once all bytes have come

  private:
    BlockLayout layout_;
    std::vector<uint64_t> sums_;
    Checksum sum_;
    int64_t num_bytes_ = 0;  // of the block under way
};

std::string to_text(const std::map<std::string, BlockSums>& sums);
// The same. Throws Error(checkpoint) naming `where` when the text is not what was written.
std::map<std::string, BlockSums> parse_block_sums(const std::string& text,
                                                  const std::string& where);

}  // namespace ferry
