#include "cli/bench_load.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>
#include <tuple>

#include "kernels/philox.h"

namespace millrace::cli {
namespace {

namespace asio = boost::asio;
using nlohmann::json;

constexpr int kTokenizeAttempts = 12;

bool uses_ids(const BenchOptions& options) {
  if (options.prompt == BenchPrompt::kAuto) return options.endpoint == BenchEndpoint::kCompletions;
  return options.prompt == BenchPrompt::kIds;
}

json messages_of(const std::string& text) {
  return json::array({{{"role", "user"}, {"content", text}}});
}

struct ServedModel {
  std::string name;              // empty: the answer names none
  std::uint32_t vocab_size = 0;  // 0: the answer does not say
};

// Of an answer of /v1/models: the model `name`, or the first when that is empty. The vocabulary's
// size stands where Millrace or llama-server (meta.n_vocab) put it.
ServedModel find_served(const std::string& answer, const std::string& name) {
  const json body = json::parse(answer, nullptr, false);
  if (!body.is_object() || !body.contains("data") || !body["data"].is_array()) return {};
  for (const json& model : body["data"]) {
    if (!model.is_object() || !model.contains("id") || !model["id"].is_string()) continue;
    ServedModel served{.name = model["id"].get<std::string>()};
    if (!name.empty() && served.name != name) continue;
    for (const char* place : {"/vocab_size", "/meta/n_vocab"}) {
      const json::json_pointer at(place);
      if (model.contains(at) && model[at].is_number_unsigned()) {
        served.vocab_size = model[at].get<std::uint32_t>();
      }
    }
    return served;
  }
  return {};
}

class Load {
 public:
  Load(const BenchOptions& options, BenchTarget target)
      : options_(options),
        target_(std::move(target)),
        timeout_(static_cast<std::int64_t>(options.timeout_s * 1000)),
        shape_{.seed = options.seed,
               .tokens = options.input_tokens,
               .prefix_tokens = options.prefix_tokens,
               .first_id = options.first_token_id,
               .last_id = options.last_token_id} {}

  Result<LoadResult> run() {
    if (auto resolved = resolve(target_); !resolved) return resolved.error();
    Result<void> prepared;
    run_until_idle([](Load& load, Result<void>& out) -> asio::awaitable<void> {
      out = co_await load.prepare();
    }(*this, prepared));
    if (!prepared) return prepared.error();

    result_.records.resize(options_.num_prompts);
    start_ = BenchClock::now();
    if (options_.request_rate > 0) {
      double at_s = 0;
      for (std::uint32_t i = 0; i < options_.num_prompts; ++i) {
        spawn(arrival(i, at_s));
        at_s -=
            std::log(kernels::draw_uniform(options_.seed, i, 1ULL << 63)) / options_.request_rate;
      }
    } else {
      const std::uint32_t clients = std::min(options_.concurrency, options_.num_prompts);
      for (std::uint32_t i = 0; i < clients; ++i) spawn(client_loop());
    }
    run_io();
    return std::move(result_);
  }

 private:
  void spawn(asio::awaitable<void> work) {
    asio::co_spawn(io_, std::move(work), [this](std::exception_ptr e) {
      if (e && !exception_) exception_ = e;
    });
  }

  void run_io() {
    io_.restart();
    io_.run();
    if (exception_) std::rethrow_exception(exception_);
  }

  void run_until_idle(asio::awaitable<void> work) {
    spawn(std::move(work));
    run_io();
  }

  std::unique_ptr<BenchClient> new_client() {
    return std::make_unique<BenchClient>(io_.get_executor(), target_, timeout_);
  }

  const char* path() const {
    return options_.endpoint == BenchEndpoint::kChat ? "/v1/chat/completions" : "/v1/completions";
  }

