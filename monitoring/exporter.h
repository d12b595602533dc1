// The Prometheus registry, built from the catalogue. Code gets typed handles by Metric; a wrong
// type or a wrong number of label values does not compile.
//
//   Counter ended = exporter.counter<Metric::kRequestSuccess>("stop");
//   ended.add();
//
// Everything is thread-safe. Handles are small values that stay valid as long as the exporter; take
// them once, outside hot paths. A default-constructed handle swallows what it is given, so code
// that may run without metrics needs no branches.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "monitoring/catalogue.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace millrace {

class Counter {
 public:
  Counter() = default;
  void add(double n = 1) const;  // n >= 0
  double value() const;

 private:
  friend class Exporter;
  explicit Counter(prometheus::Counter* c) : counter_(c) {}
  prometheus::Counter* counter_ = nullptr;
};

class Gauge {
 public:
  Gauge() = default;
  void set(double v) const;
  double value() const;

 private:
  friend class Exporter;
  explicit Gauge(prometheus::Gauge* g) : gauge_(g) {}
  prometheus::Gauge* gauge_ = nullptr;
};

class Histogram {
 public:
  Histogram() = default;
  void observe(double v) const;
  // Many observations at once: counts[i] between bounds i - 1 and i of the catalogue, and one count
  // above all bounds; `sum` of their values.
  void add(std::span<const std::uint64_t> counts, double sum) const;
  // What has been observed so far, in the form that add() takes; empty for a default-constructed
  // handle.
  std::vector<std::uint64_t> counts() const;

 private:
  friend class Exporter;
  explicit Histogram(prometheus::Histogram* h) : histogram_(h) {}
  prometheus::Histogram* histogram_ = nullptr;
};

struct ExporterConfig {
  std::string model_name;    // label of every vllm: metric
  std::string engine = "0";  // likewise; one per gateway, since cells are summed
};

class Exporter {
 public:
  explicit Exporter(ExporterConfig config);
  ~Exporter();
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  // Label values beyond kMaxSeries distinct combinations share one series whose open labels say
  // "other", so that nobody outside can grow the registry without limit. Room for 38 layers x 8
  // lanes x 8 cells.
  static constexpr std::size_t kMaxSeries = 4096;

  template <Metric M, class... V>
  Counter counter(const V&... values) {
    check_use<M, sizeof...(V)>(std::integral_constant<MetricType, MetricType::kCounter>{});
    const std::array<std::string, sizeof...(V)> list{std::string(values)...};
    return get_counter(M, list);
  }
  template <Metric M, class... V>
  Gauge gauge(const V&... values) {
    check_use<M, sizeof...(V)>(std::integral_constant<MetricType, MetricType::kGauge>{});
    const std::array<std::string, sizeof...(V)> list{std::string(values)...};
    return get_gauge(M, list);
  }
  template <Metric M, class... V>
  Histogram histogram(const V&... values) {
    check_use<M, sizeof...(V)>(std::integral_constant<MetricType, MetricType::kHistogram>{});
    const std::array<std::string, sizeof...(V)> list{std::string(values)...};
    return get_histogram(M, list);
  }

  // Text exposition format 0.0.4. With filters, only the metrics named: by the catalogue's name, or
  // for a histogram also by one of its series' (_bucket, _sum, _count), as in
  // `/metrics?name[]=...`.
  std::string render(std::span<const std::string> name_filters = {}) const;
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

 private:
  template <Metric M, std::size_t N, MetricType T>
  static constexpr void check_use(std::integral_constant<MetricType, T>) {
    static_assert(describe(M).type == T, "the catalogue lists this metric with another type");
    static_assert(describe(M).labels.size() == N, "one value for each label of the catalogue");
  }
  Counter get_counter(Metric m, std::span<const std::string> values);
  Gauge get_gauge(Metric m, std::span<const std::string> values);
  Histogram get_histogram(Metric m, std::span<const std::string> values);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace millrace
