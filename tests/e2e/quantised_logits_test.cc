// Whole models in every quantised and 16-bit type, against twins in f32 whose values another
// decoder read from the same blocks (tests/support/quantised_pair.py): what is said after each
// token of a prompt, over the whole vocabulary.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>

#include "kernels/packed.h"
#include "kernels/packed_gemm.h"
#include "tests/support/sole_worker.h"

namespace millrace {
namespace {

using kernels::KernelTable;
using kernels::MatrixView;
using testing::SoleWorker;
using Rows = std::vector<std::vector<float>>;  // log-probabilities by position and token

std::string file_of(const std::string& type, const std::string& name) {
  return testing::made_by("tests/support/quantised_pair.py", "pair-" + type, {"--quant", type}) +
         "/" + name + ".gguf";
}

CellSetup setup_of(const std::string& model, CpuWeights weights) {
  ClusterConfig config = testing::test_config(model);
  config.model.cpu_weights = weights;
  return std::move(*make_cell_setup(std::move(config)));
}

std::vector<std::int32_t> prompt() {
  std::mt19937 random(40);
  std::vector<std::int32_t> ids(40);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random() % 320);
  return ids;
}

Rows run(const CellSetup& setup) { return SoleWorker(setup).run(prompt(), {prompt().size()}); }

class MappedLogits : public ::testing::TestWithParam<std::string> {};

// Each value is decoded by the roundings of its format alone (kernels/dequantize.h) and the sums
// are those of f32 weights (kernels/gemm.h): the same bits, whether a block of weights is decoded
// for many tokens or for one.
TEST_P(MappedLogits, AreTheBitsOfTheTwin) {
  const Rows twin = run(setup_of(file_of(GetParam(), "values"), CpuWeights::kMapped));
  const CellSetup setup = setup_of(file_of(GetParam(), "quantised"), CpuWeights::kMapped);
  SoleWorker worker(setup);
  EXPECT_EQ(worker.run(prompt(), {40}), twin);
  EXPECT_EQ(worker.run(prompt(), std::vector<std::size_t>(40, 1)), twin) << "token by token";
}

INSTANTIATE_TEST_SUITE_P(Types, MappedLogits,
                         ::testing::Values("bf16", "f16", "q8_0", "q4_0", "q4_1", "q4_k", "q5_k",
                                           "q6_k"));

// A set of kernels that adds to the inputs of every matrix that would be packed an error such as
// rounding to 8 bits makes. An error depends on its block of inputs and the number of the draw:
// matrices that take the same inputs meet the same errors, as in rounding.
class Disturbed {
 public:
  static const KernelTable& table(const KernelTable& exact) {
    exact_ = &exact;
    static KernelTable table;
    table = exact;
    table.gemm = &gemm;
    table.grouped_gemm = &grouped_gemm;
    table.gate_up = &gate_up;
    return table;
  }
  static inline std::uint64_t draw = 0;

 private:
  static void gemm(const kernels::Context& context, MatrixView<const float> x,
                   const kernels::WeightView& w, kernels::Accumulate accumulate,
                   MatrixView<float> y) {
    const bool router = w.rows % kernels::kPackedRows != 0;
    exact_->gemm(context, router ? x : disturb(x), w, accumulate, y);
  }
  static void grouped_gemm(const kernels::Context& context, const kernels::GroupedGemmArgs& args) {
    kernels::GroupedGemmArgs a = args;
    a.x = disturb(args.x);
    exact_->grouped_gemm(context, a);
  }
  static void gate_up(const kernels::Context& context, const kernels::GateUpArgs& args) {
    kernels::GateUpArgs a = args;
    a.gate.x = disturb(args.gate.x);
    exact_->gate_up(context, a);
  }

  static MatrixView<const float> disturb(MatrixView<const float> x) {
    rows_.resize(static_cast<std::size_t>(x.rows() * x.cols()));
    float* out = rows_.data();
    for (std::int64_t t = 0; t < x.rows(); ++t) {
      for (std::int64_t k = 0; k < x.cols(); k += kernels::kQuantBlock) {
        disturb_block({x.row(t) + k, static_cast<std::size_t>(kernels::kQuantBlock)}, out);
        out += kernels::kQuantBlock;
      }
    }
    return kernels::matrix<const float>(rows_.data(), x.rows(), x.cols());
  }

  static void disturb_block(std::span<const float> x, float* out) {
    float largest = 0;
    std::uint64_t state = draw;
    for (const float v : x) {
      largest = std::max(largest, std::abs(v));
      state = next(state) ^ std::bit_cast<std::uint32_t>(v);
    }
    for (const float v : x) {
      state = next(state);
      const float unit = static_cast<float>(state >> 40) * 0x1p-24F - 0.5F;
      *out++ = std::abs(v) == largest ? v : v + unit * largest / 127;
    }
  }

