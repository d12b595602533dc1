#include "tests/kernels/cuda/bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "kernels/cuda/gemm_pack.h"
#include "kernels/cuda/quantize.h"
#include "kernels/cuda/random_weights.h"
#include "kernels/random_weights.h"

namespace millrace::kernels::cuda::bench {

namespace {

constexpr std::chrono::milliseconds kDeadline{30'000};
constexpr int kLeastSamples = 20;

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof(text), "%Y-%m-%d", std::gmtime(&now));
  return text;
}

double rounded(double value) { return std::round(value * 1000) / 1000; }

// So many launches that the start of a graph does not count; sets come round again when they are
// fewer, which are then each larger than the cache.
constexpr int kLeastLaunches = 8;

int launches_of(const Case& c, bool smoke) {
  if (smoke || c.sets >= kLeastLaunches) return c.sets;
  return (kLeastLaunches + c.sets - 1) / c.sets * c.sets;
}

// All launches of a case, once.
class Round {
 public:
  Round(StreamRef stream, const Case& c, int launches)
      : stream_(stream), case_(c), launches_(launches) {
    c.launch(stream, 0);  // loads the kernel; what is wrong shows here
    synchronize(stream, kDeadline);
    if (!c.graph) return;
    graph_ = Graph::capture(stream, [&] { launch_all(); });
  }

  void run() const {
    if (graph_.empty()) {
      launch_all();
    } else {
      graph_.launch(stream_);
    }
  }

 private:
  void launch_all() const {
    for (int i = 0; i < launches_; ++i) case_.launch(stream_, i % case_.sets);
  }

  StreamRef stream_;
  const Case& case_;
  int launches_;
  Graph graph_;
};

}  // namespace

Bench::Bench(Options options)
    : options_(std::move(options)), device_(device_info(current_device())) {}

bool Bench::wants(const std::string& name) const {
  return options_.filter.empty() || name.find(options_.filter) != std::string::npos;
}

int Bench::cold_sets(double bytes, int most) const {
  if (options_.smoke) return 2;
  const double wanted = 4.0 * static_cast<double>(std::max<std::size_t>(device_.l2_bytes, 1 << 25));
  return static_cast<int>(
      std::clamp(std::ceil(wanted / std::max(bytes, 1.0)), 1.0, static_cast<double>(most)));
}

void Bench::print_header() const {
  fmt::print("{}, {} multiprocessors, L2 {:.0f} MB; medians of at least {} samples\n", device_.name,
             device_.sm_count, static_cast<double>(device_.l2_bytes) * 1e-6, kLeastSamples);
  fmt::print("{:46} {:>10} {:>18} {:>9} {:>9} {:>9}\n", "case", "us", "spread", "GB/s", "TFLOP/s",
             "of floor");
}

Figure Bench::run(const Case& c) {
  if (!wants(c.name)) return {};
  std::vector<double> us;
  try {
    const int launches = launches_of(c, options_.smoke);
    const Round round(stream_, c, launches);
    Event begin(Event::Kind::kTiming), end(Event::Kind::kTiming);
    double spent = 0;
    const int samples = options_.smoke ? 2 : options_.samples;
    for (int i = -2; i < samples; ++i) {  // the first two warm up
      begin.record(stream_);
      round.run();
      end.record(stream_);
      synchronize(stream_, kDeadline);
      const double ms = elapsed_ms(begin, end);
      if (i >= 0) us.push_back(ms * 1e3 / launches);
      spent += ms * 1e-3;
      if (spent > options_.seconds_of_case && i + 1 >= kLeastSamples) break;
    }
  } catch (const CudaError& error) {
    fmt::print("{:46} FAILED: {}\n", c.name, error.what());
    std::fflush(stdout);
    ++failures_;
    return {};
  }
  std::sort(us.begin(), us.end());
  const Figure f{us[us.size() / 2], us.front(), us.back()};
  const auto rate = [](double work, double microseconds, double unit) {
    return microseconds > 0 ? work / microseconds * 1e6 / unit : 0.0;
  };
  const double floor_us =
      std::max(copy_ > 0 ? c.bytes / copy_ * 1e-3 : 0.0, gemm_ > 0 ? c.flop / gemm_ * 1e-6 : 0.0);
  const double of_floor = f.us > 0 ? floor_us / f.us : 0;
  fmt::print("{:46} {:10.2f} {:8.2f} -{:8.2f} {:9.1f} {:9.2f} {:9.2f}\n", c.name, f.us, f.least_us,
             f.most_us, rate(c.bytes, f.us, 1e9), rate(c.flop, f.us, 1e12), of_floor);
  std::fflush(stdout);
  record(c.name, "time", "us", f.us, f.least_us, f.most_us);
  const auto record_rate = [&](const char* metric, const char* unit, double work, double scale) {
    if (work > 0) {
      record(c.name, metric, unit, rate(work, f.us, scale), rate(work, f.most_us, scale),
             rate(work, f.least_us, scale));
    }
  };
  record_rate("bytes_rate", "GB/s", c.bytes, 1e9);
  record_rate("flop_rate", "TFLOP/s", c.flop, 1e12);
  if (floor_us > 0 && f.us > 0) {
    record(c.name, "of_floor", "share", of_floor, floor_us / f.most_us, floor_us / f.least_us);
  }
  return f;
}

