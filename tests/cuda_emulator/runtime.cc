// The emulator's implementation of kernels/cuda/runtime.h: device memory is host memory, streams do
// their work at once and in order, captures record it.
#include "kernels/cuda/runtime.h"

#include <fmt/format.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "tests/cuda_emulator/scheduler.h"
#include "tests/cuda_emulator/settings.h"
#include "tests/cuda_emulator/stream_work.h"
#include "tests/cuda_emulator/tensor_map.h"

namespace millrace::kernels::cuda {

using cuda_emulator::enter_call;
using cuda_emulator::settings;

namespace {

using cuda_emulator::StreamWork;
using Work = std::function<void()>;

struct Capture {
  std::vector<Work> work;
  std::vector<struct StreamState*> streams;  // that joined
};

struct StreamState {
  std::shared_ptr<Capture> capture;
  std::shared_ptr<StreamWork> work = StreamWork::make();
};

// How often an event is asked for before lazy work is done for it.
constexpr int kLazyLooks = 50;

struct EventState {
  std::weak_ptr<Capture> captured;  // recorded in a capture
  bool recorded = false;
  std::shared_ptr<StreamWork> work;  // of the stream that recorded it,
  std::uint64_t moment = 0;          // when so much had been given to it
  int looks = 0;
  bool timing = false;
  std::chrono::steady_clock::time_point time;
};

struct GraphState {
  std::vector<Work> work;
};

thread_local int captures = 0;          // begun by this thread and not ended
thread_local std::uint64_t awaits = 0;  // await_previous_kernel(), by kernels run on this thread

// Stands for the null handle.
StreamState& default_stream() {
  thread_local StreamState state;
  return state;
}

StreamState& state(StreamRef stream) {
  return stream.handle == nullptr ? default_stream() : *static_cast<StreamState*>(stream.handle);
}

void submit(StreamRef stream, Work work) {
  if (StreamState& s = state(stream); s.capture != nullptr) {
    s.capture->work.push_back(std::move(work));
  } else {
    s.work->add(std::move(work));
  }
}

[[noreturn]] void refuse_in_capture(const char* operation) {
  throw CudaError(operation, kErrorCaptureUnsupported,
                  "operation not permitted when stream is capturing");
}

void wait_done(const char* operation, std::chrono::milliseconds deadline,
               const std::function<bool()>& is_done) {
  const auto start = std::chrono::steady_clock::now();
  while (!is_done()) {
    if (deadline != kNoDeadline && std::chrono::steady_clock::now() - start >= deadline) {
      throw CudaError(operation, kErrorDeadline,
                      fmt::format("not done after {} ms", deadline.count()));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

bool capturing_by_this_thread() { return captures > 0; }

bool device_hangs() noexcept {
  return false;
}  // here a wait that is given up leaves nothing behind

CudaError::CudaError(std::string operation, int code, const std::string& text)
    : std::runtime_error(fmt::format("{}: {} ({})", operation, text, code)),
      operation_(std::move(operation)),
      code_(code) {}

// ---- streams and events -----------------------------------------------------------------------

Stream::Stream(int, bool overlap) : overlap_(overlap) {
  enter_call("cudaStreamCreate");
  handle_ = new StreamState;
}
Stream::~Stream() {
  if (handle_ != nullptr) StreamWork::finish_all();
  delete static_cast<StreamState*>(handle_);
}

bool done(StreamRef stream) {
  if (state(stream).capture != nullptr) refuse_in_capture("cudaStreamQuery");
  enter_call("cudaStreamQuery");
  if (settings().stalled) return false;
  state(stream).work->finish();
  return true;
}

void synchronize(StreamRef stream, std::chrono::milliseconds deadline) {
  wait_done("cudaStreamQuery", deadline, [&] { return done(stream); });
}

Event::Event(Kind kind) {
  enter_call("cudaEventCreate");
  auto* e = new EventState;
  e->timing = kind == Kind::kTiming;
  handle_ = e;
}
Event::~Event() { delete static_cast<EventState*>(handle_); }

void Event::record(StreamRef stream) {
  enter_call("cudaEventRecord");
  auto* e = static_cast<EventState*>(handle_);
  e->captured = state(stream).capture;
  e->recorded = state(stream).capture == nullptr;  // in a capture it is an order, not a moment
  e->work = e->recorded ? state(stream).work : nullptr;
  e->moment = state(stream).work->added();
  e->looks = 0;
  e->time = std::chrono::steady_clock::now();
}

void Event::make_wait(StreamRef stream) const {
  enter_call("cudaStreamWaitEvent");
  const auto* e = static_cast<EventState*>(handle_);
  const auto capture = e->captured.lock();
  StreamState& s = state(stream);
  if (capture == nullptr && s.capture == nullptr && e->work != nullptr && e->work != s.work) {
    s.work->add([work = e->work, moment = e->moment] { work->run_until(moment); });
    return;
  }
  if (capture == nullptr || s.capture == capture) return;  // in order already
  if (s.capture != nullptr) {
    throw CudaError("cudaStreamWaitEvent", 905, "dependency between two captures");
  }
  s.capture = capture;
  capture->streams.push_back(&s);
}

bool Event::done() const {
  auto* e = static_cast<EventState*>(handle_);
  if (!e->captured.expired()) refuse_in_capture("cudaEventQuery");
  enter_call("cudaEventQuery");
  if (settings().stalled) return false;
  if (e->work == nullptr || e->work->done(e->moment)) return true;
  if (++e->looks < kLazyLooks) return false;
  e->work->run_until(e->moment);
  return true;
}

void Event::synchronize(std::chrono::milliseconds deadline) const {
  static_cast<EventState*>(handle_)->looks = kLazyLooks;  // it is waited for
  wait_done("cudaEventQuery", deadline, [this] { return done(); });
}

float elapsed_ms(const Event& start, const Event& end) {
  const auto* from = static_cast<EventState*>(start.handle());
  const auto* to = static_cast<EventState*>(end.handle());
  if (!from->timing || !to->timing || !from->recorded || !to->recorded) {
    throw CudaError("cudaEventElapsedTime", 400, "invalid resource handle");
  }
  return std::chrono::duration<float, std::milli>(to->time - from->time).count();
}

// ---- memory -----------------------------------------------------------------------------------

void copy_on_device(StreamRef stream, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  enter_call("cudaMemcpyAsync");
  submit(stream, [=] { std::memcpy(to, from, bytes); });
}
void copy_to_device(StreamRef stream, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0 || !settings().lazy || capturing(stream) || cuda_emulator::pinned(from)) {
    copy_on_device(stream, to, from, bytes);
    return;
  }
  enter_call("cudaMemcpyAsync");
  const auto* begin = static_cast<const std::byte*>(from);
  submit(stream, [to, taken = std::vector<std::byte>(begin, begin + bytes)] {
    std::memcpy(to, taken.data(), taken.size());
  });
}
void copy_to_host(StreamRef stream, void* to, const void* from, std::size_t bytes) {
  copy_on_device(stream, to, from, bytes);
  if (!capturing(stream) && !cuda_emulator::pinned(to)) state(stream).work->finish();
}
void fill(StreamRef stream, void* p, int value, std::size_t bytes) {
  if (bytes == 0) return;
  enter_call("cudaMemsetAsync");
  submit(stream, [=] { std::memset(p, value, bytes); });
}

// ---- graphs -----------------------------------------------------------------------------------

bool capturing(StreamRef stream) { return state(stream).capture != nullptr; }

void Graph::begin_capture(StreamRef stream) {
  StreamState& s = state(stream);
  if (stream.handle == nullptr || s.capture != nullptr) refuse_in_capture("cudaStreamBeginCapture");
  ++captures;
  s.capture = std::make_shared<Capture>();
  s.capture->streams.push_back(&s);
}

void Graph::abandon_capture(StreamRef stream) noexcept {
  const auto capture = state(stream).capture;
  if (capture == nullptr) return;
  --captures;
  for (StreamState* s : capture->streams) s->capture = nullptr;
}

Graph Graph::end_capture(StreamRef stream) {
  const auto capture = state(stream).capture;
  if (capture == nullptr) throw CudaError("cudaStreamEndCapture", 901, "no capture");
  abandon_capture(stream);
  enter_call("cudaGraphInstantiate");
  Graph graph;
  graph.exec_ = new GraphState{std::move(capture->work)};
  return graph;
}

Graph::~Graph() { delete static_cast<GraphState*>(exec_); }
std::size_t Graph::node_count() const {
  return exec_ == nullptr ? 0 : static_cast<GraphState*>(exec_)->work.size();
}
void Graph::launch(StreamRef stream) const {
  enter_call("cudaGraphLaunch");
  if (exec_ == nullptr) throw CudaError("cudaGraphLaunch", kErrorInvalidValue, "an empty graph");
  // A copy of the work, as the graph may be destroyed before a graph it was captured into.
  submit(stream, [work = static_cast<GraphState*>(exec_)->work] {
    for (const Work& w : work) w();
  });
}

// ---- kernels ----------------------------------------------------------------------------------

void await_previous_kernel() { ++awaits; }

void detail::launch_kernel(const LaunchShape& shape, StreamRef stream, std::function<void()> body) {
  const std::string_view path = shape.file;
  const auto place = fmt::format("{}:{}", path.substr(path.rfind('/') + 1), shape.line);
  enter_call("launch", place);
  if (stream.overlap) enter_call("early launch", place);
  const std::size_t threads =
      static_cast<std::size_t>(shape.block.x) * shape.block.y * shape.block.z;
  if (threads == 0 || threads > 1024 || shape.block.z > 64 || shape.grid.y > 65535 ||
      shape.grid.z > 65535 || shape.smem_bytes > cuda_emulator::smem_limit()) {
    throw CudaError(
        "launch " + place, 9,
        fmt::format("invalid configuration: {} threads, grid {} {} {}, {} bytes of "
                    "dynamic shared memory",
                    threads, shape.grid.x, shape.grid.y, shape.grid.z, shape.smem_bytes));
  }
  // A multiprocessor keeps 1 KiB for each block, and one block may have all of the rest. Kernels
  // count on Hopper's and Blackwell's 228 KiB; older devices run fewer blocks.
  const std::size_t reserved = std::size_t{1} << 10;
  const auto wanted = static_cast<std::size_t>(shape.blocks_per_sm);
  if (wanted * (shape.smem_bytes + reserved) > (std::size_t{228} << 10) ||
      wanted * threads > 2048) {
    throw CudaError("launch " + place, 9,
                    fmt::format("{} blocks of {} threads and {} bytes of dynamic shared memory do "
                                "not fit into a multiprocessor",
                                wanted, threads, shape.smem_bytes));
  }
  submit(stream, [=, body = std::move(body)] {
    const std::uint64_t before = awaits;
    cuda_emulator::Scheduler::of_this_thread().run_grid(place, shape.grid, shape.block,
                                                        shape.smem_bytes, body);
    const std::uint64_t expected =
        std::uint64_t{threads} * shape.grid.x * shape.grid.y * shape.grid.z;
    // The engine's kernels on whatever stream; those of tests where it would matter.
    const bool engine = path.find("/kernels/cuda/") != std::string_view::npos &&
                        path.find("/tests/") == std::string_view::npos;
    if ((!stream.overlap && !engine) || awaits - before == expected) return;
    throw cuda_emulator::KernelError(fmt::format(
        "{}: {} of {} threads called await_previous_kernel()", place, awaits - before, expected));
  });
}

// ---- tensor maps ------------------------------------------------------------------------------

TensorMap make_tensor_map(const TensorMapSpec& spec) {
  const std::int64_t stride =
      (spec.row_stride == 0 ? spec.cols : spec.row_stride) * spec.element_bytes;
  if (current_cc() < 90) throw CudaError("cuTensorMapEncodeTiled", 801, "not supported");
  check_tensor_map(spec);
  return cuda_emulator::pack({cuda_emulator::kTensorMapMagic,
                              static_cast<const unsigned char*>(spec.data), spec.rows, spec.cols,
                              stride, static_cast<std::uint32_t>(spec.element_bytes),
                              static_cast<std::uint32_t>(spec.box_rows),
                              static_cast<std::uint32_t>(spec.box_cols), spec.swizzle});
}

}  // namespace millrace::kernels::cuda