  // Everything before the clock starts: the model's name, the bodies, the warm-up.
  asio::awaitable<Result<void>> prepare() {
    const auto client = new_client();
    if (auto found = co_await find_model(*client); !found) co_return found.error();
    result_.prompt_length_exact = true;
    for (std::uint32_t i = 0; i < options_.num_prompts + options_.warmup; ++i) {
      std::vector<std::int32_t> ids;
      std::string text;
      if (uses_ids(options_)) {
        ids = random_ids(shape_, i);
      } else {
        text = co_await text_prompt(*client, i);
      }
      bodies_.push_back(request_body(options_, result_.model, ids, text));
    }
    for (std::uint32_t i = 0; i < options_.warmup; ++i) {
      const RequestRecord record =
          co_await client->stream(path(), bodies_[options_.num_prompts + i]);
      if (!record.ok()) {
        co_return Error{ErrorCode::kUnavailable, "warm-up request",
                        fmt::format("{}: {}", record.failure, record.detail)};
      }
    }
    co_return Result<void>{};
  }

  // The model's name, and the range of token ids where the options leave it open.
  asio::awaitable<Result<void>> find_model(BenchClient& client) {
    result_.model = options_.model;
    if (!options_.model.empty() && options_.last_token_id > 0) co_return Result<void>{};
    const auto answer = co_await client.fetch("/v1/models", "");
    const ServedModel served = answer ? find_served(answer->body, options_.model) : ServedModel{};
    if (options_.model.empty()) {
      if (!answer) {
        Error error = answer.error();
        error.field = "/v1/models";
        co_return error;
      }
      if (answer->status != 200 || served.name.empty()) {
        co_return Error{ErrorCode::kUnavailable, "/v1/models",
                        fmt::format("status {} and no model in it; give --model", answer->status)};
      }
      result_.model = served.name;
    }
    if (options_.last_token_id == 0) {
      std::tie(shape_.first_id, shape_.last_id) = usual_token_range(served.vocab_size);
    }
    co_return Result<void>{};
  }

  // A text of exactly input_tokens tokens where the server can count them, else about as many.
  asio::awaitable<std::string> text_prompt(BenchClient& client, std::uint32_t index) {
    std::uint32_t words = last_words_ > 0 ? last_words_ : options_.input_tokens;
    std::string text = random_words(shape_, index, words);
    if (!can_tokenize_) co_return text;
    for (int attempt = 0; attempt < kTokenizeAttempts; ++attempt) {
      const std::uint32_t counted = co_await count_tokens(client, text);
      if (counted == 0) {
        can_tokenize_ = false;
        break;
      }
      if (counted == options_.input_tokens) {
        last_words_ = words;  // the next prompt is likely to need as many
        co_return text;
      }
      words = next_word_count(words, counted, options_.input_tokens);
      if (words == 0) break;
      text = random_words(shape_, index, words);
    }
    result_.prompt_length_exact = false;
    co_return text;
  }

  // The server's count of a prompt's tokens, template included; 0 when it cannot say.
  asio::awaitable<std::uint32_t> count_tokens(BenchClient& client, const std::string& text) {
    json body = {{"model", result_.model}};
    if (options_.endpoint == BenchEndpoint::kChat) {
      body["messages"] = messages_of(text);
      body["add_generation_prompt"] = true;
    } else {
      body["prompt"] = text;
    }
    const auto answer = co_await client.fetch("/tokenize", body.dump());
    if (!answer || answer->status != 200) co_return 0;
    const json counted = json::parse(answer->body, nullptr, false);
    if (!counted.is_object()) co_return 0;
    if (counted.contains("count") && counted["count"].is_number_unsigned()) {
      co_return counted["count"].get<std::uint32_t>();
    }
    if (counted.contains("tokens") && counted["tokens"].is_array()) {
      co_return static_cast<std::uint32_t>(counted["tokens"].size());
    }
    co_return 0;
  }

  asio::awaitable<void> client_loop() {
    const auto client = new_client();
    while (next_ < options_.num_prompts) {
      const std::uint32_t i = next_++;
      co_await request(*client, i);
    }
  }

  asio::awaitable<void> arrival(std::uint32_t i, double at_s) {
    asio::steady_timer timer(io_);
    timer.expires_at(start_ + std::chrono::duration_cast<BenchClock::duration>(
                                  std::chrono::duration<double>(at_s)));
    co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
    std::unique_ptr<BenchClient> client;
    if (idle_.empty()) {
      client = new_client();
    } else {
      client = std::move(idle_.back());
      idle_.pop_back();
    }
    co_await request(*client, i);
    idle_.push_back(std::move(client));
  }

