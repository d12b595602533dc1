#include "kernels/cuda/sampling.h"

#include <fmt/format.h>

#include "tests/kernels/cuda/bench/bench.h"

namespace millrace::kernels::cuda::bench {

namespace {

struct Way {
  const char* name;
  SlotSampling sampling;
};

std::vector<Way> ways() {
  Way greedy{"greedy", {}}, drawn{"temperature 1", {}}, filtered{"top_k 50, top_p 0.9", {}},
      penalties{"penalties, 5 logprobs", {}};
  greedy.sampling.temperature = 0;
  filtered.sampling.top_k = 50;
  filtered.sampling.top_p = 0.9F;
  penalties.sampling.top_k = 50;
  penalties.sampling.repetition = 1.05F;
  penalties.sampling.logprobs = 5;
  return {greedy, drawn, filtered, penalties};
}

void run_way(Bench& bench, const Shapes& m, std::int64_t rows, const Way& way) {
  const std::string name = fmt::format("{} sample B={} {}", m.name, rows, way.name);
  if (!bench.wants(name)) return;
  const StreamRef stream = bench.stream();
  const auto bytes = static_cast<double>(rows * m.vocab * 4);
  const int sets = bench.cold_sets(bytes, 16);
  const DeviceBuffer logits = random_f32(stream, sets * rows * m.vocab, 1);
  std::vector<SampleRow> list;
  std::vector<SlotSampling> slots;
  for (std::int64_t i = 0; i < rows; ++i) {
    list.push_back({static_cast<std::int32_t>(i), -1, 100});
    slots.push_back(way.sampling);
    slots.back().seed = static_cast<std::uint64_t>(i);
  }
  const DeviceBuffer device_list = to_device(stream, list);
  const DeviceBuffer device_slots = to_device(stream, slots);
  const DeviceBuffer counts(static_cast<std::size_t>(rows * m.vocab) * sizeof(TokenCount));
  fill(stream, counts.data(), 0, counts.bytes());
  const DeviceBuffer results(static_cast<std::size_t>(rows) * sizeof(SampleResult));
  Case c;
  c.name = name;
  c.bytes = bytes;
  c.sets = sets;
  c.launch = [&](StreamRef s, int set) {
    SampleArgs args;
    args.logits = matrix(logits.as<float>() + set * rows * m.vocab, rows, m.vocab);
    args.rows = device_list.as<SampleRow>();
    args.slots = device_slots.as<SlotSampling>();
    args.counts = matrix(counts.as<TokenCount>(), rows, m.vocab);
    args.results = results.as<SampleResult>();
    sample(s, args);
  };
  bench.run(c);
}

}  // namespace

void run_sampling(Bench& bench, const Shapes& m) {
  for (const std::int64_t rows : m.decode) {
    for (const Way& way : ways()) run_way(bench, m, rows, way);
  }
}

}  // namespace millrace::kernels::cuda::bench
