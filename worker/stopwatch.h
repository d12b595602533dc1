// Elapsed time for metrics.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

namespace millrace {

class Stopwatch {
 public:
  // Nanoseconds since the last call, or since construction.
  std::uint64_t lap_ns() {
    const auto now = std::chrono::steady_clock::now();
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(now - std::exchange(last_, now))
            .count());
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace millrace
