#include "net/text/chat_template.h"

#include <fmt/format.h>

#include <filesystem>

#include "net/text/added_tokens.h"
#include "net/text/file_text.h"
#include "net/text/jinja_ast.h"
#include "net/text/jinja_interpreter.h"
#include "net/text/jinja_value.h"
#include "net/text/utf8.h"

namespace millrace::text {
namespace {

using Json = nlohmann::ordered_json;
using jinja::Failure;
using jinja::Value;

constexpr std::size_t kMaxTemplateBytes = std::size_t{1} << 20;

Error to_error(const Failure& failure, const char* field) {
  // A message raised by the template itself (line -1) is its own words for the client.
  return {failure.code, field,
          failure.line > 0 ? fmt::format("line {}: {}", failure.line, failure.message)
                           : failure.message};
}

Value to_value(const Json& json, int depth) {
  if (depth > jinja::kMaxNesting) jinja::fail_exhausted("the messages are nested too deeply");
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::integer(json.get<std::int64_t>());
    case Json::value_t::number_unsigned:
      return Value::integer(json.get<std::uint64_t>());
    case Json::value_t::number_float:
      return Value::number(json.get<double>());
    case Json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (find_invalid_utf8(text)) jinja::fail("a text is not well-formed UTF-8");
      return Value::string(text);
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) items.push_back(to_value(item, depth + 1));
      return Value::list(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<std::string, Value>> items;
      for (const auto& [key, value] : json.items()) {
        if (find_invalid_utf8(key)) jinja::fail("a key is not well-formed UTF-8");
        items.emplace_back(key, to_value(value, depth + 1));
      }
      return Value::dict(std::move(items));
    }
    default:
      return Value::none();
  }
}

AddedTokenMatcher make_matcher(const std::vector<std::string>& texts) {
  std::vector<AddedToken> tokens;
  for (const std::string& text : texts) {
    if (text.size() > 1) tokens.push_back({0, text});
  }
  return AddedTokenMatcher(tokens);
}

std::string neutralized(const std::string& text, const AddedTokenMatcher& matcher) {
  const std::vector<std::size_t> found = matcher.occurrences(text);
  if (found.empty()) return text;
  std::string out;
  std::size_t done = 0;
  for (const std::size_t at : found) {
    std::size_t first = 0;
    decode_code_point(text, at, &first);
    out.append(text, done, at + first - done);
    out += "\u200b";
    done = at + first;
  }
  return out.append(text, done);
}

void neutralize(Json& json, const AddedTokenMatcher& matcher) {
  if (json.is_string()) {
    auto& text = json.get_ref<std::string&>();
    if (!find_invalid_utf8(text)) text = neutralized(text, matcher);  // else to_value refuses it
  } else if (json.is_object()) {
    Json::object_t out;
    for (auto& [key, value] : json.items()) {
      neutralize(value, matcher);
      out.push_back({find_invalid_utf8(key) ? key : neutralized(key, matcher), std::move(value)});
    }
    json = std::move(out);
  } else if (json.is_array()) {
    for (Json& item : json) neutralize(item, matcher);
  }
}

// Copying and walking JSON recurses, so its depth is checked before anything else is done with it.
bool nested_deeper(const Json& json, int limit) {
  if (!json.is_structured()) return false;
  if (limit == 0) return true;
  for (const Json& item : json) {
    if (nested_deeper(item, limit - 1)) return true;
  }
  return false;
}

// As transformers: `thinking` is added in front and keeps a value it has, `reasoning_content` is
// set.
void alias_reasoning(Json& message) {
  Json reasoning;
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    if (const auto it = message.find(name); it != message.end() && !it->is_null()) {
      reasoning = *it;
      break;
    }
  }
  if (reasoning.is_null()) return;
  Json::object_t out;
  if (!message.contains("thinking")) out.push_back({"thinking", reasoning});
  for (auto& [key, value] : message.items()) out.push_back({key, std::move(value)});
  message = std::move(out);
  message["reasoning_content"] = std::move(reasoning);
}

