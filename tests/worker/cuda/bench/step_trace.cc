#include "tests/worker/cuda/bench/step_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>

#if !defined(MILLRACE_CUDA_EMULATED)
#include "kernels/cuda/launch.cuh"
#endif

namespace millrace::bench {

#if defined(MILLRACE_CUDA_EMULATED)

bool can_trace() { return false; }
void start_trace() {}
std::vector<TracedKernel> end_trace() { return {}; }

#else

namespace {

using kernels::cuda::Event;
using kernels::cuda::LaunchShape;
using kernels::cuda::StreamRef;

struct Trace {
  bool on = false;
  std::vector<Event> events;        // one before the first launch, one behind each
  std::vector<std::string> labels;  // of each launch
};
Trace trace;

void mark(StreamRef stream) {
  trace.events.emplace_back(Event::Kind::kTiming);
  trace.events.back().record(stream);
}

std::string label_of(const LaunchShape& shape) {
  const std::string_view path = shape.file;
  return fmt::format("{} {}x{}", path.substr(path.rfind('/') + 1), shape.grid.x, shape.grid.y);
}

}  // namespace

bool can_trace() { return true; }

void start_trace() {
  trace = {};
  trace.on = true;
}

std::vector<TracedKernel> end_trace() {
  trace.on = false;
  std::map<std::string, TracedKernel> sums;
  if (!trace.events.empty()) trace.events.back().synchronize(std::chrono::milliseconds(30'000));
  for (std::size_t i = 0; i < trace.labels.size(); ++i) {
    TracedKernel& sum = sums[trace.labels[i]];
    sum.name = trace.labels[i];
    ++sum.launches;
    sum.us += 1e3 * static_cast<double>(elapsed_ms(trace.events[i], trace.events[i + 1]));
  }
  std::vector<TracedKernel> out;
  for (auto& [label, sum] : sums) out.push_back(std::move(sum));
  std::ranges::sort(out, std::greater<>(), &TracedKernel::us);
  trace = {};
  return out;
}

#endif

}  // namespace millrace::bench

#if !defined(MILLRACE_CUDA_EMULATED)

// kernels::cuda::detail::launch_kernel. CMakeLists.txt has the same name behind --wrap.
#define MILLRACE_LAUNCH_KERNEL \
  _ZN8millrace7kernels4cuda6detail13launch_kernelEPKvRKNS1_11LaunchShapeENS1_9StreamRefEPPv
#define MILLRACE_JOIN2(a, b) a##b
#define MILLRACE_JOIN(a, b) MILLRACE_JOIN2(a, b)

extern "C" void MILLRACE_JOIN(__real_, MILLRACE_LAUNCH_KERNEL)(
    const void* kernel, const millrace::kernels::cuda::LaunchShape& shape,
    millrace::kernels::cuda::StreamRef stream, void** args);

extern "C" void MILLRACE_JOIN(__wrap_, MILLRACE_LAUNCH_KERNEL)(
    const void* kernel, const millrace::kernels::cuda::LaunchShape& shape,
    millrace::kernels::cuda::StreamRef stream, void** args) {
  using millrace::bench::trace;
  if (trace.on && trace.events.empty()) millrace::bench::mark(stream);
  MILLRACE_JOIN(__real_, MILLRACE_LAUNCH_KERNEL)(kernel, shape, stream, args);
  if (!trace.on) return;
  trace.labels.push_back(millrace::bench::label_of(shape));
  millrace::bench::mark(stream);
}

#endif