  // SplitMix64.
  static std::uint64_t next(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  static inline const KernelTable* exact_ = nullptr;
  static inline std::vector<float> rows_;
};

double rms_difference(const Rows& a, const Rows& b) {
  double sum = 0, count = 0;
  for (std::size_t t = 0; t < a.size(); ++t) {
    for (std::size_t v = 0; v < a[t].size(); ++v, ++count) {
      sum += std::pow(double{b[t][v]} - double{a[t][v]}, 2);
    }
  }
  return std::sqrt(sum / count);
}

class PackedLogits : public ::testing::TestWithParam<std::string> {};

// Packed matrices take their inputs in 8 bits (kernels/packed_gemm.h): of a block of 32 each input
// becomes the nearest multiple of s = max|x| / 127, an error of at most s / 2, none for the
// largest. All else is f32, whose roundings are 2^-24 of a value to 2^-8 here, and left out.
//
// Bounding by absolute values is of no use: one matrix adds sum |w| s / 2, about 0.1 of its outputs
// of magnitude 1, and multiplies the bound on its inputs by sum |w|, about 13; so the bound is
// above the values themselves after two. What follows takes one assumption instead: the errors of
// values so much finer than s are like independent ones, uniform in [-s/2, s/2]. Then the packed
// model is one more draw among kDraws runs of the twin with such errors put in, which carry them
// through all layers, and for each log-probability:
//
// The difference to the twin is a sum of some 10^5 small independent errors, weighted: normal, with
// a deviation that the draws estimate. Difference over estimate is Student's t of kDraws degrees of
// freedom. It passes 8.23 once in 8e10, so one of the 76,800 that are compared here once in 10^6.
//
// The root mean square of the differences over the whole prompt is a number of each run, an average
// of 40 positions and so nearly normal: that of one more run lies within 5.89 deviations of the
// runs' mean (times sqrt(1 + 1/kDraws)) but for 1 time in 6e6 (Student's t of kDraws - 1). This is
// the sharp one, from below, too: an error in decoding of the size of the rounding errors
// themselves fails, and so do weights that were not packed.
TEST_P(PackedLogits, DifferFromTheTwinAsRoundingTo8BitsDoes) {
  constexpr int kDraws = 64;
  constexpr double kLimitOfOne = 8.23;
  constexpr double kLimitOfAll = 5.89;
  const CellSetup values = setup_of(file_of(GetParam(), "values"), CpuWeights::kMapped);
  const Rows twin = run(values);
  const Rows packed = run(setup_of(file_of(GetParam(), "quantised"), CpuWeights::kAuto));
  ASSERT_EQ(packed.size(), twin.size());

  std::vector<std::vector<double>> squares(twin.size(), std::vector<double>(twin[0].size()));
  std::vector<double> sizes;  // rms of each draw
  SoleWorker disturbed(values, &Disturbed::table(*values.kernels));
  for (Disturbed::draw = 1; Disturbed::draw <= kDraws; ++Disturbed::draw) {
    const Rows rows = disturbed.run(prompt(), {prompt().size()});
    sizes.push_back(rms_difference(twin, rows));
    for (std::size_t t = 0; t < rows.size(); ++t) {
      for (std::size_t v = 0; v < rows[t].size(); ++v) {
        squares[t][v] += std::pow(double{rows[t][v]} - double{twin[t][v]}, 2) / kDraws;
      }
    }
  }

  double worst = 0;
  for (std::size_t t = 0; t < twin.size(); ++t) {
    for (std::size_t v = 0; v < twin[t].size(); ++v) {
      const double d = std::abs(double{packed[t][v]} - double{twin[t][v]});
      worst = std::max(worst, d / std::sqrt(squares[t][v]));
    }
  }
  EXPECT_LT(worst, kLimitOfOne);

  double mean = 0, variance = 0;
  for (const double size : sizes) mean += size / kDraws;
  for (const double size : sizes) variance += std::pow(size - mean, 2) / (kDraws - 1);
  const double margin = kLimitOfAll * std::sqrt(variance * (1 + 1.0 / kDraws));
  const double size = rms_difference(twin, packed);
  EXPECT_NEAR(size, mean, margin);
  RecordProperty("packed", fmt::format("worst {:.2f}, rms {:.4f}, draws {:.4f} +- {:.4f}", worst,
                                       size, mean, margin));
}

INSTANTIATE_TEST_SUITE_P(Types, PackedLogits,
                         ::testing::Values("q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k"));

}  // namespace
}  // namespace millrace
