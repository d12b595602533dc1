#include "worker/step_codec.h"

#include "config/sampling_wire.h"
#include "config/wire.h"

namespace millrace {
namespace {

using I32 = std::span<const std::int32_t>;
using U32 = std::span<const std::uint32_t>;

// Declared here because write_all() and read_all() find them by name, not by argument.
void write(WireWriter& w, const SequenceStart& s);
void read(WireReader& r, SequenceStart& s);
void write(WireWriter& w, const StateSave& s);
void read(WireReader& r, StateSave& s);
void write(WireWriter& w, const Chunk& c);
void read(WireReader& r, Chunk& c);
void write(WireWriter& w, const LanePlan& l);
void read(WireReader& r, LanePlan& l);
void write(WireWriter& w, const TokenLogprob& t);
void read(WireReader& r, TokenLogprob& t);
void write(WireWriter& w, const SampledToken& s);
void read(WireReader& r, SampledToken& s);
void write(WireWriter& w, const PromptLogprobs& p);
void read(WireReader& r, PromptLogprobs& p);

// Least bytes of one element, for the count checks.
constexpr std::size_t kStartBytes = 4 + 7 * 4 + 4 + 8 + 4 + 4 + 1 + 4 + 4;
constexpr std::size_t kSaveBytes = 4 + 4;
constexpr std::size_t kChunkBytes = 4 + 4 + 4 + 4 + 4 + 4 + 4 + 1 + 4;
constexpr std::size_t kLaneBytes = 4 + 4;
constexpr std::size_t kLogprobBytes = 8;
constexpr std::size_t kSampledBytes = 4 + kLogprobBytes + 4;
constexpr std::size_t kPromptLogprobBytes = 4 + 4 + kLogprobBytes + 4;

template <class T>
void write_all(WireWriter& w, const std::vector<T>& values) {
  w.count(values.size());
  for (const T& v : values) write(w, v);
}

template <class T>
void read_all(WireReader& r, const char* field, std::size_t element_bytes, std::vector<T>& out) {
  out.resize(r.count(field, element_bytes));
  for (T& v : out) {
    read(r, v);
    if (!r.ok()) return;
  }
}

void write(WireWriter& w, const SequenceStart& s) {
  w.u32(s.slot);
  write_sampling(w, s.sampling);
  w.u32(s.prompt_tokens);
  w.list(I32(s.history));
}

void read(WireReader& r, SequenceStart& s) {
  s.slot = r.u32("start.slot");
  read_sampling(r, s.sampling);
  s.prompt_tokens = r.u32("start.prompt_tokens");
  r.list("start.history", s.history);
}

void write(WireWriter& w, const StateSave& s) {
  w.u32(s.snapshot);
  w.u32(s.position);
}

void read(WireReader& r, StateSave& s) {
  s.snapshot = r.u32("save.snapshot");
  s.position = r.u32("save.position");
}

void write(WireWriter& w, const Chunk& c) {
  w.u32(c.slot);
  w.u32(c.position);
  w.u32(c.cached);
  w.u32(c.load);
  write_all(w, c.saves);
  w.list(I32(c.tokens));
  w.list(U32(c.new_blocks));
  w.boolean(c.sample);
  w.list(I32(c.prompt_targets));
}

void read(WireReader& r, Chunk& c) {
  c.slot = r.u32("chunk.slot");
  c.position = r.u32("chunk.position");
  c.cached = r.u32("chunk.cached");
  c.load = r.u32("chunk.load");
  read_all(r, "chunk.saves", kSaveBytes, c.saves);
  r.list("chunk.tokens", c.tokens);
  r.list("chunk.new_blocks", c.new_blocks);
  c.sample = r.boolean("chunk.sample");
  r.list("chunk.prompt_targets", c.prompt_targets);
  if (!r.ok()) return;
  if (c.tokens.empty()) r.fail("chunk.tokens", "must hold at least one token");
  if (!c.prompt_targets.empty() && c.prompt_targets.size() != c.tokens.size()) {
    r.fail("chunk.prompt_targets", "must be empty or hold one target per token");
  }
}

void write(WireWriter& w, const TokenLogprob& t) {
  w.i32(t.token);
  w.f32(t.logprob);
}

void read(WireReader& r, TokenLogprob& t) {
  t.token = r.i32("token");
  t.logprob = r.f32("logprob");
}

void write(WireWriter& w, const LanePlan& l) {
  write_all(w, l.starts);
  write_all(w, l.chunks);
}

void read(WireReader& r, LanePlan& l) {
  read_all(r, "lane.starts", kStartBytes, l.starts);
  read_all(r, "lane.chunks", kChunkBytes, l.chunks);
}

void write(WireWriter& w, const SampledToken& s) {
  w.u32(s.slot);
  write(w, s.chosen);
  write_all(w, s.top);
}

void read(WireReader& r, SampledToken& s) {
  s.slot = r.u32("sampled.slot");
  read(r, s.chosen);
  read_all(r, "sampled.top", kLogprobBytes, s.top);
}

void write(WireWriter& w, const PromptLogprobs& p) {
  w.u32(p.slot);
  w.u32(p.position);
  write(w, p.target);
  write_all(w, p.top);
}

void read(WireReader& r, PromptLogprobs& p) {
  p.slot = r.u32("prompt_logprobs.slot");
  p.position = r.u32("prompt_logprobs.position");
  read(r, p.target);
  read_all(r, "prompt_logprobs.top", kLogprobBytes, p.top);
}

}  // namespace

void encode(const StepPlan& plan, std::vector<std::uint8_t>& out) {
  out.clear();
  WireWriter w(out);
  w.u64(plan.step);
  w.u32(plan.cohort);
  w.u8(static_cast<std::uint8_t>(plan.exchange));
  w.u32(plan.bucket);
  w.boolean(plan.shutdown);
  write_all(w, plan.lanes);
}

Result<void> decode(std::span<const std::uint8_t> bytes, StepPlan& out) {
  WireReader r(bytes);
  out.step = r.u64("step");
  out.cohort = r.u32("cohort");
  out.exchange = r.enumerator("exchange", ExchangePath::kAllGather);
  out.bucket = r.u32("bucket");
  out.shutdown = r.boolean("shutdown");
  read_all(r, "lanes", kLaneBytes, out.lanes);
  return r.finish("StepPlan");
}

void encode(const StepResult& result, std::vector<std::uint8_t>& out) {
  out.clear();
  WireWriter w(out);
  w.u64(result.step);
  w.u32(result.lane);
  write_all(w, result.sampled);
  write_all(w, result.prompt_logprobs);
}

Result<void> decode(std::span<const std::uint8_t> bytes, StepResult& out) {
  WireReader r(bytes);
  out.step = r.u64("step");
  out.lane = r.u32("lane");
  read_all(r, "sampled", kSampledBytes, out.sampled);
  read_all(r, "prompt_logprobs", kPromptLogprobBytes, out.prompt_logprobs);
  return r.finish("StepResult");
}

void encode(const WorkerReport& report, std::vector<std::uint8_t>& out) {
  out.clear();
  WireWriter w(out);
  w.u32(report.stage);
  w.u32(report.lane);
  w.u64(report.steps);
  w.u64(report.step_ns);
  w.u64(report.exchange_ns);
  w.u64(report.pipeline_wait_ns);
  w.u32(report.first_moe_layer);
  w.u32(report.moe_layers);
  w.count(report.expert_rows.size());
  for (const std::uint64_t rows : report.expert_rows) w.u64(rows);
}

Result<void> decode(std::span<const std::uint8_t> bytes, WorkerReport& out) {
  WireReader r(bytes);
  out.stage = r.u32("report.stage");
  out.lane = r.u32("report.lane");
  out.steps = r.u64("report.steps");
  out.step_ns = r.u64("report.step_ns");
  out.exchange_ns = r.u64("report.exchange_ns");
  out.pipeline_wait_ns = r.u64("report.pipeline_wait_ns");
  out.first_moe_layer = r.u32("report.first_moe_layer");
  out.moe_layers = r.u32("report.moe_layers");
  out.expert_rows.resize(r.count("report.expert_rows", sizeof(std::uint64_t)));
  for (std::uint64_t& rows : out.expert_rows) rows = r.u64("report.expert_rows");
  const bool whole =
      out.moe_layers == 0 ? out.expert_rows.empty() : out.expert_rows.size() % out.moe_layers == 0;
  if (!whole) r.fail("report.expert_rows", "must hold as many counts for each layer");
  return r.finish("WorkerReport");
}

}  // namespace millrace
