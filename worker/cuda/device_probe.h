// Asking for the devices, here or in another process.
#pragma once

#include <string>
#include <vector>

#include "config/result.h"
#include "worker/device_backend.h"

namespace millrace {

// The devices of this machine; makes a context on each.
std::vector<DeviceFacts> ask_devices();

// Runs `program devices` and reads what it prints. Ends it when it takes longer than a minute.
Result<std::vector<DeviceFacts>> ask_program(const std::string& program);

}  // namespace millrace
