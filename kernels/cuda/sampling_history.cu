#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sampling.h"

namespace millrace::kernels::cuda {
namespace {

constexpr int kThreads = 512;

// One more sight of a token: the prompt's bit, or the output's count, which stays at its largest.
__device__ TokenCount counted(TokenCount count, bool in_prompt) {
  if (in_prompt) return count | kInPrompt;
  if ((count & kMaxOutputCount) == kMaxOutputCount) return count;
  return static_cast<TokenCount>(count + 1);
}

// Two counts share the word that the atomic works on. The order of updates changes nothing.
__device__ void count_token(TokenCount* counts, std::int32_t token, bool in_prompt) {
  auto* word = reinterpret_cast<unsigned*>(counts + token / 2 * 2);
  const int shift = token % 2 * 16;
  unsigned seen = *reinterpret_cast<volatile unsigned*>(word);
  while (true) {
    const auto old = static_cast<TokenCount>(seen >> shift & 0xffffU);
    const unsigned updated = (seen & ~(0xffffU << shift)) | unsigned{counted(old, in_prompt)}
                                                                << shift;
    const unsigned found = atomicCAS(word, seen, updated);
    if (found == seen) return;
    seen = found;
  }
}

// A block for each sequence.
__global__ void __launch_bounds__(kThreads)
    start_histories_kernel(const HistoryStart* starts, const std::int32_t* tokens,
                           TokenCount* counts, std::int64_t counts_stride, int vocab) {
  await_previous_kernel();
  const HistoryStart start = starts[blockIdx.x];
  if (start.slot < 0) return;
  counts += start.slot * counts_stride;
  // Rows are aligned to 8 bytes; the stride has room for the last four counts.
  for (int i = static_cast<int>(threadIdx.x) * 4; i < vocab; i += kThreads * 4) {
    *reinterpret_cast<uint2*>(counts + i) = make_uint2(0, 0);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < start.tokens; i += kThreads) {
    const std::int32_t token = tokens[start.begin + i];
    if (token < 0 || token >= vocab) continue;
    count_token(counts, token, i < start.prompt_tokens);
  }
}

}  // namespace

void start_histories(StreamRef stream, const StartHistoriesArgs& a) {
  const std::int64_t vocab = a.counts.cols();
  CHECK(a.counts.row_stride % 4 == 0 && a.counts.row_stride >= vocab && vocab <= kMaxSampledVocab,
        "counts=[{}, {}] stride {}", a.counts.rows(), vocab, a.counts.row_stride);
  launch(start_histories_kernel, {dim3(static_cast<unsigned>(a.count)), dim3(kThreads)}, stream,
         a.starts, a.tokens, a.counts.data, a.counts.row_stride, static_cast<int>(vocab));
}

}  // namespace millrace::kernels::cuda
