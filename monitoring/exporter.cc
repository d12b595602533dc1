#include "monitoring/exporter.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>
#include <variant>
#include <vector>

#include "config/check.h"

namespace millrace {
namespace {

using Values = std::vector<std::string>;
using AnyFamily = std::variant<std::monostate, prometheus::Family<prometheus::Counter>*,
                               prometheus::Family<prometheus::Gauge>*,
                               prometheus::Family<prometheus::Histogram>*>;

template <class Builder>
AnyFamily build_family(Builder builder, const MetricDesc& d, const ExporterConfig& config,
                       prometheus::Registry& registry) {
  prometheus::Labels constant;
  if (is_vllm_metric(d)) constant = {{"model_name", config.model_name}, {"engine", config.engine}};
  return &builder.Name(std::string(d.name))
              .Help(std::string(d.help))
              .Labels(constant)
              .Register(registry);
}

// A name filter names a metric, or one of the series of a histogram.
bool matches(const std::string& filter, const prometheus::MetricFamily& family) {
  if (filter == family.name) return true;
  if (family.type != prometheus::MetricType::Histogram || !filter.starts_with(family.name)) {
    return false;
  }
  const std::string_view suffix = std::string_view(filter).substr(family.name.size());
  return suffix == "_bucket" || suffix == "_sum" || suffix == "_count";
}

// All combinations of the values of closed labels; nothing when a label is open.
std::vector<Values> known_series(const MetricDesc& d) {
  std::vector<Values> series{{}};
  for (const MetricLabel& label : d.labels) {
    std::vector<Values> longer;
    for (const Values& prefix : series) {
      for (const std::string_view value : label.values) {
        longer.push_back(prefix);
        longer.back().emplace_back(value);
      }
    }
    series = std::move(longer);
  }
  return series;
}

}  // namespace

void Counter::add(double n) const {
  if (counter_ != nullptr) counter_->Increment(n);
}
double Counter::value() const { return counter_ == nullptr ? 0 : counter_->Value(); }

void Gauge::set(double v) const {
  if (gauge_ != nullptr) gauge_->Set(v);
}
double Gauge::value() const { return gauge_ == nullptr ? 0 : gauge_->Value(); }

void Histogram::observe(double v) const {
  if (histogram_ != nullptr) histogram_->Observe(v);
}

void Histogram::add(std::span<const std::uint64_t> counts, double sum) const {
  if (histogram_ == nullptr) return;
  std::vector<double> increments(counts.begin(), counts.end());
  histogram_->ObserveMultiple(increments, sum);
}

std::vector<std::uint64_t> Histogram::counts() const {
  std::vector<std::uint64_t> out;
  if (histogram_ == nullptr) return out;
  std::uint64_t below = 0;
  for (const auto& bucket : histogram_->Collect().histogram.bucket) {
    out.push_back(bucket.cumulative_count - std::exchange(below, bucket.cumulative_count));
  }
  return out;
}

struct Exporter::Impl {
  prometheus::Registry registry;
  std::array<AnyFamily, kCatalogue.size()> families;
  std::mutex mutex;  // of `series`
  std::array<std::set<Values>, kCatalogue.size()> series;

  void add_family(const MetricDesc& d, const ExporterConfig& config) {
    AnyFamily& family = families[static_cast<std::size_t>(d.id)];
    switch (d.type) {
      case MetricType::kCounter:
        family = build_family(prometheus::BuildCounter(), d, config, registry);
        break;
      case MetricType::kGauge:
        family = build_family(prometheus::BuildGauge(), d, config, registry);
        break;
      case MetricType::kHistogram:
        family = build_family(prometheus::BuildHistogram(), d, config, registry);
        break;
    }
  }

  // The series' labels; a value outside a closed set is our bug.
  prometheus::Labels labels(const MetricDesc& d, std::span<const std::string> values) {
    const bool room = claim_series(d, values);
    prometheus::Labels out;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const MetricLabel& label = d.labels[i];
      const bool open = label.values.empty();
      CHECK(open || std::ranges::find(label.values, values[i]) != label.values.end(),
            "{}{{{}=\"{}\"}} is not in the catalogue", d.name, label.name, values[i]);
      out[std::string(label.name)] = open && !room ? "other" : values[i];
    }
    return out;
  }

  bool claim_series(const MetricDesc& d, std::span<const std::string> values) {
    const std::lock_guard lock(mutex);
    auto& known = series[static_cast<std::size_t>(d.id)];
    Values key(values.begin(), values.end());
    if (known.contains(key)) return true;
    if (known.size() >= kMaxSeries) return false;
    known.insert(std::move(key));
    return true;
  }

  template <class T>
  prometheus::Family<T>* family(Metric m) {
    auto* const* f = std::get_if<prometheus::Family<T>*>(&families[static_cast<std::size_t>(m)]);
    return f == nullptr ? nullptr : *f;
  }
};

Exporter::Exporter(ExporterConfig config) : impl_(std::make_unique<Impl>()) {
  for (const MetricDesc& d : kCatalogue) {
    impl_->add_family(d, config);
    for (const Values& values : known_series(d)) {
      switch (d.type) {
        case MetricType::kCounter:
          get_counter(d.id, values);
          break;
        case MetricType::kGauge:
          get_gauge(d.id, values);
          break;
        case MetricType::kHistogram:
          get_histogram(d.id, values);
          break;
      }
    }
  }
}

Exporter::~Exporter() = default;

Counter Exporter::get_counter(Metric m, std::span<const std::string> values) {
  auto* family = impl_->family<prometheus::Counter>(m);
  if (family == nullptr) return {};
  return Counter(&family->Add(impl_->labels(describe(m), values)));
}

Gauge Exporter::get_gauge(Metric m, std::span<const std::string> values) {
  auto* family = impl_->family<prometheus::Gauge>(m);
  if (family == nullptr) return {};
  return Gauge(&family->Add(impl_->labels(describe(m), values)));
}

Histogram Exporter::get_histogram(Metric m, std::span<const std::string> values) {
  auto* family = impl_->family<prometheus::Histogram>(m);
  if (family == nullptr) return {};
  const auto& bounds = describe(m).buckets;
  return Histogram(
      &family->Add(impl_->labels(describe(m), values),
                   prometheus::Histogram::BucketBoundaries(bounds.begin(), bounds.end())));
}

std::string Exporter::render(std::span<const std::string> name_filters) const {
  std::vector<prometheus::MetricFamily> families = impl_->registry.Collect();
  if (!name_filters.empty()) {
    std::erase_if(families, [&](const prometheus::MetricFamily& family) {
      return std::ranges::none_of(name_filters,
                                  [&](const std::string& f) { return matches(f, family); });
    });
  }
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

}  // namespace millrace
