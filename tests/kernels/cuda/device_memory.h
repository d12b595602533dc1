// Moving vectors to and from device memory, for tests.
#pragma once

#include <chrono>
#include <vector>

#include "kernels/cuda/runtime.h"

namespace millrace::kernels::cuda {

inline constexpr std::chrono::seconds kTestDeadline{20};

template <class T>
DeviceBuffer upload(StreamRef stream, const std::vector<T>& values) {
  DeviceBuffer buffer(values.size() * sizeof(T));
  copy_to_device(stream, buffer.data(), values.data(), buffer.bytes());
  synchronize(stream, kTestDeadline);
  return buffer;
}

// Waits for the stream first. `count` values from the start of the buffer.
template <class T>
std::vector<T> download(StreamRef stream, const DeviceBuffer& buffer, std::size_t count) {
  std::vector<T> values(count);
  copy_to_host(stream, values.data(), buffer.data(), count * sizeof(T));
  synchronize(stream, kTestDeadline);
  return values;
}
template <class T>
std::vector<T> download(StreamRef stream, const DeviceBuffer& buffer) {
  return download<T>(stream, buffer, buffer.bytes() / sizeof(T));
}

// Device memory of `count` values with every byte 0xff: NaN, or -1.
template <class T>
DeviceBuffer poisoned(StreamRef stream, std::size_t count) {
  DeviceBuffer buffer(count * sizeof(T));
  fill(stream, buffer.data(), 0xff, buffer.bytes());
  return buffer;
}

}  // namespace millrace::kernels::cuda
