// `millrace devices`: what workers could compute on.
#pragma once

namespace millrace {

// A table for people, or with `plain` the lines that DeviceBackend::devices of another process
// reads.
int run_devices(bool plain);

}  // namespace millrace
