// The engine's CUDA half behind worker/device_backend.h.
#pragma once

#include <memory>
#include <string>

#include "worker/device_backend.h"

namespace millrace {

// `probe_program`: this executable, whose command `devices` lists the devices for
// DeviceBackend::devices in another process; empty: always asked in this one.
std::unique_ptr<DeviceBackend> make_cuda_backend(std::string probe_program);

}  // namespace millrace
