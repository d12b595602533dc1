// Part of kernels_cuda_test only: without a device its tests are skipped rather than passed.
#include <gtest/gtest.h>

#include "kernels/cuda/runtime.h"

namespace {

class RequireDevice : public testing::Environment {
 public:
  void SetUp() override {
    if (millrace::kernels::cuda::device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
};

[[maybe_unused]] testing::Environment* const registered =
    testing::AddGlobalTestEnvironment(new RequireDevice);

}  // namespace
