// StepPlan, StepResult and WorkerReport as bytes, for the road between the coordinator and its
// workers.
//
// encode() clears `out` and keeps its capacity; decode() fills an existing value and keeps the
// capacity of every vector it can, so that a steady stream of steps settles without allocating.
// decode() accepts exactly what encode() writes: truncated, surplus or inconsistent bytes give an
// Error that names the field, and `out` is then unspecified but valid.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "config/result.h"
#include "worker/step.h"

namespace millrace {

void encode(const StepPlan& plan, std::vector<std::uint8_t>& out);
Result<void> decode(std::span<const std::uint8_t> bytes, StepPlan& out);

void encode(const StepResult& result, std::vector<std::uint8_t>& out);
Result<void> decode(std::span<const std::uint8_t> bytes, StepResult& out);

void encode(const WorkerReport& report, std::vector<std::uint8_t>& out);
Result<void> decode(std::span<const std::uint8_t> bytes, WorkerReport& out);

}  // namespace millrace
