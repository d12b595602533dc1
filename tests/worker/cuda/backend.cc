// Makes devices available to the cells of these tests, as main does for the command.
#include <gtest/gtest.h>

#include "worker/cuda/cuda_backend.h"

namespace {

class InstallBackend : public testing::Environment {
 public:
  void SetUp() override { millrace::install_device_backend(millrace::make_cuda_backend("")); }
};

[[maybe_unused]] testing::Environment* const registered =
    testing::AddGlobalTestEnvironment(new InstallBackend);

}  // namespace
