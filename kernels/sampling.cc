// One implementation for every processor: vectors of fixed width that the compiler lowers to what
// the target has. Lane-wise IEEE operations without contraction give the same bits everywhere, and
// sums are sums of integers.
#include "kernels/sampling.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "config/check.h"
#include "kernels/sampling_weight.h"

namespace millrace::kernels {
namespace {

constexpr int kWidth = 4;
using FloatVec = float __attribute__((vector_size(kWidth * sizeof(float))));
using IntVec = std::int32_t __attribute__((vector_size(kWidth * sizeof(std::int32_t))));
static_assert(kWeightBlock % kWidth == 0);

constexpr float kInfinity = std::numeric_limits<float>::infinity();

FloatVec load(const float* p) {
  FloatVec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

void store(float* p, FloatVec v) { std::memcpy(p, &v, sizeof(v)); }

FloatVec splat(float x) { return FloatVec{} + x; }

using sampling_weight::kWeightOne;
using sampling_weight::weight_of;

FloatVec exp_nonpositive(FloatVec x) { return sampling_weight::exp_nonpositive<IntVec>(x); }

// exp of a block of n <= kWeightBlock values; entries of `out` from n on are not meaningful.
void exp_block(const float* x, int n, float* out) {
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) store(out + i, exp_nonpositive(load(x + i)));
  if (i < n) {
    float tail[kWidth] = {};
    std::copy(x + i, x + n, tail);
    store(out + i, exp_nonpositive(load(tail)));
  }
}

// The largest logit, or why there is none to sample from.
Result<float> checked_max(std::span<const float> logits) {
  FloatVec largest = splat(-kInfinity);
  IntVec nan = {};
  std::size_t i = 0;
  for (; i + kWidth <= logits.size(); i += kWidth) {
    const FloatVec v = load(&logits[i]);
    largest = v > largest ? v : largest;
    nan |= v != v;
  }
  float max = -kInfinity;
  bool any_nan = false;
  for (int lane = 0; lane < kWidth; ++lane) {
    max = std::max(max, largest[lane]);
    any_nan |= nan[lane] != 0;
  }
  for (; i < logits.size(); ++i) {
    any_nan |= std::isnan(logits[i]);
    max = logits[i] > max ? logits[i] : max;
  }
  if (any_nan || std::abs(max) == kInfinity) [[unlikely]] {
    const char* what = any_nan ? "NaN" : max > 0 ? "+inf" : "nothing but -inf";
    return Error{ErrorCode::kInternal, "logits",
                 fmt::format("the row of logits contains {}", what)};
  }
  return max;
}

// out = (logits - max) / temperature
void scale(std::span<const float> logits, float max, float temperature, float* out) {
  const std::size_t size = logits.size();
  std::size_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(out + i, (load(&logits[i]) - max) / temperature);
  for (; i < size; ++i) out[i] = (logits[i] - max) / temperature;
}

bool before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// The first k of the values in the order of before(), unordered, at the start of `out`. One scan
// that seldom does more than compare: a value enters only when it beats the k-th best so far, and
// the buffer is cut back to k each time it has filled to 2k.
void select_top(std::span<const float> x, std::size_t k, std::vector<Candidate>& out) {
  const std::size_t capacity = std::min(x.size(), std::max<std::size_t>(2 * k, 64));
  std::size_t count = 0;
  float threshold = -kInfinity;
  bool full = false;  // k better or equal ones are known, all with lower ids
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (full && !(x[i] > threshold)) continue;
    if (count == capacity) {
      std::nth_element(out.begin(), out.begin() + (k - 1), out.begin() + count, before);
      count = k;
      threshold = out[k - 1].logit;
      full = true;
      if (!(x[i] > threshold)) continue;
    }
    out[count++] = {x[i], static_cast<std::int32_t>(i)};
  }
  std::nth_element(out.begin(), out.begin() + (k - 1), out.begin() + count, before);
}

// The tokens that are still in: n values of x, ascending in token id.
struct Row {
  std::span<float> x;
  std::int32_t* ids = nullptr;
  bool dense = true;  // ids are the indices and not yet written

  std::int32_t id(std::size_t i) const { return dense ? static_cast<std::int32_t>(i) : ids[i]; }
  template <class Keep>
  void retain(Keep keep) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (!keep(x[i], i)) continue;
      ids[kept] = id(i);
      x[kept++] = x[i];
    }
    x = x.first(kept);
    dense = false;
  }
};

