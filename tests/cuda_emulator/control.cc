#include "tests/cuda_emulator/control.h"

#include <map>
#include <mutex>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "tests/cuda_emulator/settings.h"

namespace millrace::cuda_emulator {
namespace {

struct Fault {
  std::string operation;
  int remaining;
  int code;
  bool sticky;
};

struct Calls {
  std::mutex mutex;
  std::map<std::string, std::uint64_t, std::less<>> counts;
  std::vector<Fault> faults;
  int sticky_code = 0;
};
Calls& all_calls() {
  static Calls calls;
  return calls;
}

}  // namespace

Settings& settings() {
  static Settings s;
  return s;
}

void set_order(Order order, std::uint64_t seed) {
  settings().order = order;
  settings().seed = seed;
}
Order order() { return settings().order; }
std::uint64_t order_seed() { return settings().seed; }
void set_device_count(int count) { settings().device_count = count; }
void set_compute_capability(int major, int minor) { settings().cc = 10 * major + minor; }
void set_sm_count(int count) { settings().sm_count = count; }
void set_memory_bytes(std::size_t bytes) { settings().memory_bytes = bytes; }
void set_stalled(bool stalled) { settings().stalled = stalled; }
void set_lazy(bool lazy) { settings().lazy = lazy; }

std::size_t smem_limit() {
  const int cc = settings().cc;
  const std::size_t kib = cc >= 90 && cc < 120 ? 227 : cc == 80 || cc == 87 ? 163 : 99;
  return kib << 10;
}

void fail_nth(const std::string& operation, int nth, int code, bool sticky) {
  Calls& c = all_calls();
  const std::lock_guard lock(c.mutex);
  c.faults.push_back({operation, nth, code, sticky});
}

void reset() {
  {
    Calls& c = all_calls();
    const std::lock_guard lock(c.mutex);
    c.faults.clear();
    c.sticky_code = 0;
  }
  set_order(Order::kForward, 0);
  set_device_count(1);
  set_compute_capability(9, 0);
  set_sm_count(132);
  set_memory_bytes(std::size_t{64} << 30);
  set_stalled(false);
  set_lazy(false);
}

std::uint64_t calls(const std::string& operation) {
  Calls& c = all_calls();
  const std::lock_guard lock(c.mutex);
  const auto it = c.counts.find(operation);
  return it == c.counts.end() ? 0 : it->second;
}

void enter_call(const char* operation, const std::string& place) {
  Calls& c = all_calls();
  const std::lock_guard lock(c.mutex);
  ++c.counts[operation];
  int code = c.sticky_code;
  for (Fault& fault : c.faults) {
    if (fault.operation != operation || fault.remaining == 0) continue;
    if (--fault.remaining == 0 && code == 0) {
      code = fault.code;
      if (fault.sticky) c.sticky_code = code;
    }
  }
  if (code == 0) return;
  const std::string name = place.empty() ? operation : std::string(operation) + " " + place;
  throw kernels::cuda::CudaError(name, code, "injected fault");
}

}  // namespace millrace::cuda_emulator
