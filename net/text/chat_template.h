// Chat templates: a conversation and a tool list become the text of a prompt.
//
// An interpreter of the Jinja subset that chat templates use, with the environment of transformers'
// apply_chat_template (trim_blocks, lstrip_blocks, loop controls, sandboxed methods, `tojson`
// without HTML escaping, raise_exception, strftime_now, the `generation` block as pass-through).
// Constructs, filters, tests, functions and methods outside the subset are refused when loading,
// with their line.
//
// Special-token strings inside a message, e.g. a user who types "<|im_end|>", come out as they are,
// and a prompt that is then encoded with parse_special turns them into control tokens. Peers behave
// so, and templates of the first LFM2 generation rely on it for tool calls in assistant content. A
// service for strangers sets RenderOptions::neutralize, see there.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "config/result.h"

namespace millrace::text {

namespace jinja {
struct Template;
}

// Bounds on one rendering, so that neither a hostile template nor a huge conversation can hang or
// exhaust the gateway. Exceeding one is kResourceExhausted.
struct RenderLimits {
  std::size_t max_output_bytes = std::size_t{64} << 20;  // also of any string built on the way
  std::size_t max_steps = 10'000'000;  // evaluated nodes, list items made, 32 bytes of string built
  int max_depth = 100;                 // nested macro calls and nested values
};

struct RenderOptions {
  bool add_generation_prompt = true;
  // Continues the last message (an answer begun by the caller) instead of closing it: the rendered
  // text ends with its content. Exclusive with add_generation_prompt.
  bool continue_final_message = false;
  // Further variables, e.g. {"keep_past_thinking": true}. They override nothing that is set here.
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();
  // Strings to break up wherever they occur in messages that are not from the assistant and in the
  // tools: U+200B is put after their first character, so that the tokenizer no longer sees them.
  // Give Tokenizer::special_tokens().
  std::vector<std::string> neutralize;
  // OpenAI clients send tool_calls[].function.arguments as a JSON text, templates want the object.
  bool parse_tool_arguments = true;
  // Fills `thinking` and `reasoning_content` from each other and from `reasoning`, as transformers.
  bool alias_reasoning = true;
  // The clock of strftime_now, local time.
  std::function<std::chrono::system_clock::time_point()> now = std::chrono::system_clock::now;
  RenderLimits limits;
};

// Immutable after load(); render() may run on many threads at once.
class ChatTemplate {
 public:
  // `bos` and `eos` are the texts of the tokens, seen by the template as bos_token and eos_token.
  // Errors: field "chat_template", message with line and construct.
  static Result<ChatTemplate> load(std::string_view source, std::string bos, std::string eos);

  // `messages`: a JSON array of objects; `tools`: an array, or null for none. An error raised by
  // the template itself (raise_exception, an operation on an undefined value) is kInvalidArgument
  // with field "messages", meant for the client.
  Result<std::string> render(const nlohmann::ordered_json& messages,
                             const nlohmann::ordered_json& tools,
                             const RenderOptions& options = {}) const;

  // Whether message content may be a list of parts ({"type": "text", "text": ...}). Found by trying
  // when loading; when false, the caller flattens such content to a string first.
  bool accepts_content_parts() const { return accepts_content_parts_; }
  // Whether the template looks at the tools at all, and at tool_calls of assistant messages.
  bool renders_tools() const { return renders_tools_; }
  bool renders_tool_calls() const { return renders_tool_calls_; }

 private:
  ChatTemplate() = default;
  Result<std::string> render_raw(const nlohmann::ordered_json& messages,
                                 const nlohmann::ordered_json& tools,
                                 const RenderOptions& options) const;
  void probe();

  std::shared_ptr<const jinja::Template> template_;
  std::string bos_;
  std::string eos_;
  bool accepts_content_parts_ = false;
  bool renders_tools_ = false;
  bool renders_tool_calls_ = false;
};

// The text of the template shipped in a Hugging Face folder: chat_template.jinja, else
// tokenizer_config.json's chat_template (a string, or the "default" of a list). kNotFound when the
// folder has none.
Result<std::string> find_chat_template(const std::string& folder);

}  // namespace millrace::text