// The sum of all weights; block_sums gets that of each kWeightBlock tokens.
std::uint64_t sum_weights(std::span<const float> x, std::vector<std::uint64_t>& block_sums) {
  std::uint64_t total = 0;
  float probabilities[kWeightBlock];
  for (std::size_t begin = 0; begin < x.size(); begin += kWeightBlock) {
    const int n = static_cast<int>(std::min<std::size_t>(kWeightBlock, x.size() - begin));
    exp_block(&x[begin], n, probabilities);
    std::uint64_t sum = 0;
    for (int i = 0; i < n; ++i) sum += weight_of(probabilities[i]);
    block_sums[begin / kWeightBlock] = sum;
    total += sum;
  }
  return total;
}

// Weight of a single value: the same function, hence the same bits, as in a block.
float exp_one(float x) { return exp_nonpositive(splat(x))[0]; }

void filter_top_k(Row& row, std::int32_t top_k, std::vector<Candidate>& candidates) {
  if (top_k <= 0 || static_cast<std::size_t>(top_k) >= row.x.size()) return;
  const auto k = static_cast<std::size_t>(top_k);
  select_top(row.x, k, candidates);
  const float threshold = candidates[k - 1].logit;
  row.retain([&](float x, std::size_t) { return x >= threshold; });
}

// In the order of before(), S(c) is the weight of the first c tokens. The kept ones are the first c
// with the smallest c that has S(c) >= cutoff; found by bisection with nth_element, without a sort.
void filter_top_p(Row& row, float top_p, SamplingScratch& scratch) {
  if (!(top_p < 1.0F)) return;
  const std::uint64_t total = sum_weights(row.x, scratch.block_sums);
  const double wanted = std::ceil(static_cast<double>(top_p) * static_cast<double>(total));
  const auto cutoff = std::clamp<std::uint64_t>(static_cast<std::uint64_t>(wanted), 1, total);

  // A token and all behind it weigh at most n times its weight: when that fits into what may be
  // cut, it is cut. This leaves few tokens of a usual distribution to bisect.
  const std::uint64_t negligible = (total - cutoff) / row.x.size();
  const auto negligible_x =
      static_cast<float>(std::log((static_cast<double>(negligible) + 1) / kWeightOne) - 1e-3);
  std::vector<Candidate>& in = scratch.candidates;
  std::size_t count = 0;
  for (std::size_t i = 0; i < row.x.size(); ++i) {
    if (row.x[i] < negligible_x) continue;
    in[count++] = {row.x[i], static_cast<std::int32_t>(i)};
  }

  std::size_t low = 0;
  std::size_t high = count;
  std::uint64_t sum = 0;  // S(low) < cutoff <= S(high)
  while (high - low > 1) {
    const std::size_t middle = low + (high - low) / 2;
    std::nth_element(in.begin() + low, in.begin() + middle, in.begin() + high, before);
    std::uint64_t part = 0;
    for (std::size_t i = low; i < middle; ++i) part += weight_of(exp_one(in[i].logit));
    if (sum + part >= cutoff) {
      high = middle;
    } else {
      sum += part;
      low = middle;
    }
  }
  const Candidate last = in[low];
  row.retain([&](float x, std::size_t i) {
    return !before(last, Candidate{x, static_cast<std::int32_t>(i)});
  });
}

void filter_min_p(Row& row, float min_p) {
  if (!(min_p > 0.0F)) return;
  // The logarithm decides all but the closest cases; 1e-3 is far more than its and exp's error.
  const float limit = std::log(min_p);
  row.retain([&](float x, std::size_t) {
    if (std::abs(x - limit) > 1e-3F) return x > limit;
    return exp_one(x) >= min_p;
  });
}

std::int32_t draw(const Row& row, std::uint64_t bits, std::vector<std::uint64_t>& block_sums) {
  using Wide = unsigned __int128;
  const std::uint64_t total = sum_weights(row.x, block_sums);
  auto target = static_cast<std::uint64_t>((static_cast<Wide>(bits) * total) >> 64);
  std::size_t block = 0;
  while (target >= block_sums[block]) target -= block_sums[block++];
  const std::size_t begin = block * kWeightBlock;
  float probabilities[kWeightBlock];
  const int n = static_cast<int>(std::min<std::size_t>(kWeightBlock, row.x.size() - begin));
  exp_block(&row.x[begin], n, probabilities);
  for (int i = 0; i < n; ++i) {
    const std::uint64_t weight = weight_of(probabilities[i]);
    if (target < weight) return row.id(begin + static_cast<std::size_t>(i));
    target -= weight;
  }
  CHECK(false, "block {} weighs less than its own sum", block);
}

}  // namespace

SamplingScratch::SamplingScratch(std::int32_t v)
    : vocab(v),
      logits(static_cast<std::size_t>(v)),
      scaled(static_cast<std::size_t>(v)),
      ids(static_cast<std::size_t>(v)),
      candidates(static_cast<std::size_t>(v)),
      block_sums(static_cast<std::size_t>((v + kWeightBlock - 1) / kWeightBlock)) {}

