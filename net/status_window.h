// The latest samples of figures that only grow, and what they say of the last seconds.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <utility>

namespace millrace::net {

// Samples in order of time, each with a member `at`. Not thread-safe.
template <class Sample>
class StatusWindow {
 public:
  using Clock = std::chrono::steady_clock;

  // Keeps `span` and no more than `most` samples.
  StatusWindow(Clock::duration span, std::size_t most) : span_(span), most_(most) {}

  void add(Sample sample) {
    samples_.push_back(std::move(sample));
    while (samples_.size() > most_ || latest().at - samples_.front().at > span_) {
      samples_.pop_front();
    }
  }
  void clear() { samples_.clear(); }
  bool empty() const { return samples_.empty(); }
  const std::deque<Sample>& samples() const { return samples_; }
  const Sample& latest() const { return samples_.back(); }

  // The oldest sample that is at most `age` older than the latest.
  const Sample& since(Clock::duration age) const {
    std::size_t i = 0;
    while (latest().at - samples_[i].at > age) ++i;
    return samples_[i];
  }

 private:
  Clock::duration span_;
  std::size_t most_;
  std::deque<Sample> samples_;
};

inline double seconds_between(std::chrono::steady_clock::time_point from,
                              std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// The q-quantile (0 to 1) of observations that were counted into buckets: counts[i] between
// bounds[i - 1] and bounds[i], one more count above all bounds. Interpolated inside a bucket as
// Prometheus's histogram_quantile does; above all bounds the last bound. nullopt without any.
std::optional<double> bucket_quantile(std::span<const double> bounds,
                                      std::span<const std::uint64_t> counts, double q);

}  // namespace millrace::net
