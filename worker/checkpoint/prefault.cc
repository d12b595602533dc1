#include "worker/checkpoint/prefault.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace millrace {
namespace {

using Range = std::span<const std::byte>;

// Small enough for smooth progress and an even split, large enough for sequential reads from disk.
constexpr std::size_t kTouchBytes = std::size_t{4} << 20;

std::vector<Range> cut(std::span<const Range> ranges) {
  std::vector<Range> chunks;
  for (const Range range : ranges) {
    for (std::size_t at = 0; at < range.size(); at += kTouchBytes) {
      chunks.push_back(range.subspan(at, std::min(kTouchBytes, range.size() - at)));
    }
  }
  return chunks;
}

void touch(Range chunk, std::size_t page) {
  const auto begin = reinterpret_cast<std::uintptr_t>(chunk.data());
  const std::uintptr_t first_page = begin / page * page;
  ::madvise(reinterpret_cast<void*>(first_page), begin + chunk.size() - first_page, MADV_WILLNEED);
  volatile std::byte sink{};
  sink = chunk.front();
  for (std::uintptr_t at = first_page + page; at < begin + chunk.size(); at += page) {
    sink = *reinterpret_cast<const std::byte*>(at);
  }
  static_cast<void>(sink);
}

}  // namespace

std::vector<Range> merge_ranges(std::vector<Range> ranges) {
  std::erase_if(ranges, [](Range range) { return range.empty(); });
  std::sort(ranges.begin(), ranges.end(),
            [](Range a, Range b) { return std::less<>()(a.data(), b.data()); });
  std::vector<Range> merged;
  for (const Range range : ranges) {
    if (!merged.empty()) {
      Range& last = merged.back();
      const std::byte* end = last.data() + last.size();
      if (range.data() <= end) {
        last = {last.data(), std::max(end, range.data() + range.size())};
        continue;
      }
    }
    merged.push_back(range);
  }
  return merged;
}

void prefault(std::span<const Range> ranges, int threads,
              const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::vector<Range> chunks = cut(ranges);
  std::uint64_t total = 0;
  for (const Range chunk : chunks) total += chunk.size();

  std::atomic<std::size_t> next{0};
  std::atomic<std::uint64_t> done{0};
  const auto work = [&](bool report) {
    for (std::size_t i = next++; i < chunks.size(); i = next++) {
      touch(chunks[i], page);
      const std::uint64_t touched = done += chunks[i].size();
      if (report && progress && touched < total) progress(touched, total);
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int i = 1; i < threads; ++i) helpers.emplace_back(work, false);
    work(true);
  }
  if (progress) progress(total, total);
}

}  // namespace millrace
