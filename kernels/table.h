// The set of kernels a worker runs: one function pointer per op. The same ops exist as the
// reference (plain loops, sums in double) and as CPU sets compiled for an instruction set each.
//
// avx512_amx is avx512 with packed weights on AMX tiles (kernels/cpu/packed/amx.cc): other
// instructions, the same bits.
//
// Bits: within one set the result of a row depends on that row's inputs only, never on the batch,
// the split into chunks or the number of threads. avx512 and avx2 give the same bits; portable has
// no fused multiply-add and differs from them in the last places; so does the reference, but for
// packed weights, whose sums are part of their definition.
#pragma once

#include <string_view>
#include <vector>

#include "config/result.h"
#include "kernels/kernel_table.h"

namespace millrace::kernels {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Amx };

std::string_view isa_name(Isa isa);
// True when this build holds the set and this CPU (and operating system) can run it. Asks the
// operating system for AMX tiles where the CPU has them (kernels/packed_amx.h).
bool isa_supported(Isa isa);
// The fastest supported set.
Isa best_isa();

const KernelTable& reference_table();
// CHECKs isa_supported(isa).
const KernelTable& cpu_table(Isa isa);

// The set whose bits those of `table` are: avx512 for avx512_amx, else its own name.
std::string_view numeric_name(const KernelTable& table);

// The slots of `table` that are empty, by name; start-up refuses a table with any.
std::vector<std::string_view> missing_slots(const KernelTable& table);

// For the configuration field `kernels` (auto, avx512_amx, avx512, avx2, portable, reference): the
// table, complete. An unknown word, a set this CPU cannot run or an empty slot is an error naming
// it.
Result<const KernelTable*> select_table(std::string_view choice);

}  // namespace millrace::kernels