void Bench::record(const std::string& name, const char* metric, const char* unit, double value,
                   double least, double most) const {
  if (options_.json.empty()) return;
  const nlohmann::ordered_json line{
      {"bench", options_.bench},    {"case", name},    {"metric", metric},
      {"value", rounded(value)},    {"unit", unit},    {"spread", {rounded(least), rounded(most)}},
      {"device", device_.name},     {"date", today()}, {"commit", options_.commit},
      {"command", options_.command}};
  std::ofstream(options_.json, std::ios::app) << line.dump() << "\n";
}

DeviceBuffer random_bf16(StreamRef stream, std::int64_t count, std::uint64_t seed,
                         std::int64_t cols) {
  const std::int64_t padded = (count + 7) / 8 * 8;
  DeviceBuffer buffer(static_cast<std::size_t>(padded) * sizeof(BFloat16));
  random_weights(stream, {seed, 0, padded, random_weight_half_step(cols), buffer.as<BFloat16>()});
  synchronize(stream, kDeadline);
  return buffer;
}

namespace {

// A host block, copied as often as it takes.
template <class T>
DeviceBuffer repeated(StreamRef stream, std::int64_t count, const std::vector<T>& block) {
  DeviceBuffer buffer(static_cast<std::size_t>(count) * sizeof(T));
  for (std::int64_t at = 0; at < count; at += static_cast<std::int64_t>(block.size())) {
    const auto part = std::min<std::size_t>(block.size(), static_cast<std::size_t>(count - at));
    copy_to_device(stream, buffer.as<T>() + at, block.data(), part * sizeof(T));
  }
  synchronize(stream, kDeadline);
  return buffer;
}

std::size_t block_size(std::int64_t count) {
  return static_cast<std::size_t>(std::clamp<std::int64_t>(count, 1, 1'000'003));
}

}  // namespace

DeviceBuffer random_f32(StreamRef stream, std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> block(block_size(count));
  for (float& v : block) v = normal(random);
  return repeated(stream, count, block);
}

DeviceBuffer random_e4m3(StreamRef stream, std::int64_t count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::uint8_t> block(block_size(count));
  for (std::uint8_t& v : block) v = static_cast<std::uint8_t>(random() & 0xbf);
  return repeated(stream, count, block);
}

Weights::Weights(StreamRef stream, WeightFormat format, std::int64_t rows, std::int64_t cols,
                 std::int64_t copies)
    : first_{nullptr, format, rows, cols} {
  memory_ = DeviceBuffer(static_cast<std::size_t>(first_.bytes() * copies));
  first_.data = memory_.data();
  const DeviceBuffer plain(static_cast<std::size_t>(rows * cols) * sizeof(BFloat16));
  const DeviceBuffer unusable(sizeof(std::uint32_t));
  fill(stream, unusable.data(), 0, unusable.bytes());
  for (std::int64_t copy = 0; copy < copies; ++copy) {
    random_weights(stream, {static_cast<std::uint64_t>(rows + copy), 0, rows * cols,
                            random_weight_half_step(cols), plain.as<BFloat16>()});
    const WeightRows source{matrix<const BFloat16>(plain.as<BFloat16>(), rows, cols), {}};
    std::byte* to = memory_.data() + copy * first_.bytes();
    if (format == WeightFormat::kBf16) {
      pack_weight(stream, source, to);
    } else {
      quantize_weight(stream, source, to, unusable.as<std::uint32_t>());
    }
  }
  synchronize(stream, kDeadline);
}

PackedWeight Weights::at(std::int64_t copy) const {
  PackedWeight out = first_;
  out.data += copy * first_.bytes();
  return out;
}

Workspace::Workspace(StreamRef stream, GemmWorkspaceSize size)
    : partials_(static_cast<std::size_t>(size.partial_bytes)),
      tickets_(static_cast<std::size_t>(size.ticket_count) * sizeof(std::uint32_t)),
      ticket_count_(size.ticket_count) {
  if (tickets_.bytes() > 0) fill(stream, tickets_.data(), 0, tickets_.bytes());
  synchronize(stream, kDeadline);
}

GemmWorkspace Workspace::view() const {
  return {partials_.as<float>(), static_cast<std::int64_t>(partials_.bytes()),
          tickets_.as<std::uint32_t>(), ticket_count_};
}

}  // namespace millrace::kernels::cuda::bench
