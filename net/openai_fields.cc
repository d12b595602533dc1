#include "net/openai_fields.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <random>

#include "net/openai_error.h"

namespace millrace::net {
namespace {

// Below this vLLM samples greedily too; dividing by less would overflow a float's logits.
constexpr float kGreedyBelow = 1e-5F;

std::uint64_t random_seed() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) | device();
}

void read_logit_bias(FieldReader& fields, const ParseContext& context, SamplingParams& sampling) {
  const Json* bias = fields.object("logit_bias");
  if (bias == nullptr) return;
  if (bias->size() > context.limits.max_logit_bias) {
    fields.fail("logit_bias", fmt::format("logit_bias has {} entries, at most {} are accepted",
                                          bias->size(), context.limits.max_logit_bias));
    return;
  }
  for (const auto& [key, value] : bias->items()) {
    std::int32_t id = -1;
    const auto [end, ec] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (ec != std::errc() || end != key.data() + key.size() || id < 0 ||
        id >= context.limits.vocab_size) {
      fields.fail("logit_bias", fmt::format("the keys of logit_bias must be token ids from 0 to {}",
                                            context.limits.vocab_size - 1));
      return;
    }
    const double amount = value.is_number() ? value.get<double>() : 1e9;
    if (!(amount >= -100.0 && amount <= 100.0)) {
      fields.fail("logit_bias." + key, "a logit bias must be a number from -100 to 100");
      return;
    }
    sampling.logit_bias.emplace_back(id, static_cast<float>(amount));
  }
  // "7" and "07" are one token; ids must be unique.
  auto& list = sampling.logit_bias;
  std::sort(list.begin(), list.end());
  const auto same = std::adjacent_find(
      list.begin(), list.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
  if (same != list.end()) {
    fields.fail("logit_bias", fmt::format("logit_bias names token {} twice", same->first));
  }
}

void read_sampling(FieldReader& fields, const ParseContext& context, SamplingParams& sampling) {
  const SamplingDefaults& defaults = context.defaults;
  sampling.temperature = fields.number("temperature", 0, 2).value_or(defaults.temperature);
  if (sampling.temperature < kGreedyBelow) sampling.temperature = 0;
  sampling.top_p = fields.number("top_p", 0, 1, true).value_or(defaults.top_p);
  const auto top_k = fields.integer("top_k", -1, INT32_MAX).value_or(defaults.top_k);
  sampling.top_k = static_cast<std::int32_t>(std::max<std::int64_t>(top_k, 0));
  sampling.min_p = fields.number("min_p", 0, 1).value_or(defaults.min_p);
  sampling.repetition_penalty =
      fields.number("repetition_penalty", 0, 100, true).value_or(defaults.repetition_penalty);
  sampling.presence_penalty = fields.number("presence_penalty", -2, 2).value_or(0);
  sampling.frequency_penalty = fields.number("frequency_penalty", -2, 2).value_or(0);
  read_logit_bias(fields, context, sampling);
  const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  sampling.seed = seed ? static_cast<std::uint64_t>(*seed) : random_seed();
}

void read_stop(FieldReader& fields, const ParseContext& context, GenerationParams& params) {
  const Json* stop = fields.get("stop");
  if (stop != nullptr && stop->is_string()) {
    params.stop.push_back(stop->get<std::string>());
  } else if (stop != nullptr && stop->is_array()) {
    if (stop->size() > context.limits.max_stop_strings) {
      fields.fail("stop", fmt::format("at most {} stop strings are accepted, not {}",
                                      context.limits.max_stop_strings, stop->size()));
      return;
    }
    for (const Json& text : *stop) {
      if (!text.is_string()) {
        fields.fail(fmt::format("stop[{}]", params.stop.size()),
                    "a stop string must be a string, not " + json_kind(text), "invalid_type");
        return;
      }
      params.stop.push_back(text.get<std::string>());
    }
  } else if (stop != nullptr) {
    fields.fail("stop", "stop must be a string or an array of strings, not " + json_kind(*stop),
                "invalid_type");
  }
  for (std::size_t i = 0; i < params.stop.size(); ++i) {
    if (params.stop[i].empty() || params.stop[i].size() > 1024) {
      fields.fail(stop->is_array() ? fmt::format("stop[{}]", i) : "stop",
                  "a stop string must have 1 to 1024 bytes");
    }
  }
  params.stop_token_ids =
      fields
          .token_ids("stop_token_ids", context.limits.vocab_size, context.limits.max_stop_token_ids)
          .value_or(std::vector<std::int32_t>{});
  params.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  params.output.include_stop = fields.boolean("include_stop_str_in_output").value_or(false);
}

void read_stream(FieldReader& fields, OutputOptions& output) {
  output.stream = fields.boolean("stream").value_or(false);
  const Json* options = fields.object("stream_options");
  if (options == nullptr) return;
  if (!output.stream) {
    fields.fail("stream_options", "stream_options is only accepted together with stream: true");
    return;
  }
  FieldReader inner(*options, "stream_options.");
  output.include_usage = inner.boolean("include_usage").value_or(false);
  output.continuous_usage =
      inner.boolean("continuous_usage_stats").value_or(false) && output.include_usage;
  if (inner.error()) fields.fail(*inner.error());
}

void read_response_format(FieldReader& fields) {
  const Json* format = fields.object("response_format");
  if (format == nullptr) return;
  const auto type = format->find("type");
  if (type == format->end() || !type->is_string()) {
    fields.fail("response_format.type", "response_format needs a type", "invalid_type");
  } else if (*type != "text") {
    fields.fail("response_format.type",
                "response_format \"" + type->get<std::string>() +
                    "\" is not served here: answers are not constrained to JSON; use \"text\"",
                "unsupported_parameter");
  }
}

}  // namespace

