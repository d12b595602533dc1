// One cell on the status page: what its heartbeats and telemetry say of the last seconds, as JSON.
// The fields and their units: docs/status.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "coordinator/request.h"
#include "net/cell_link.h"
#include "net/openai_types.h"
#include "net/status_window.h"

namespace millrace::net {

// What a cell had done, all since its start, when its telemetry arrived.
struct CellSample {
  std::chrono::steady_clock::time_point at;
  CellStatus status;
  CellTelemetry telemetry;
};

// Rates are taken over at most this much.
inline constexpr std::chrono::seconds kStatusRateSpan{5};

struct CellFigures {
  const CellView& view;                     // state kGone for one that is not connected any more
  const StatusWindow<CellSample>& samples;  // of its present epoch
  std::uint64_t restarts = 0;
  std::uint64_t losses = 0;
  std::chrono::steady_clock::time_point now;
};

// A cell whose last sample is older than kStatusRateSpan has no rates: they are null, and its
// workers are left out. What had no tokens has no load ratio: null.
Json status_of_cell(const CellFigures& figures);

// Three digits after the point are enough for people, and short.
double rounded(double value);

}  // namespace millrace::net
