#include "net/status_window.h"

#include <numeric>

namespace millrace::net {

std::optional<double> bucket_quantile(std::span<const double> bounds,
                                      std::span<const std::uint64_t> counts, double q) {
  const auto total = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  if (total == 0 || counts.size() != bounds.size() + 1) return std::nullopt;
  const double rank = q * static_cast<double>(total);
  double below = 0;
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    const auto here = static_cast<double>(counts[i]);
    if (here > 0 && below + here >= rank) {
      const double low = i == 0 ? 0 : bounds[i - 1];
      return low + (bounds[i] - low) * (rank - below) / here;
    }
    below += here;
  }
  return bounds.back();
}

}  // namespace millrace::net
