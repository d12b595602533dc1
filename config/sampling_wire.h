// SamplingParams in the wire form of config/wire.h: it travels inside requests and inside step
// plans.
#pragma once

#include "config/sampling_params.h"
#include "config/wire.h"

namespace millrace {

inline void write_sampling(WireWriter& w, const SamplingParams& p) {
  w.f32(p.temperature);
  w.i32(p.top_k);
  w.f32(p.top_p);
  w.f32(p.min_p);
  w.f32(p.repetition_penalty);
  w.f32(p.presence_penalty);
  w.f32(p.frequency_penalty);
  w.count(p.logit_bias.size());
  for (const auto& [token, bias] : p.logit_bias) {
    w.i32(token);
    w.f32(bias);
  }
  w.u64(p.seed);
  w.u32(p.choice);
  w.i32(p.logprobs);
  w.boolean(p.prompt_logprobs);
}

// Refuses what is not a number; whether a number is in its documented range is checked where a
// request enters.
inline void read_sampling(WireReader& r, SamplingParams& p) {
  p.temperature = r.finite_f32("sampling.temperature");
  p.top_k = r.i32("sampling.top_k");
  p.top_p = r.finite_f32("sampling.top_p");
  p.min_p = r.finite_f32("sampling.min_p");
  p.repetition_penalty = r.finite_f32("sampling.repetition_penalty");
  p.presence_penalty = r.finite_f32("sampling.presence_penalty");
  p.frequency_penalty = r.finite_f32("sampling.frequency_penalty");
  p.logit_bias.resize(r.count("sampling.logit_bias", 8));
  for (auto& [token, bias] : p.logit_bias) {
    token = r.i32("sampling.logit_bias.token");
    bias = r.finite_f32("sampling.logit_bias.bias");
  }
  p.seed = r.u64("sampling.seed");
  p.choice = r.u32("sampling.choice");
  p.logprobs = r.i32("sampling.logprobs");
  p.prompt_logprobs = r.boolean("sampling.prompt_logprobs");
}

}  // namespace millrace
