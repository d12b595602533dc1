// Brings mapped weights into memory before they are needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace millrace {

// Reads one byte of every page of `ranges` with `threads` threads (the caller is one of them),
// after asking the kernel to read ahead. `progress` (may be empty) is called on the calling thread
// with bytes touched and bytes in all, never decreasing, and once at the end with both equal.
// Touches no page that does not overlap a range.
void prefault(std::span<const std::span<const std::byte>> ranges, int threads,
              const std::function<void(std::uint64_t, std::uint64_t)>& progress);

// Sorts ranges and merges those that overlap or touch, so that a tied head is counted once.
std::vector<std::span<const std::byte>> merge_ranges(
    std::vector<std::span<const std::byte>> ranges);

}  // namespace millrace