  asio::awaitable<void> request(BenchClient& client, std::uint32_t i) {
    RequestRecord record = co_await client.stream(path(), std::move(bodies_[i]));
    if (record.prompt_tokens == 0) record.prompt_tokens = options_.input_tokens;
    if (record.ok() && options_.ignore_eos && record.output_tokens != options_.output_tokens) {
      record.failure = "wrong length";
      record.detail = fmt::format("{} tokens instead of {}; is ignore_eos known to the server?",
                                  record.output_tokens, options_.output_tokens);
    }
    result_.records[i] = std::move(record);
  }

  const BenchOptions& options_;
  asio::io_context io_{1};
  BenchTarget target_;
  std::chrono::milliseconds timeout_;
  PromptShape shape_;
  std::vector<std::string> bodies_;  // num_prompts, then the warm-up's
  LoadResult result_;
  bool can_tokenize_ = true;
  std::uint32_t last_words_ = 0;
  BenchClock::time_point start_;
  std::uint32_t next_ = 0;
  std::vector<std::unique_ptr<BenchClient>> idle_;
  std::exception_ptr exception_;
};

}  // namespace

Result<void> check_options(const BenchOptions& o) {
  if (o.num_prompts == 0) return invalid("--num-prompts", "must be at least 1");
  if (o.concurrency == 0) return invalid("--concurrency", "must be at least 1");
  if (!(o.request_rate >= 0 && o.request_rate < 1e6)) {
    return invalid("--request-rate", "must be 0 (closed loop) or requests a second below 1e6");
  }
  if (o.input_tokens == 0) return invalid("--input-len", "must be at least 1");
  if (o.output_tokens == 0) return invalid("--output-len", "must be at least 1");
  if (o.prefix_tokens > o.input_tokens)
    return invalid("--prefix-len", "must be at most --input-len");
  const bool open = o.first_token_id == 0 && o.last_token_id == 0;
  if (!open && (o.first_token_id < 0 || o.last_token_id <= o.first_token_id)) {
    return invalid("--token-range", "must be two ids, the first one smaller");
  }
  if (!(o.timeout_s > 0 && o.timeout_s <= 86400)) {
    return invalid("--timeout", "must be seconds in (0, 86400]");
  }
  if (o.endpoint == BenchEndpoint::kChat && o.prompt == BenchPrompt::kIds) {
    return invalid("--prompt", "ids is for --endpoint completions; a chat takes text");
  }
  if (!o.extra_body.empty() && !json::parse(o.extra_body, nullptr, false).is_object()) {
    return invalid("--extra-body", "must be a JSON object, such as '{\"top_k\": 1}'");
  }
  return {};
}

std::string request_body(const BenchOptions& options, const std::string& model,
                         const std::vector<std::int32_t>& ids, const std::string& text) {
  json body = {{"model", model},
               {"max_tokens", options.output_tokens},
               {"temperature", options.temperature},
               {"stream", true},
               {"stream_options", {{"include_usage", true}}}};
  if (options.ignore_eos) body["ignore_eos"] = true;
  if (options.endpoint == BenchEndpoint::kChat) {
    body["messages"] = messages_of(text);
  } else if (ids.empty()) {
    body["prompt"] = text;
  } else {
    body["prompt"] = ids;
  }
  if (!options.extra_body.empty()) body.update(json::parse(options.extra_body));
  return body.dump();
}

Result<LoadResult> run_load(const BenchOptions& options) {
  if (auto checked = check_options(options); !checked) return checked.error();
  auto target = parse_target(options.url);
  if (!target) return target.error();
  target->api_key = options.api_key;
  try {
    return Load(options, std::move(*target)).run();
  } catch (const std::exception& e) {
    return Error{ErrorCode::kInternal, "", e.what()};
  }
}

}  // namespace millrace::cli
