#include "tests/worker/cuda/fake_nccl.h"

#include <chrono>
#include <memory>
#include <thread>

#include "kernels/cuda/runtime.h"

namespace millrace::testing {

namespace {

std::unique_ptr<FakeNccl>& instance() {
  static std::unique_ptr<FakeNccl> fake = std::make_unique<FakeNccl>();
  return fake;
}

using Comm = parallel::NcclApi::Comm;

Comm const kComm = reinterpret_cast<Comm>(std::uintptr_t{0x10});

void pause() { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

void hang_until_abort() {
  FakeNccl& f = fake_nccl();
  while (!f.release.load() && (f.abort_does_nothing || f.aborts.load() == 0)) pause();
}

int call(const char* name) {
  FakeNccl& f = fake_nccl();
  f.calls.emplace_back(name);
  if (f.call_hangs) hang_until_abort();
  return f.failing_call.empty() || f.failing_call == name ? f.call_code : parallel::kNcclSuccess;
}

int start_rank(Comm* comm, int ranks, const parallel::NcclApi::UniqueId& id, int rank) {
  FakeNccl& f = fake_nccl();
  {
    const std::lock_guard lock(f.mutex);
    f.inits.push_back({rank, ranks, id.internal, kernels::cuda::current_device()});
  }
  while (f.init_hangs && !f.release.load()) pause();
  *comm = kComm;
  return f.init_code;
}

parallel::NcclApi table(bool all_to_all) {
  parallel::NcclApi api;
  api.version = all_to_all ? 22809 : 22203;
  api.get_unique_id = [](parallel::NcclApi::UniqueId* id) {
    FakeNccl& f = fake_nccl();
    ++f.ids;
    f.id.copy(id->internal, sizeof id->internal - 1);
    return f.id_code;
  };
  api.comm_init_rank = start_rank;
  api.comm_destroy = [](Comm) {
    ++fake_nccl().destroys;
    if (fake_nccl().destroy_hangs) hang_until_abort();
    return parallel::kNcclSuccess;
  };
  api.comm_abort = [](Comm) {
    ++fake_nccl().aborts;
    while (fake_nccl().abort_hangs && !fake_nccl().release) pause();
    return parallel::kNcclSuccess;
  };
  api.comm_get_async_error = [](Comm, int* error) {
    *error = fake_nccl().async_error;
    return parallel::kNcclSuccess;
  };
  api.get_error_string = [](int code) {
    return code == parallel::kNcclRemoteError ? "remote error" : "some error";
  };
  api.get_last_error = [](Comm) { return "the last words"; };
  api.group_start = [] { return call("group_start"); };
  api.group_end = [] { return call("group_end"); };
  api.send = [](const void*, std::size_t, int, Comm, void*) { return call("send"); };
  api.recv = [](void*, std::size_t, int, Comm, void*) { return call("recv"); };
  api.all_gather = [](const void*, void*, std::size_t, Comm, void*) { return call("all_gather"); };
  api.reduce_scatter_bf16 = [](const void*, void*, std::size_t, Comm, void*) {
    return call("reduce_scatter");
  };
  if (all_to_all) {
    api.all_to_all = [](const void*, void*, std::size_t, Comm, void*) {
      return call("all_to_all");
    };
  }
  return api;
}

}  // namespace

FakeNccl& fake_nccl() { return *instance(); }

void reset_fake_nccl() { instance() = std::make_unique<FakeNccl>(); }

const parallel::NcclApi& fake_nccl_api(bool all_to_all) {
  static const parallel::NcclApi with = table(true);
  static const parallel::NcclApi without = table(false);
  return all_to_all ? with : without;
}

}  // namespace millrace::testing
