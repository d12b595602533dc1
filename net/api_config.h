// What the API is told at start.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/version.h"
#include "net/http_config.h"
#include "net/http_router.h"
#include "net/openai_types.h"

namespace millrace::net {

struct ApiConfig {
  HttpServerConfig http;                 // its three callbacks are set by ApiServer
  std::vector<std::string> model_names;  // the served name, then aliases; at least one
  std::string owned_by = "millrace";
  std::string version{kVersion};
  std::string system_fingerprint;  // changes when answers may: model and numeric mode
  ApiLimits limits;
  SamplingDefaults defaults;
  std::vector<std::int32_t> eos_token_ids;  // end a generation unless ignore_eos

  std::vector<std::string> api_keys;       // empty: open to all
  bool guard_metrics = false;              // /metrics needs a key as well
  bool overload_as_429 = false;            // a full service answers 429 instead of 503
  bool neutralize_special_tokens = false;  // control tokens typed into messages stay plain text
  std::chrono::milliseconds keep_alive{15'000};  // silence of a stream before a comment line
  std::size_t offload_body_bytes = 16 * 1024;    // larger bodies are prepared off the io thread
  std::uint32_t prepare_threads = 2;
  // Adds routes of the process to the API's own. API keys do not open "/drain", which sees to it
  // itself who may take it.
  std::function<void(HttpRouter&)> more_routes;
};

}  // namespace millrace::net
