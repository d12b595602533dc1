// Counts allocations of the calling thread through operator new, for contract C5.
#pragma once

#include <cstdint>

namespace millrace::test {

std::uint64_t allocations_of_this_thread();

}  // namespace millrace::test
