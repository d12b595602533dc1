// The parts of a body that several routes share. Internal to net/openai_*.
#pragma once

#include "net/openai_json.h"
#include "net/openai_parse.h"

namespace millrace::net {

// Model, sampling, stop conditions, lengths, streaming. `fields` keeps the first error.
void read_params(FieldReader& fields, const ParseContext& context, GenerationParams& params);

// Fields of OpenAI and vLLM that change the answer and are not served, and those that do not
// matter.
void read_unserved(FieldReader& fields);

// messages, tools, tool_choice, add_generation_prompt, continue_final_message, template kwargs.
void read_chat_prompt(FieldReader& fields, const ParseContext& context, ChatPrompt& prompt);

// One message with roles, content and tool calls checked and brought into the template's form.
ApiResult<Json> normalize_message(const Json& message, const std::string& path, bool content_parts);

void log_unknown(const FieldReader& fields, const char* route);

}  // namespace millrace::net
