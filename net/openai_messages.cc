// Chat messages and tools: checked, and brought into the form that chat templates expect.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "net/openai_error.h"
#include "net/openai_fields.h"

namespace millrace::net {
namespace {

constexpr std::array<std::string_view, 4> kRoles = {"system", "user", "assistant", "tool"};

ApiError wrong_type(const std::string& path, const char* wanted, const Json& value) {
  return bad_field(path, fmt::format("{} must be {}, not {}", path, wanted, json_kind(value)),
                   "invalid_type");
}

// A list of parts: kept for templates that take lists, else joined as vLLM joins them.
ApiResult<Json> normalize_parts(const Json& parts, const std::string& path, bool content_parts) {
  Json list = Json::array();
  std::string joined;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Json& part = parts[i];
    const std::string where = fmt::format("{}[{}]", path, i);
    if (!part.is_object()) return wrong_type(where, "an object", part);
    const auto type = part.find("type");
    if (type == part.end() || !type->is_string()) {
      return bad_field(where + ".type", "a content part needs a type, for instance \"text\"",
                       "missing_required_parameter");
    }
    const bool refusal = *type == "refusal";
    if (*type != "text" && !refusal) {
      return bad_field(where + ".type",
                       "content of type \"" + type->get<std::string>() +
                           "\" is not served here: this model reads text only",
                       "unsupported_content");
    }
    const char* key = refusal ? "refusal" : "text";
    const auto text = part.find(key);
    if (text == part.end()) {
      return bad_field(where + "." + key, "a text part needs its text",
                       "missing_required_parameter");
    }
    if (!text->is_string()) return wrong_type(where + "." + key, "a string", *text);
    if (i > 0) joined += '\n';
    joined += text->get_ref<const std::string&>();
    list.push_back({{"type", "text"}, {"text", *text}});
  }
  // Json converts to anything, an error included, so the value's side is named.
  if (content_parts) return ApiResult<Json>(boost::system::in_place_value, std::move(list));
  return ApiResult<Json>(boost::system::in_place_value, std::move(joined));
}

std::optional<ApiError> check_tool_calls(const Json& calls, const std::string& path) {
  if (!calls.is_array()) return wrong_type(path, "an array", calls);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", path, i);
    if (!calls[i].is_object()) return wrong_type(where, "an object", calls[i]);
    const auto function = calls[i].find("function");
    if (function == calls[i].end() || !function->is_object()) {
      return bad_field(where + ".function", "a tool call needs a function object",
                       "missing_required_parameter");
    }
    const auto name = function->find("name");
    if (name == function->end() || !name->is_string()) {
      return bad_field(where + ".function.name", "a tool call needs the function's name",
                       "missing_required_parameter");
    }
    const auto arguments = function->find("arguments");
    if (arguments != function->end() && !arguments->is_string() && !arguments->is_object()) {
      return wrong_type(where + ".function.arguments", "a JSON text", *arguments);
    }
  }
  return std::nullopt;
}

std::optional<ApiError> check_tools(const Json& tools) {
  for (std::size_t i = 0; i < tools.size(); ++i) {
    const std::string where = fmt::format("tools[{}]", i);
    if (!tools[i].is_object()) return wrong_type(where, "an object", tools[i]);
    const auto type = tools[i].find("type");
    if (type == tools[i].end() || *type != "function") {
      return bad_field(where + ".type", "only tools of type \"function\" are served here",
                       "unsupported_parameter");
    }
    const auto function = tools[i].find("function");
    if (function == tools[i].end() || !function->is_object()) {
      return bad_field(where + ".function", "a tool needs a function object",
                       "missing_required_parameter");
    }
    const auto name = function->find("name");
    if (name == function->end() || !name->is_string() ||
        name->get_ref<const std::string&>().empty()) {
      return bad_field(where + ".function.name", "a tool needs the function's name",
                       "missing_required_parameter");
    }
  }
  return std::nullopt;
}