std::optional<Error> parse_arguments(Json& message, std::size_t index) {
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !calls->is_array()) return std::nullopt;
  for (std::size_t i = 0; i < calls->size(); ++i) {
    Json& call = (*calls)[i];
    if (!call.is_object()) continue;
    Json& function = call.contains("function") ? call["function"] : call;
    if (!function.is_object() || !function.contains("arguments")) continue;
    Json& arguments = function["arguments"];
    if (!arguments.is_string()) continue;
    const auto& text = arguments.get_ref<const std::string&>();
    Json parsed = strip_left(text).empty() ? Json::object() : Json::parse(text, nullptr, false);
    if (!parsed.is_object()) {
      return invalid(fmt::format("messages[{}].tool_calls[{}].function.arguments", index, i),
                     "must be the text of a JSON object");
    }
    arguments = std::move(parsed);
  }
  return std::nullopt;
}

std::optional<Error> prepare(Json& messages, Json& tools, const RenderOptions& options) {
  if (!messages.is_array()) return invalid("messages", "must be an array");
  if (!tools.is_null() && !tools.is_array()) return invalid("tools", "must be an array");
  const AddedTokenMatcher matcher = make_matcher(options.neutralize);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    Json& message = messages[i];
    if (!message.is_object()) {
      return invalid(fmt::format("messages[{}]", i), "must be an object");
    }
    if (options.parse_tool_arguments) {
      if (auto error = parse_arguments(message, i)) return error;
    }
    if (options.alias_reasoning) alias_reasoning(message);
    const bool assistant = message.value("role", Json()) == "assistant";
    if (!options.neutralize.empty() && !assistant) neutralize(message, matcher);
  }
  if (!options.neutralize.empty()) neutralize(tools, matcher);
  return std::nullopt;
}

// The tag that transformers appends to the last message to find its end in the rendered text.
// Templates that must treat it in a special way know it by this name.
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";

// The text that the tag goes behind; nullptr when the last message has none.
std::string* final_text(Json& messages) {
  if (messages.empty() || !messages.back().is_object()) return nullptr;
  const auto content = messages.back().find("content");
  if (content == messages.back().end()) return nullptr;
  if (content->is_string()) return content->get_ptr<std::string*>();
  if (!content->is_array()) return nullptr;
  for (auto part = content->rbegin(); part != content->rend(); ++part) {
    if (part->is_object() && part->contains("text") && (*part)["text"].is_string()) {
      return (*part)["text"].get_ptr<std::string*>();
    }
  }
  return nullptr;
}

Result<std::string> cut_at_tag(std::string rendered, const std::string& text) {
  const std::string_view bare = kContinueTag.substr(0, kContinueTag.size() - 1);
  const std::size_t at = rendered.rfind(bare);
  if (at == std::string::npos ||
      rendered.find(std::string(strip_left(strip_right(text)))) == std::string::npos) {
    return invalid("continue_final_message",
                   "the template does not render the last message as it is, so it cannot be "
                   "continued");
  }
  const bool spaced = rendered.compare(at, kContinueTag.size(), kContinueTag) == 0;
  rendered.resize(at);
  return spaced ? rendered : std::string(strip_right(rendered));
}

}  // namespace

Result<ChatTemplate> ChatTemplate::load(std::string_view source, std::string bos, std::string eos) {
  if (source.size() > kMaxTemplateBytes) return invalid("chat_template", "is larger than 1 MiB");
  if (find_invalid_utf8(source)) return invalid("chat_template", "is not well-formed UTF-8");
  ChatTemplate chat;
  try {
    chat.template_ = jinja::parse(source);
  } catch (const Failure& failure) {
    return to_error(failure, "chat_template");
  }
  chat.bos_ = std::move(bos);
  chat.eos_ = std::move(eos);
  chat.probe();
  return chat;
}

Result<std::string> ChatTemplate::render_raw(const Json& messages, const Json& tools,
                                             const RenderOptions& options) const {
  try {
    jinja::RenderInput input;
    input.now = options.now;
    const auto set = [&](const char* name, Value value) {
      input.variables.emplace_back(name, std::move(value));
    };
    for (const auto& [name, value] : options.variables.items()) {
      set(name.c_str(), to_value(value, 0));
    }
    set("bos_token", Value::string(bos_));
    set("eos_token", Value::string(eos_));
    set("messages", to_value(messages, 0));
    set("tools", to_value(tools, 0));
    set("documents", Value::none());
    set("add_generation_prompt", Value::boolean(options.add_generation_prompt));
    return jinja::run(*template_, input, options.limits);
  } catch (const Failure& failure) {
    return to_error(failure, "messages");
  }
}