void read_params(FieldReader& fields, const ParseContext& context, GenerationParams& params) {
  const auto model = fields.string("model");
  if (!model && !fields.failed()) {
    fields.fail("model", "model is missing: name the model to use", "missing_required_parameter");
  }
  params.model = model.value_or("");
  params.n = static_cast<std::uint32_t>(fields.integer("n", 1, context.limits.max_n).value_or(1));
  const auto best_of = fields.integer("best_of", 1, INT32_MAX);
  if (best_of && *best_of != params.n) {
    fields.fail("best_of", "best_of other than n is not served here", "unsupported_parameter");
  }
  params.min_tokens =
      static_cast<std::uint32_t>(fields.integer("min_tokens", 0, INT32_MAX).value_or(0));
  params.output.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  params.output.return_token_ids = fields.boolean("return_token_ids").value_or(false);
  params.output.prompt_logprobs = static_cast<std::int32_t>(
      fields.integer("prompt_logprobs", 0, context.limits.max_logprobs).value_or(-1));
  read_sampling(fields, context, params.sampling);
  read_stop(fields, context, params);
  read_stream(fields, params.output);
  read_response_format(fields);
  if (params.output.stream && params.output.prompt_logprobs >= 0) {
    fields.fail("prompt_logprobs", "prompt_logprobs is not available with stream: true");
  }
}

void read_unserved(FieldReader& fields) {
  for (const char* name : {"guided_json", "guided_regex", "guided_choice", "guided_grammar",
                           "structured_outputs", "grammar", "json_schema", "regex", "ebnf"}) {
    fields.refuse(name, std::string(name) + " is not served here: answers are not constrained");
  }
  for (const char* name : {"use_beam_search", "logits_processors", "allowed_token_ids", "bad_words",
                           "truncate_prompt_tokens", "prompt_embeds", "return_tokens_as_token_ids",
                           "kv_transfer_params", "cache_salt", "vllm_xargs", "lora_path"}) {
    fields.refuse(name, std::string(name) + " is not served here; leave it out");
  }
  fields.refuse("length_penalty", "length_penalty is not served here", 1.0);
  fields.refuse("typical_p", "typical_p is not served here", 1.0);
  for (const char* name :
       {"user", "metadata", "store", "service_tier", "priority", "request_id", "verbosity",
        "prediction", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "parallel_tool_calls", "spaces_between_special_tokens", "include_reasoning"}) {
    fields.ignore(name);
  }
}

void log_unknown(const FieldReader& fields, const char* route) {
  if (!spdlog::should_log(spdlog::level::debug)) return;
  for (const std::string& name : fields.unknown()) {
    spdlog::debug("{}: unknown field \"{}\" ignored", route, name.substr(0, 64));
  }
}

}  // namespace millrace::net