// Tools are shown to the model; its calls come back as text, so a choice cannot be forced.
void read_tools(FieldReader& fields, const ParseContext& context, ChatPrompt& prompt) {
  const Json* tools = fields.array("tools");
  const Json* choice = fields.get("tool_choice");
  bool use = tools != nullptr && !tools->empty();
  if (choice != nullptr) {
    if (*choice == "none") {
      use = false;
    } else if (*choice != "auto") {
      fields.fail("tool_choice",
                  "tool_choice must be \"auto\" or \"none\": a call cannot be forced here",
                  "unsupported_parameter");
      return;
    } else if (tools == nullptr) {
      fields.fail("tool_choice", "tool_choice needs tools");
      return;
    }
  }
  if (tools == nullptr) return;
  if (auto error = check_tools(*tools)) {
    fields.fail(std::move(*error));
  } else if (use && !context.renders_tools) {
    fields.fail("tools", "this model's chat template has no place for tools; leave them out",
                "unsupported_parameter");
  } else if (use) {
    prompt.tools = *tools;
  }
}

}  // namespace

ApiResult<Json> normalize_message(const Json& message, const std::string& path,
                                  bool content_parts) {
  if (!message.is_object()) return wrong_type(path, "an object", message);
  FieldReader fields(message, path + ".");
  auto role = fields.string("role");
  if (fields.error()) return *fields.error();
  if (!role)
    return bad_field(path + ".role", "a message needs a role", "missing_required_parameter");
  if (*role == "developer") role = "system";
  if (std::find(kRoles.begin(), kRoles.end(), *role) == kRoles.end()) {
    return bad_field(path + ".role", "\"" + role->substr(0, 64) +
                                         "\" is not a role; use system, developer, user, "
                                         "assistant or tool");
  }

  Json out = Json::object();
  out["role"] = *role;
  const Json* content = fields.get("content");
  const Json* calls = *role == "assistant" ? fields.get("tool_calls") : nullptr;
  if (content == nullptr) {
    const bool called = calls != nullptr && calls->is_array() && !calls->empty();
    if (!called && !(*role == "assistant" && fields.has("refusal"))) {
      return bad_field(path + ".content", "a message needs content", "missing_required_parameter");
    }
    const Json* refusal = fields.get("refusal");
    out["content"] = refusal != nullptr && refusal->is_string() ? *refusal : Json("");
  } else if (content->is_string()) {
    out["content"] = *content;
  } else if (content->is_array()) {
    auto normal = normalize_parts(*content, path + ".content", content_parts);
    if (normal.has_error()) return normal.error();
    out["content"] = std::move(*normal);
  } else {
    return wrong_type(path + ".content", "a string or an array of parts", *content);
  }
  if (calls != nullptr) {
    if (auto error = check_tool_calls(*calls, path + ".tool_calls")) return *error;
    if (!calls->empty()) out["tool_calls"] = *calls;
  }
  for (const char* name : {"name", "tool_call_id", "thinking", "reasoning_content", "reasoning"}) {
    if (const auto text = fields.string(name)) out[name] = *text;
  }
  if (fields.error()) return *fields.error();
  return ApiResult<Json>(boost::system::in_place_value, std::move(out));
}

void read_chat_prompt(FieldReader& fields, const ParseContext& context, ChatPrompt& prompt) {
  const Json* messages = fields.array("messages");
  if (messages == nullptr || messages->empty()) {
    fields.fail("messages", "messages must be an array with at least one message",
                "missing_required_parameter");
    return;
  }
  for (std::size_t i = 0; i < messages->size(); ++i) {
    auto message =
        normalize_message((*messages)[i], fmt::format("messages[{}]", i), context.content_parts);
    if (message.has_error()) {
      fields.fail(message.error());
      return;
    }
    prompt.messages.push_back(std::move(*message));
  }
  read_tools(fields, context, prompt);
  prompt.continue_final_message = fields.boolean("continue_final_message").value_or(false);
  prompt.add_generation_prompt =
      fields.boolean("add_generation_prompt").value_or(!prompt.continue_final_message);
  if (prompt.continue_final_message && prompt.add_generation_prompt) {
    fields.fail("continue_final_message",
                "continue_final_message and add_generation_prompt exclude each other");
  }
  prompt.add_special_tokens = fields.boolean("add_special_tokens").value_or(false);
  if (const Json* kwargs = fields.object("chat_template_kwargs")) prompt.template_kwargs = *kwargs;
  if (const auto effort = fields.string("reasoning_effort")) {
    prompt.template_kwargs["reasoning_effort"] = *effort;
  }
}

}  // namespace millrace::net