Result<std::string> ChatTemplate::render(const Json& messages, const Json& tools,
                                         const RenderOptions& options) const {
  if (!options.variables.is_object()) return invalid("chat_template_kwargs", "must be an object");
  if (options.continue_final_message && options.add_generation_prompt) {
    return invalid("continue_final_message", "excludes add_generation_prompt");
  }
  for (const Json* json : {&messages, &tools, &options.variables}) {
    if (nested_deeper(*json, jinja::kMaxNesting - 1)) {
      return invalid("messages", "the messages or tools are nested too deeply");
    }
  }
  Json prepared = messages, prepared_tools = tools;
  if (auto error = prepare(prepared, prepared_tools, options)) return *error;
  if (!options.continue_final_message) return render_raw(prepared, prepared_tools, options);
  std::string* text = final_text(prepared);
  if (!text) return invalid("continue_final_message", "the last message has no text to continue");
  const std::string original = *text;
  text->append(kContinueTag);
  Result<std::string> rendered = render_raw(prepared, prepared_tools, options);
  if (!rendered) return rendered.error();
  return cut_at_tag(std::move(*rendered), original);
}

// Finds out by rendering small conversations what the template makes use of.
void ChatTemplate::probe() {
  RenderOptions options;
  options.now = [] { return std::chrono::system_clock::time_point(); };
  const auto differs = [&](const Json& a, const Json& b, const Json& tools_a, const Json& tools_b) {
    const Result<std::string> x = render_raw(a, tools_a, options);
    const Result<std::string> y = render_raw(b, tools_b, options);
    return x && y && *x != *y;
  };
  const Json text = {{{"role", "user"}, {"content", "probe"}}};
  const Json parts = {{{"role", "user"}, {"content", {{{"type", "text"}, {"text", "probe"}}}}}};
  const Result<std::string> plain = render_raw(text, nullptr, options);
  const Result<std::string> listed = render_raw(parts, nullptr, options);
  accepts_content_parts_ = plain && listed && *plain == *listed;

  const Json tools = {{{"type", "function"}, {"function", {{"name", "probe_tool"}}}}};
  renders_tools_ = differs(text, text, nullptr, tools);

  const Json call = {{"type", "function"},
                     {"function", {{"name", "probe_tool"}, {"arguments", Json::object()}}}};
  Json without = {{{"role", "user"}, {"content", "probe"}},
                  {{"role", "assistant"}, {"content", ""}}};
  Json with = without;
  with[1]["tool_calls"] = Json::array({call});
  renders_tool_calls_ = differs(without, with, nullptr, nullptr);
}

Result<std::string> find_chat_template(const std::string& folder) {
  const std::filesystem::path base(folder);
  if (std::filesystem::exists(base / "chat_template.jinja")) {
    return read_text_file(base / "chat_template.jinja");
  }
  const Error none{ErrorCode::kNotFound, folder,
                   "has neither chat_template.jinja nor a chat_template in tokenizer_config.json"};
  if (!std::filesystem::exists(base / "tokenizer_config.json")) return none;
  const Result<std::string> text = read_text_file(base / "tokenizer_config.json");
  if (!text) return text.error();
  const Json config = Json::parse(*text, nullptr, false);
  if (!config.is_object()) return invalid("tokenizer_config.json", "is not a JSON object");
  const auto entry = config.find("chat_template");
  if (entry == config.end()) return none;
  if (entry->is_string()) return entry->get<std::string>();
  if (!entry->is_array()) return none;
  for (const Json& named : *entry) {
    const bool is_default = named.is_object() && named.value("name", Json()) == "default" &&
                            named.contains("template") && named["template"].is_string();
    if (is_default) return named["template"].get<std::string>();
  }
  return none;
}

}  // namespace millrace::text
