// Part of the tests on devices only: without one they are skipped rather than passed, and after a
// wait in vain no further one is begun, as each would wait for the kernel that hangs.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>

#include "kernels/cuda/runtime.h"

namespace {

class RequireDevice : public testing::Environment {
 public:
  void SetUp() override {
    if (millrace::kernels::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
};

class EndAtAHang : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo&) override {
    if (!millrace::kernels::cuda::device_hangs()) return;
    std::puts("the device hangs: no further test of this process");
    std::fflush(nullptr);
    _exit(3);  // whatever else ends a process may wait for the device
  }
};

[[maybe_unused]] const bool device_required = [] {
  testing::AddGlobalTestEnvironment(new RequireDevice);
  testing::UnitTest::GetInstance()->listeners().Append(new EndAtAHang);
  return true;
}();

}  // namespace
