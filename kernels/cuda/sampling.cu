#include "kernels/cuda/sampling.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sampling_draw.cuh"

namespace millrace::kernels::cuda {
namespace {

struct Sample {
  float* logits;
  std::int64_t logits_stride;
  int vocab;
  const SampleRow* rows;
  const SlotSampling* slots;
  const LogitBias* bias;
  std::int64_t bias_stride;
  float* bias_scratch;
  TokenCount* counts;
  std::int64_t counts_stride;
  SampleResult* results;
  std::int32_t* last_tokens;
};

// The tokens with the n largest logits, ties by id, into s.top_keys and s.top_ids, unordered.
template <class Source>
__device__ void find_top(SampleShared& s, const Source& source, int n) {
  const auto one = [](std::uint32_t) { return std::uint64_t{1}; };
  const KeyCrossing last = select_key(s, source, one, static_cast<std::uint64_t>(n));
  const std::uint64_t ties = static_cast<std::uint64_t>(n) - last.before;
  const std::int32_t last_id = select_id(
      s, source,
      [last](std::uint32_t key, int) { return std::uint64_t{key == last.key ? 1U : 0U}; },
      [ties](std::uint64_t) { return ties; });
  if (threadIdx.x == 0) s.top_count = 0;
  __syncthreads();
  source.for_each([&](std::uint32_t key, int id) {
    if (key > last.key || (key == last.key && id > last_id)) return;
    const unsigned at = atomicAdd(&s.top_count, 1U);
    s.top_keys[at] = key;
    s.top_ids[at] = id;
  });
  __syncthreads();
}

// The log-probability of `chosen` and of the n likeliest, under the raw logits. False when these
// are not numbers; `out` is then unchanged.
__device__ bool log_probabilities(SampleShared& s, std::int32_t chosen, int n, SampleResult& out) {
  const RowSource row{&s.row};
  const Largest largest = largest_logit(s, row);
  if (!largest.finite) return false;
  if (threadIdx.x == 0) s.row.max = largest.value;
  __syncthreads();
  const std::uint64_t total = kept_weight(s, row, Kept{});
  if (threadIdx.x == 0) {
    s.log_sum = static_cast<double>(largest.value) + log(static_cast<double>(total) / 0x1p44);
  }
  __syncthreads();
  const auto logprob = [&](std::int32_t id) {
    return static_cast<float>(static_cast<double>(row.state->logits[id]) - s.log_sum);
  };
  if (n > 0) {
    const CoarseCut cut = coarse_top_k(s, row, static_cast<std::uint64_t>(n));
    if (threadIdx.x == 0) s.row.by_logit = true;
    __syncthreads();
    if (cut.reached && gather(s, row, -INFINITY, cut.last_bin)) {
      find_top(s, ListSource{&s}, n);
    } else {
      find_top(s, row, n);
    }
    if (static_cast<int>(threadIdx.x) < n) {
      const std::uint32_t key = s.top_keys[threadIdx.x];
      const std::int32_t id = s.top_ids[threadIdx.x];
      int place = 0;
      for (int i = 0; i < n; ++i) {
        place += s.top_keys[i] < key || (s.top_keys[i] == key && s.top_ids[i] < id) ? 1 : 0;
      }
      out.alternative_tokens[place] = id;
      out.alternative_logprobs[place] = logprob(id);
    }
  }
  if (threadIdx.x == 0) {
    out.logprob = logprob(chosen);
    out.alternatives = n;
  }
  return true;
}

// Adds the slot's logit_bias and keeps the logits it covers.
__device__ void add_bias(float* logits, const LogitBias* bias, int count, float* scratch) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSampleThreads) {
    const float before = logits[bias[i].token];
    scratch[i] = before;
    logits[bias[i].token] = __fadd_rn(before, bias[i].value);
  }
  __syncthreads();
}

__device__ void take_bias_back(float* logits, const LogitBias* bias, int count,
                               const float* scratch) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSampleThreads) {
    logits[bias[i].token] = scratch[i];
  }
  __syncthreads();
}

