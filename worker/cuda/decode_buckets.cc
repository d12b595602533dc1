#include "worker/cuda/decode_buckets.h"

#include <algorithm>

#include "config/check.h"

namespace millrace {

namespace {

// More sequences than this on one lane: a step is no longer bound by launches.
constexpr std::int32_t kLargest = 1024;

std::int32_t next_size(std::int32_t size) {
  if (size < 8) return 2 * size;
  if (size < 128) return size + 8;
  if (size < 256) return size + 16;
  if (size < 512) return size + 32;
  return size + 64;
}

}  // namespace

DecodeBuckets::DecodeBuckets(std::int32_t max_rows) {
  CHECK(max_rows >= 1, "max_rows={}", max_rows);
  sizes_.push_back(1);
  while (sizes_.back() < std::min(max_rows, kLargest)) sizes_.push_back(next_size(sizes_.back()));
}

int DecodeBuckets::index_of(std::int32_t rows) const {
  CHECK(rows >= 1, "rows={}", rows);
  const auto at = std::lower_bound(sizes_.begin(), sizes_.end(), rows);
  return at == sizes_.end() ? -1 : static_cast<int>(at - sizes_.begin());
}

}  // namespace millrace
