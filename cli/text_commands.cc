#include "cli/text_commands.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "cli/complain.h"
#include "cli/local_engine.h"
#include "cli/text_model.h"
#include "net/text/detokenizer.h"

namespace millrace {

namespace {

Result<std::string> read_text(const std::string& text) {
  if (text != "-") return text;
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

Result<std::string> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Error{ErrorCode::kNotFound, path, "cannot be read"};
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Result<std::vector<std::int32_t>> prompt_tokens(const GenerateCommand& command,
                                                const TextModel& text, const std::string& prompt) {
  if (!command.chat) return text.tokenizer.encode(prompt, {.add_special = true});
  if (!text.chat_template) {
    return Error{ErrorCode::kUnsupported, "--chat", "the model ships no chat template"};
  }
  auto messages = nlohmann::ordered_json::array();
  if (!command.system.empty()) {
    messages.push_back({{"role", "system"}, {"content", command.system}});
  }
  messages.push_back({{"role", "user"}, {"content", prompt}});
  Result<std::string> rendered = text.chat_template->render(messages, nullptr);
  if (!rendered) return rendered.error();
  return text.tokenizer.encode(*rendered, {.add_special = false});
}

volatile sig_atomic_t interrupted = 0;

Result<std::unique_ptr<LocalEngine>> start_engine(const ClusterConfig& config) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  auto engine = LocalEngine::start(config, [terminal](double share) {
    if (terminal) fmt::print(stderr, "\rloading {:3.0f} %", share * 100);
  });
  if (terminal) fmt::print(stderr, "\r              \r");
  return engine;
}

}  // namespace

int run_generate(const GenerateCommand& command) {
  Result<TextModel> text = load_text_model(command.config.model.path);
  if (!text) return complain(text.error());
  Result<std::string> prompt = read_text(command.prompt);
  if (!prompt) return complain(prompt.error());
  Result<std::vector<std::int32_t>> tokens = prompt_tokens(command, *text, *prompt);
  if (!tokens) return complain(tokens.error());
  if (tokens->empty()) return complain(invalid("prompt", "is empty"));
  auto engine = start_engine(command.config);
  if (!engine) return complain(engine.error());

  SequenceRequest request;
  request.tokens = std::move(*tokens);
  request.prompt_tokens = static_cast<std::uint32_t>(request.tokens.size());
  request.max_new_tokens = command.max_tokens;
  request.sampling = command.sampling;
  if (!command.ignore_eos) request.stop_token_ids = (*engine)->setup().model.eos_token_ids;

  text::Detokenizer detokenizer(text->tokenizer, /*skip_special=*/true);
  const auto show = [](const std::string& piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  signal(SIGINT, [](int) { interrupted = 1; });
  const Result<FinishReason> finish =
      (*engine)->generate(std::move(request), [&](const TokenEvent& event) {
        if (!event.stop_token) show(detokenizer.push(event.token.token));
        return interrupted == 0;
      });
  show(detokenizer.flush() + "\n");
  return finish ? 0 : complain(finish.error());
}

int run_perplexity(const PerplexityCommand& command) {
  Result<std::string> content = read_file(command.file);
  if (!content) return complain(content.error());
  Result<TextModel> text = load_text_model(command.config.model.path);
  if (!text) return complain(text.error());
  Result<std::vector<std::int32_t>> tokens =
      text->tokenizer.encode(*content, {.add_special = false, .parse_special = false});
  if (!tokens) return complain(tokens.error());
  auto engine = start_engine(command.config);
  if (!engine) return complain(engine.error());
  const auto bos = text->tokenizer.bos();
  const std::size_t body = command.window - (bos ? 1 : 0);

  double sum = 0;
  std::uint64_t count = 0;
  for (std::size_t begin = 0; begin < tokens->size(); begin += body) {
    SequenceRequest request;
    if (bos) request.tokens.push_back(*bos);
    const auto end = std::min(tokens->size(), begin + body);
    request.tokens.insert(request.tokens.end(),
                          tokens->begin() + static_cast<std::ptrdiff_t>(begin),
                          tokens->begin() + static_cast<std::ptrdiff_t>(end));
    if (request.tokens.size() < 2) break;
    request.prompt_tokens = static_cast<std::uint32_t>(request.tokens.size());
    request.max_new_tokens = 0;
    request.sampling.prompt_logprobs = true;
    const Result<FinishReason> finish = (*engine)->generate(
        std::move(request), [](const TokenEvent&) { return true; },
        [&](const PromptLogprobsEvent& event) {
          for (const TokenLogprob& target : event.targets)
            sum -= static_cast<double>(target.logprob);
          count += event.targets.size();
        });
    if (!finish) return complain(finish.error());
  }
  if (count == 0) return complain(invalid(command.file, "has no token to predict"));
  const double nll = sum / static_cast<double>(count);
  if (command.json) {
    const nlohmann::ordered_json out{{"perplexity", std::exp(nll)},
                                     {"mean_nll", nll},
                                     {"tokens", count},
                                     {"window", command.window}};
    fmt::print("{}\n", out.dump());
  } else {
    fmt::print("perplexity {:.4f} over {} tokens (windows of {})\n", std::exp(nll), count,
               command.window);
  }
  return 0;
}

int run_tokenize(const TokenizeCommand& command) {
  Result<TextModel> model = load_text_model(command.model);
  if (!model) return complain(model.error());
  Result<std::string> input = read_text(command.text);
  if (!input) return complain(input.error());
  const auto ids = model->tokenizer.encode(*input, {.add_special = command.add_special});
  if (!ids) return complain(ids.error());
  for (const std::int32_t id : *ids) {
    if (command.ids_only) {
      fmt::print("{}\n", id);
    } else {
      const std::string piece(model->tokenizer.id_to_piece(id));
      fmt::print(
          "{:>8}  {}\n", id,
          nlohmann::json(piece).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    }
  }
  return 0;
}

}  // namespace millrace