__device__ void clear_result(SampleResult& out) {
  if (threadIdx.x < kMaxAlternatives) {
    out.alternative_tokens[threadIdx.x] = 0;
    out.alternative_logprobs[threadIdx.x] = 0;
  }
  if (threadIdx.x == 0) {
    out.token = kNoSampledToken;
    out.logprob = 0;
    out.alternatives = 0;
    out.reserved = 0;
  }
  __syncthreads();
}

__device__ __forceinline__ std::int32_t choose(SampleShared& s, const Sample& a, SampleRow at) {
  const std::int64_t b = blockIdx.x;
  const int count = s.sampling().bias_count;
  float* logits = a.logits + b * a.logits_stride;
  const LogitBias* bias = a.bias + at.slot * a.bias_stride;
  float* scratch = a.bias_scratch + b * a.bias_stride;
  if (count > 0) add_bias(logits, bias, count, scratch);
  const std::int32_t token = draw_token(s);
  if (count > 0) take_bias_back(logits, bias, count, scratch);
  return token;
}

// The row with the slot's penalties, or without any where `counts` is null.
__device__ __forceinline__ void open_row(SampleShared& s, const Sample& a,
                                         const TokenCount* counts) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const SlotSampling& p = s.sampling();
    s.row = {a.logits + blockIdx.x * a.logits_stride,
             counts,
             a.vocab,
             p.repetition,
             p.presence,
             p.frequency,
             0.0F,
             1.0F,
             false};
  }
  __syncthreads();
}

// A block for each row.
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks) sample_kernel(Sample a) {
  await_previous_kernel();
  __shared__ SampleShared s;
  const SampleRow at = a.rows[blockIdx.x];
  SampleResult& out = a.results[blockIdx.x];
  clear_result(out);
  if (at.slot < 0) return;
  if (threadIdx.x == 0) {
    s.sampling() = a.slots[at.slot];
    s.position = at.position;
  }
  __syncthreads();
  const SlotSampling& p = s.sampling();
  const bool history = p.repetition != 1.0F || p.presence != 0.0F || p.frequency != 0.0F;
  TokenCount* counts = history ? a.counts + at.slot * a.counts_stride : nullptr;
  const bool draws = at.target < 0;
  std::int32_t token = at.target;
  if (draws) {
    open_row(s, a, counts);
    token = choose(s, a, at);
  }
  if (token < 0 || token >= a.vocab) return;
  if (!draws || p.logprobs >= 0) {
    const int n = min(min(max(p.logprobs, 0), kMaxAlternatives), a.vocab);
    open_row(s, a, nullptr);
    if (!log_probabilities(s, token, n, out)) return;
  }
  if (threadIdx.x != 0) return;
  out.token = token;
  if (!draws) return;
  if (a.last_tokens != nullptr) a.last_tokens[at.slot] = token;
  if (counts != nullptr && (counts[token] & kMaxOutputCount) != kMaxOutputCount) ++counts[token];
}

}  // namespace

void sample(StreamRef stream, const SampleArgs& a) {
  const std::int64_t vocab = a.logits.cols();
  CHECK(vocab > 0 && vocab <= kMaxSampledVocab && a.logits.row_stride % 4 == 0,
        "logits=[{}, {}] stride {}", a.logits.rows(), vocab, a.logits.row_stride);
  CHECK(a.counts.data == nullptr || (a.counts.cols() == vocab && a.counts.row_stride % 4 == 0),
        "counts=[{}, {}] stride {}", a.counts.rows(), a.counts.cols(), a.counts.row_stride);
  const Sample args{a.logits.data,
                    a.logits.row_stride,
                    static_cast<int>(vocab),
                    a.rows,
                    a.slots,
                    a.bias,
                    a.bias_stride,
                    a.bias_scratch,
                    a.counts.data,
                    a.counts.row_stride,
                    a.results,
                    a.last_tokens};
  launch(sample_kernel, {dim3(static_cast<unsigned>(a.logits.rows())), dim3(kSampleThreads)},
         stream, args);
}

}  // namespace millrace::kernels::cuda
