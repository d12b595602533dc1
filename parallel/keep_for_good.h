// Memory that outlives its owner: a transport may read or write the buffers of a failed call, and a
// hanging device its memory, until the process ends.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

namespace millrace::parallel {

// Never destroys `value`. It stays where leak checkers find it. Thread-safe.
template <class T>
void keep_for_good(T value) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<T>();
  const std::lock_guard lock(mutex);
  kept->push_back(std::move(value));
}

}  // namespace millrace::parallel
