// The row counts for which decode steps are recorded as graphs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace millrace {

// 1, 2, 4, 8, then in steps of 8 to 128, 16 to 256, 32 to 512, 64 to 1024, up to the first that
// holds `max_rows`. Padding is thus below an eighth from 64 rows on; below, a step reads nearly the
// same weights whatever its rows are, so what counts is that small batches are not padded far: the
// tiles of the GEMMs have 8, 16, 32, 64 tokens. 1,024 rows need 43 graphs.
class DecodeBuckets {
 public:
  explicit DecodeBuckets(std::int32_t max_rows);

  std::span<const std::int32_t> sizes() const { return sizes_; }  // ascending
  std::int32_t largest() const { return sizes_.back(); }
  // Index of the smallest bucket of at least `rows` rows, -1 when none is. rows >= 1.
  int index_of(std::int32_t rows) const;

 private:
  std::vector<std::int32_t> sizes_;
};

}  // namespace millrace
