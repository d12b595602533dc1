// Rates of the device's kernels beside the ceilings of the same run.
//
// A case is one launch at one shape. Its launches, each on memory of its own as far as that is not
// in the engine's cache either, are recorded as one graph; a sample is the time of the graph
// between two events over the launches in it, so it holds what a launch costs inside a decode
// graph. Weights and pages of a graph together exceed the L2 cache several times. Activations
// rotate over as many sets; where all of those are smaller than L2 they stay there, as in the
// engine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/types.h"
#include "kernels/tensor_view.h"

namespace millrace::kernels::cuda::bench {

struct Options {
  std::string filter;  // only cases whose name contains it
  std::string json;    // file that gets a line for each figure
  std::string commit = "unknown";
  std::string bench = "cuda-kernels";
  std::string command = "kernels_cuda_bench";
  int samples = 25;
  double seconds_of_case = 1.0;  // fewer samples, but not under 20, when they take longer
  bool smoke = false;            // tiny shapes, two samples: does everything run at all?
};

struct Case {
  std::string name;
  double bytes = 0;  // least that must move: each input read once, each output written once
  double flop = 0;   // a multiply and an add are two
  int sets = 1;      // launch(stream, 0) ... launch(stream, sets - 1) use different memory
  std::function<void(StreamRef stream, int set)> launch;
  bool graph = true;  // false: what cannot be recorded
};

struct Figure {
  double us = 0;  // median of the samples
  double least_us = 0;
  double most_us = 0;
};

// Sizes of a model as the kernels see them.
struct Shapes {
  std::string name;  // "24b"
  std::int64_t hidden = 2048;
  std::int32_t heads = 32;
  std::int32_t kv_heads = 8;
  std::int32_t head_dim = 64;
  std::int64_t dense = 11776;
  std::int32_t experts = 64;
  std::int32_t top_k = 4;
  std::int64_t expert = 1536;
  std::int64_t vocab = 65536;
  std::vector<std::int64_t> decode = {1, 32, 256, 1024};
  std::int64_t prefill = 8192;

  std::int64_t qkv() const { return std::int64_t{heads + 2 * kv_heads} * head_dim; }
};

class Bench {
 public:
  explicit Bench(Options options);

  const Options& options() const { return options_; }
  StreamRef stream() const { return stream_; }
  bool wants(const std::string& name) const;
  // Prints and records. Failures are told and counted, and the run goes on.
  Figure run(const Case& c);
  // Ceilings for the columns that follow: GB/s and TFLOP/s. 0: not known.
  void set_copy_rate(double gb_per_s) { copy_ = gb_per_s; }
  void set_gemm_rate(double tflop_per_s) { gemm_ = tflop_per_s; }
  double copy_rate() const { return copy_; }
  double gemm_rate() const { return gemm_; }
  int failures() const { return failures_; }
  // A line of the JSON file, when there is one.
  void record(const std::string& name, const char* metric, const char* unit, double value,
              double least, double most) const;

  // Sets of `bytes` that together exceed the cache four times; at most `most`.
  int cold_sets(double bytes, int most = 64) const;
  void print_header() const;
  std::string device_name() const { return device_.name; }

 private:
  Options options_;
  DeviceInfo device_;
  Stream stream_;
  double copy_ = 0;
  double gemm_ = 0;
  int failures_ = 0;
};

// ---- memory ------------------------------------------------------------------------------------

// Random values of deviation 1 (bf16), or of 1 / sqrt(cols) for weights.
DeviceBuffer random_bf16(StreamRef stream, std::int64_t count, std::uint64_t seed,
                         std::int64_t cols = 1);
DeviceBuffer random_f32(StreamRef stream, std::int64_t count, std::uint64_t seed);
// Bytes that are finite e4m3 values below 2.
DeviceBuffer random_e4m3(StreamRef stream, std::int64_t count, std::uint64_t seed);
template <class T>
DeviceBuffer to_device(StreamRef stream, const std::vector<T>& values) {
  DeviceBuffer buffer(values.size() * sizeof(T));
  copy_to_device(stream, buffer.data(), values.data(), buffer.bytes());
  synchronize(stream, kNoDeadline);
  return buffer;
}

// `copies` packed weights [rows, cols], one behind the other.
class Weights {
 public:
  Weights(StreamRef stream, WeightFormat format, std::int64_t rows, std::int64_t cols,
          std::int64_t copies);
  PackedWeight at(std::int64_t copy) const;

 private:
  DeviceBuffer memory_;
  PackedWeight first_;
};

class Workspace {
 public:
  Workspace(StreamRef stream, GemmWorkspaceSize size);
  GemmWorkspace view() const;

 private:
  DeviceBuffer partials_, tickets_;
  std::int64_t ticket_count_;
};

inline const char* name_of(WeightFormat format) {
  return format == WeightFormat::kBf16 ? "bf16" : "fp8";
}

// ---- the cases ---------------------------------------------------------------------------------

void run_ceilings(Bench& bench);
void run_gemms(Bench& bench, const Shapes& shapes);
void run_attention(Bench& bench, const Shapes& shapes);
void run_elementwise(Bench& bench, const Shapes& shapes);
void run_experts(Bench& bench, const Shapes& shapes);
void run_sampling(Bench& bench, const Shapes& shapes);

}  // namespace millrace::kernels::cuda::bench
