#include "net/codec.h"

#include <algorithm>

#include "config/sampling_wire.h"
#include "config/wire.h"

namespace millrace::net {
namespace {

using I32 = std::span<const std::int32_t>;

constexpr std::size_t kLogprobBytes = 8;
// id, index, has_token, token, count of top, finish, stop_token, length of error,
// since_scheduled_us, cached_tokens
constexpr std::size_t kEventBytes = 8 + 4 + 1 + kLogprobBytes + 4 + 1 + 1 + 4 + 4 + 4;

void write(WireWriter& w, const TokenLogprob& t) {
  w.i32(t.token);
  w.f32(t.logprob);
}

void read(WireReader& r, TokenLogprob& t) {
  t.token = r.i32("token");
  t.logprob = r.f32("logprob");
}

void write(WireWriter& w, const std::vector<TokenLogprob>& list) {
  w.count(list.size());
  for (const TokenLogprob& t : list) write(w, t);
}

void read(WireReader& r, const char* field, std::vector<TokenLogprob>& list) {
  list.resize(r.count(field, kLogprobBytes));
  for (TokenLogprob& t : list) read(r, t);
}

void write(WireWriter& w, const TokenEvent& e) {
  w.u64(e.id);
  w.u32(e.index);
  w.boolean(e.has_token);
  write(w, e.token);
  write(w, e.top);
  w.u8(static_cast<std::uint8_t>(e.finish));
  w.boolean(e.stop_token);
  w.string(e.error);
  w.u32(e.since_scheduled_us);
  w.u32(e.cached_tokens);
}

void read(WireReader& r, TokenEvent& e) {
  e.id = r.u64("id");
  e.index = r.u32("index");
  e.has_token = r.boolean("has_token");
  read(r, e.token);
  read(r, "top", e.top);
  e.finish = r.enumerator("finish", FinishReason::kRefused);
  e.stop_token = r.boolean("stop_token");
  r.string("error", e.error);
  e.since_scheduled_us = r.u32("since_scheduled_us");
  e.cached_tokens = r.u32("cached_tokens");
  if (r.ok() && !e.has_token && e.finish == FinishReason::kNone) {
    r.fail("finish", "must be set on an event without a token");
  }
}

}  // namespace

void encode(const Hello& v, Bytes& out) {
  WireWriter w(out);
  w.string(v.info.cell_id);
  w.u64(v.info.epoch);
  w.string(v.info.model_fingerprint);
  w.u32(v.info.max_context);
  w.u32(v.info.max_sequences);
  w.u64(v.info.kv_tokens);
  w.u32(v.info.stages);
  w.u32(v.info.lanes);
  w.u32(v.info.block_tokens);
  w.string(v.info.kv_dtype);
  w.string(v.info.backend);
  w.string(v.info.transport);
  w.string(v.secret);
}

Result<void> decode(ByteView in, Hello& out) {
  WireReader r(in);
  r.string("cell_id", out.info.cell_id);
  out.info.epoch = r.u64("epoch");
  r.string("model_fingerprint", out.info.model_fingerprint);
  out.info.max_context = r.u32("max_context");
  out.info.max_sequences = r.u32("max_sequences");
  out.info.kv_tokens = r.u64("kv_tokens");
  out.info.stages = r.u32("stages");
  out.info.lanes = r.u32("lanes");
  out.info.block_tokens = r.u32("block_tokens");
  r.string("kv_dtype", out.info.kv_dtype);
  r.string("backend", out.info.backend);
  r.string("transport", out.info.transport);
  r.string("secret", out.secret);
  return r.finish("Hello");
}

void encode(const Welcome& v, Bytes& out) { WireWriter(out).u32(v.heartbeat_limit_ms); }

Result<void> decode(ByteView in, Welcome& out) {
  WireReader r(in);
  out.heartbeat_limit_ms = r.u32("heartbeat_limit_ms");
  return r.finish("Welcome");
}

void encode(const Notice& v, Bytes& out) { WireWriter(out).string(v.reason); }

Result<void> decode(ByteView in, Notice& out) {
  WireReader r(in);
  r.string("reason", out.reason);
  return r.finish("Notice");
}

void encode(const Cancel& v, Bytes& out) { WireWriter(out).u64(v.id); }

Result<void> decode(ByteView in, Cancel& out) {
  WireReader r(in);
  out.id = r.u64("id");
  return r.finish("Cancel");
}

void encode(const SequenceRequest& v, Bytes& out) {
  WireWriter w(out);
  w.u64(v.id);
  w.list(I32(v.tokens));
  w.u32(v.prompt_tokens);
  w.u32(v.max_new_tokens);
  w.u32(v.min_new_tokens);
  w.list(I32(v.stop_token_ids));
  write_sampling(w, v.sampling);
}

Result<void> decode(ByteView in, SequenceRequest& out) {
  WireReader r(in);
  out.id = r.u64("id");
  r.list("tokens", out.tokens);
  out.prompt_tokens = r.u32("prompt_tokens");
  out.max_new_tokens = r.u32("max_new_tokens");
  out.min_new_tokens = r.u32("min_new_tokens");
  r.list("stop_token_ids", out.stop_token_ids);
  read_sampling(r, out.sampling);
  if (r.ok()) {
    if (out.prompt_tokens == 0 || out.prompt_tokens > out.tokens.size()) {
      r.fail("prompt_tokens", "must lie between 1 and the number of tokens");
    } else if (out.tokens.size() - out.prompt_tokens >= std::max(out.max_new_tokens, 1U)) {
      r.fail("max_new_tokens", "must leave at least one token to generate");
    } else if (out.max_new_tokens == 0 && !out.sampling.prompt_logprobs) {
      r.fail("max_new_tokens", "must be at least 1 without prompt_logprobs");
    }
  }
  return r.finish("SequenceRequest");
}

void encode(std::span<const TokenEvent> v, Bytes& out) {
  WireWriter w(out);
  w.count(v.size());
  for (const TokenEvent& e : v) write(w, e);
}

Result<void> decode(ByteView in, std::vector<TokenEvent>& out) {
  WireReader r(in);
  out.resize(r.count("events", kEventBytes));
  for (TokenEvent& e : out) {
    read(r, e);
    if (!r.ok()) break;
  }
  return r.finish("Tokens");
}

void encode(const PromptLogprobsEvent& v, Bytes& out) {
  WireWriter w(out);
  w.u64(v.id);
  write(w, v.targets);
  w.count(v.top.size());
  for (const auto& list : v.top) write(w, list);
}

Result<void> decode(ByteView in, PromptLogprobsEvent& out) {
  WireReader r(in);
  out.id = r.u64("id");
  read(r, "targets", out.targets);
  out.top.resize(r.count("top", 4));
  for (auto& list : out.top) {
    read(r, "top", list);
    if (!r.ok()) break;
  }
  if (r.ok() && !out.top.empty() && out.top.size() != out.targets.size()) {
    r.fail("top", "must be empty or hold one list per target");
  }
  return r.finish("PromptLogprobs");
}

void encode(const CellStatus& v, Bytes& out) {
  WireWriter w(out);
  w.u64(v.steps);
  w.u32(v.running);
  w.u32(v.waiting);
  w.u64(v.kv_tokens_used);
  w.u64(v.kv_tokens_cached);
  w.u64(v.preemptions);
  w.u64(v.prompt_tokens);
  w.u64(v.generated_tokens);
  w.u64(v.recomputed_tokens);
  w.u64(v.prefix_queried_tokens);
  w.u64(v.prefix_hit_tokens);
  w.u64(v.prefix_rebuilt_tokens);
  w.u64(v.corrupted_sequences);
  w.u32(v.ms_since_progress);
  w.boolean(v.draining);
}

Result<void> decode(ByteView in, CellStatus& out) {
  WireReader r(in);
  out.steps = r.u64("steps");
  out.running = r.u32("running");
  out.waiting = r.u32("waiting");
  out.kv_tokens_used = r.u64("kv_tokens_used");
  out.kv_tokens_cached = r.u64("kv_tokens_cached");
  out.preemptions = r.u64("preemptions");
  out.prompt_tokens = r.u64("prompt_tokens");
  out.generated_tokens = r.u64("generated_tokens");
  out.recomputed_tokens = r.u64("recomputed_tokens");
  out.prefix_queried_tokens = r.u64("prefix_queried_tokens");
  out.prefix_hit_tokens = r.u64("prefix_hit_tokens");
  out.prefix_rebuilt_tokens = r.u64("prefix_rebuilt_tokens");
  out.corrupted_sequences = r.u64("corrupted_sequences");
  out.ms_since_progress = r.u32("ms_since_progress");
  out.draining = r.boolean("draining");
  return r.finish("Heartbeat");
}

}  // namespace millrace::net