std::size_t SamplingScratch::bytes(std::int32_t vocab) {
  const auto v = static_cast<std::size_t>(vocab);
  return v * (2 * sizeof(float) + sizeof(std::int32_t) + sizeof(Candidate)) +
         (v + kWeightBlock - 1) / kWeightBlock * sizeof(std::uint64_t);
}

Result<void> apply_logit_bias(std::span<float> logits,
                              std::span<const std::pair<std::int32_t, float>> bias) {
  for (const auto& [token, value] : bias) {
    if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) {
      return invalid("logit_bias", fmt::format("token {} is not in the vocabulary of {} tokens",
                                               token, logits.size()));
    }
  }
  for (const auto& [token, value] : bias) logits[static_cast<std::size_t>(token)] += value;
  return {};
}

void apply_penalties(std::span<float> logits, std::span<const TokenCount> counts,
                     const Penalties& penalties) {
  CHECK(counts.size() == logits.size(), "counts={} logits={}", counts.size(), logits.size());
  const auto apply = [&](std::size_t i) {
    const TokenCount count = counts[i];
    if (count == 0) return;
    float x = logits[i];
    x = x > 0 ? x / penalties.repetition : x * penalties.repetition;
    if (const TokenCount produced = count & kMaxOutputCount; produced > 0) {
      x -= penalties.frequency * static_cast<float>(produced);
      x -= penalties.presence;
    }
    logits[i] = x;
  };
  // Most tokens have never occurred: four counts are skipped at a time.
  std::size_t i = 0;
  for (; i + 4 <= counts.size(); i += 4) {
    std::uint64_t four = 0;
    std::memcpy(&four, &counts[i], sizeof(four));
    if (four == 0) continue;
    for (std::size_t j = i; j < i + 4; ++j) apply(j);
  }
  for (; i < counts.size(); ++i) apply(i);
}

Result<std::int32_t> argmax(std::span<const float> logits) {
  const Result<float> max = checked_max(logits);
  if (!max) return max.error();
  const auto it = std::find(logits.begin(), logits.end(), *max);
  return static_cast<std::int32_t>(it - logits.begin());
}

Result<std::int32_t> sample_token(std::span<const float> logits, const SamplingRow& params,
                                  SamplingScratch& scratch) {
  CHECK(logits.size() <= scratch.scaled.size(), "row of {} logits, scratch for {}", logits.size(),
        scratch.vocab);
  if (params.temperature == 0.0F) return argmax(logits);
  const Result<float> max = checked_max(logits);
  if (!max) return max.error();
  Row row{std::span(scratch.scaled).first(logits.size()), scratch.ids.data()};
  scale(logits, *max, params.temperature, row.x.data());
  filter_top_k(row, params.top_k, scratch.candidates);
  filter_top_p(row, params.top_p, scratch);
  filter_min_p(row, params.min_p);
  return draw(row, params.bits, scratch.block_sums);
}

Result<double> log_sum_exp(std::span<const float> logits) {
  const Result<float> max = checked_max(logits);
  if (!max) return max.error();
  std::uint64_t total = 0;
  float x[kWeightBlock];
  float probabilities[kWeightBlock];
  for (std::size_t begin = 0; begin < logits.size(); begin += kWeightBlock) {
    const std::size_t n = std::min<std::size_t>(kWeightBlock, logits.size() - begin);
    scale(logits.subspan(begin, n), *max, 1.0F, x);
    exp_block(x, static_cast<int>(n), probabilities);
    for (std::size_t i = 0; i < n; ++i) total += weight_of(probabilities[i]);
  }
  return static_cast<double>(*max) + std::log(static_cast<double>(total) / kWeightOne);
}

Result<float> log_probabilities(std::span<const float> logits, std::int32_t chosen,
                                std::span<LogProbability> top, SamplingScratch& scratch) {
  CHECK(chosen >= 0 && static_cast<std::size_t>(chosen) < logits.size(), "chosen={} vocab={}",
        chosen, logits.size());
  CHECK(top.size() <= logits.size() && logits.size() <= scratch.candidates.size(),
        "top={} row={} scratch={}", top.size(), logits.size(), scratch.vocab);
  const Result<double> total = log_sum_exp(logits);
  if (!total) return total.error();
  const auto logprob = [&](float x) { return static_cast<float>(static_cast<double>(x) - *total); };
  if (!top.empty()) {
    select_top(logits, top.size(), scratch.candidates);
    const auto end = scratch.candidates.begin() + static_cast<std::ptrdiff_t>(top.size());
    std::sort(scratch.candidates.begin(), end, before);
    for (std::size_t i = 0; i < top.size(); ++i) {
      const Candidate& c = scratch.candidates[i];
      top[i] = {c.token, logprob(c.logit)};
    }
  }
  return logprob(logits[static_cast<std::size_t>(chosen)]);
}

}  // namespace millrace::kernels
