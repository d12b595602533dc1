#include "net/openai_parse.h"

#include <gtest/gtest.h>

#include "net/openai_error.h"
#include "net/openai_json.h"
#include "tests/support/patience.h"

namespace millrace::net {
namespace {

using ::testing::Test;

ParseContext context() {
  ParseContext out;
  out.limits.vocab_size = 1000;
  out.renders_tools = true;
  return out;
}

// A body that is fine, with `fields` put over it. Fields set to "DROP" are taken out.
Json with(const char* base, const std::string& fields) {
  Json body = Json::parse(base);
  const Json changes = Json::parse(fields);
  for (const auto& [key, value] : changes.items()) {
    if (value == "DROP") {
      body.erase(key);
    } else {
      body[key] = value;
    }
  }
  return body;
}

constexpr const char* kCompletion = R"({"model":"m","prompt":"hello"})";
constexpr const char* kChat = R"({"model":"m","messages":[{"role":"user","content":"hi"}]})";

struct Bad {
  const char* fields;
  const char* param;
  const char* message;  // a part of it
};

template <class Request>
void expect_bad(const ApiResult<Request>& result, const Bad& bad) {
  ASSERT_TRUE(result.has_error()) << "accepted: " << bad.fields;
  const ApiError error = result.error();
  EXPECT_EQ(error.status, 400U) << bad.fields;
  EXPECT_EQ(error.type, "invalid_request_error");
  EXPECT_EQ(error.param.value_or("null"), bad.param) << bad.fields;
  EXPECT_NE(error.message.find(bad.message), std::string::npos)
      << bad.fields << " says: " << error.message;
  EXPECT_TRUE(error.code.has_value());
}

// What both routes refuse alike.
constexpr Bad kBadCommon[] = {
    {R"({"model":"DROP"})", "model", "missing"},
    {R"({"model":7})", "model", "string"},
    {R"({"temperature":-0.1})", "temperature", "0"},
    {R"({"temperature":2.01})", "temperature", "at most 2"},
    {R"({"temperature":"hot"})", "temperature", "number"},
    {R"({"temperature":true})", "temperature", "number"},
    {R"({"temperature":[1]})", "temperature", "number"},
    {R"({"temperature":1e300})", "temperature", "at most 2"},
    {R"({"top_p":0})", "top_p", "greater than 0"},
    {R"({"top_p":1e-60})", "top_p", "greater than 0"},
    {R"({"top_p":1.5})", "top_p", "at most 1"},
    {R"({"top_k":-2})", "top_k", "integer"},
    {R"({"top_k":2.5})", "top_k", "integer"},
    {R"({"top_k":99999999999999999999})", "top_k", "integer"},
    {R"({"min_p":-0.5})", "min_p", "0"},
    {R"({"min_p":1.1})", "min_p", "at most 1"},
    {R"({"repetition_penalty":0})", "repetition_penalty", "greater than 0"},
    {R"({"presence_penalty":-2.5})", "presence_penalty", "-2"},
    {R"({"frequency_penalty":3})", "frequency_penalty", "2"},
    {R"({"logit_bias":[1]})", "logit_bias", "object"},
    {R"({"logit_bias":{"x":1}})", "logit_bias", "token ids"},
    {R"({"logit_bias":{"1000":1}})", "logit_bias", "0 to 999"},
    {R"({"logit_bias":{"-1":1}})", "logit_bias", "token ids"},
    {R"({"logit_bias":{"7":101}})", "logit_bias.7", "-100 to 100"},
    {R"({"logit_bias":{"7":"x"}})", "logit_bias.7", "number"},
    {R"({"logit_bias":{"7":1,"07":2}})", "logit_bias", "twice"},
    {R"({"seed":1.5})", "seed", "integer"},
    {R"({"seed":"1"})", "seed", "integer"},
    {R"({"seed":99999999999999999999})", "seed", "integer"},
    {R"({"n":0})", "n", "from 1 to 128"},
    {R"({"n":129})", "n", "from 1 to 128"},
    {R"({"n":"2"})", "n", "integer"},
    {R"({"n":2,"best_of":4})", "best_of", "not served"},
    {R"({"max_tokens":-1})", "max_tokens", "integer"},
    {R"({"max_tokens":1.5})", "max_tokens", "integer"},
    {R"({"max_tokens":4,"min_tokens":5})", "min_tokens", "exceed"},
    {R"({"min_tokens":-1})", "min_tokens", "integer"},
    {R"({"stop":5})", "stop", "string"},
    {R"({"stop":""})", "stop", "1 to 1024"},
    {R"({"stop":["a",""]})", "stop[1]", "1 to 1024"},
    {R"({"stop":["a",3]})", "stop[1]", "string"},
    {R"({"stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"]})", "stop",
     "at most 16"},
    {R"({"stop_token_ids":"7"})", "stop_token_ids", "array"},
    {R"({"stop_token_ids":[1,1000]})", "stop_token_ids[1]", "0 to 999"},
    {R"({"stop_token_ids":[1,-1]})", "stop_token_ids[1]", "0 to 999"},
    {R"({"ignore_eos":"yes"})", "ignore_eos", "true or false"},
    {R"({"stream":1})", "stream", "true or false"},
    {R"({"stream_options":{"include_usage":true}})", "stream_options", "stream: true"},
    {R"({"stream":true,"stream_options":[1]})", "stream_options", "object"},
    {R"({"stream":true,"stream_options":{"include_usage":"x"}})", "stream_options.include_usage",
     "true or false"},
    {R"({"response_format":{"type":"json_object"}})", "response_format.type", "not served"},
    {R"({"response_format":{"type":"json_schema","json_schema":{}}})", "response_format.type",
     "not served"},
    {R"({"response_format":{}})", "response_format.type", "type"},
    {R"({"guided_json":{"type":"object"}})", "guided_json", "not served"},
    {R"({"use_beam_search":true})", "use_beam_search", "not served"},
    {R"({"prompt_logprobs":21})", "prompt_logprobs", "from 0 to 20"},
    {R"({"prompt_logprobs":1,"stream":true})", "prompt_logprobs", "stream"},
};

constexpr Bad kBadCompletion[] = {
    {R"({"prompt":"DROP"})", "prompt", "missing"},
    {R"({"prompt":null})", "prompt", "missing"},
    {R"({"prompt":5})", "prompt", "string"},
    {R"({"prompt":{}})", "prompt", "string"},
    {R"({"prompt":[]})", "prompt", "array"},
    {R"({"prompt":["a",5]})", "prompt[1]", "string"},
    {R"({"prompt":[1,1000]})", "prompt[1]", "0 to 999"},
    {R"({"prompt":[1,"a"]})", "prompt[1]", "token id"},
    {R"({"prompt":[[1],[2,-3]]})", "prompt[1][1]", "token id"},
    {R"({"prompt":[[]]})", "prompt[0]", "array"},
    {R"({"logprobs":21})", "logprobs", "from 0 to 20"},
    {R"({"logprobs":true})", "logprobs", "integer"},
    {R"({"max_tokens":0})", "max_tokens", "at least 1"},
    {R"({"suffix":"end"})", "suffix", "not served"},
    {R"({"prompt":["a","b","c","d","e"],"n":128})", "n", "512"},
};

constexpr Bad kBadChat[] = {
    {R"({"messages":"DROP"})", "messages", "at least one"},
    {R"({"messages":[]})", "messages", "at least one"},
    {R"({"messages":"hi"})", "messages", "array"},
    {R"({"messages":["hi"]})", "messages[0]", "object"},
    {R"({"messages":[{"content":"x"}]})", "messages[0].role", "role"},
    {R"({"messages":[{"role":"user","content":"x"},{"role":"king","content":"x"}]})",
     "messages[1].role", "king"},
    {R"({"messages":[{"role":3,"content":"x"}]})", "messages[0].role", "string"},
    {R"({"messages":[{"role":"user"}]})", "messages[0].content", "content"},
    {R"({"messages":[{"role":"user","content":null}]})", "messages[0].content", "content"},
    {R"({"messages":[{"role":"user","content":7}]})", "messages[0].content", "string"},
    {R"({"messages":[{"role":"user","content":["x"]}]})", "messages[0].content[0]", "object"},
    {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "messages[0].content[0].text",
     "text"},
    {R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"},
        {"type":"image_url","image_url":{"url":"x"}}]}]})",
     "messages[0].content[1].type", "image_url"},
    {R"({"messages":[{"role":"assistant","tool_calls":{}}]})", "messages[0].content", "content"},
    {R"({"messages":[{"role":"assistant","tool_calls":[{"id":"1"}]}]})",
     "messages[0].tool_calls[0].function", "function"},
    {R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":"{}"}}]}]})",
     "messages[0].tool_calls[0].function.name", "name"},
    {R"({"messages":[{"role":"assistant","content":"x","tool_calls":[{"function":{"name":"f","arguments":3}}]}]})",
     "messages[0].tool_calls[0].function.arguments", "JSON"},
    {R"({"tools":{}})", "tools", "array"},
    {R"({"tools":[{"type":"web"}]})", "tools[0].type", "function"},
    {R"({"tools":[{"type":"function"}]})", "tools[0].function", "function"},
    {R"({"tools":[{"type":"function","function":{"name":""}}]})", "tools[0].function.name", "name"},
    {R"({"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"})",
     "tool_choice", "forced"},
    {R"({"tools":[{"type":"function","function":{"name":"f"}}],
        "tool_choice":{"type":"function","function":{"name":"f"}}})",
     "tool_choice", "forced"},
    {R"({"tool_choice":"auto"})", "tool_choice", "tools"},
    {R"({"top_logprobs":5})", "top_logprobs", "logprobs"},
    {R"({"logprobs":true,"top_logprobs":21})", "top_logprobs", "from 0 to 20"},
    {R"({"logprobs":3})", "logprobs", "true or false"},
    {R"({"max_tokens":0})", "max_tokens", "at least 1"},
    {R"({"max_tokens":4,"max_completion_tokens":5})", "max_tokens", "differ"},
    {R"({"functions":[{"name":"f"}]})", "functions", "not served"},
    {R"({"modalities":["text","audio"]})", "modalities", "text"},
    {R"({"audio":{"voice":"x"}})", "audio", "not served"},
    {R"({"echo":true})", "echo", "not served"},
    {R"({"continue_final_message":true,"add_generation_prompt":true})", "continue_final_message",
     "exclude"},
    {R"({"chat_template_kwargs":"x"})", "chat_template_kwargs", "object"},
};

TEST(ParseCompletion, BadFields) {
  ParseContext narrow = context();
  for (const Bad& bad : kBadCommon) {
    expect_bad(parse_completion(with(kCompletion, bad.fields), narrow), bad);
  }
  for (const Bad& bad : kBadCompletion) {
    expect_bad(parse_completion(with(kCompletion, bad.fields), narrow), bad);
  }
}

TEST(ParseChat, BadFields) {
  for (const Bad& bad : kBadCommon) {
    expect_bad(parse_chat(with(kChat, bad.fields), context()), bad);
  }
  for (const Bad& bad : kBadChat) {
    expect_bad(parse_chat(with(kChat, bad.fields), context()), bad);
  }
}

TEST(ParseCompletion, Defaults) {
  const auto request = parse_completion(Json::parse(kCompletion), context()).value();
  const SamplingParams& sampling = request.params.sampling;
  EXPECT_EQ(sampling.temperature, 1.0F);
  EXPECT_EQ(sampling.top_p, 1.0F);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_EQ(sampling.logprobs, -1);
  EXPECT_FALSE(sampling.prompt_logprobs);
  EXPECT_EQ(request.params.n, 1U);
  EXPECT_FALSE(request.params.max_tokens.has_value());
  EXPECT_FALSE(request.params.output.stream);
  EXPECT_TRUE(request.params.output.skip_special_tokens);
  EXPECT_TRUE(request.add_special_tokens);
  EXPECT_EQ(std::get<std::string>(request.prompts.at(0)), "hello");
  // Without a seed two requests differ.
  const auto again = parse_completion(Json::parse(kCompletion), context()).value();
  EXPECT_NE(again.params.sampling.seed, sampling.seed);
}

TEST(ParseCompletion, ServerDefaultsApply) {
  ParseContext c = context();
  c.defaults.temperature = 0.3F;
  c.defaults.top_k = 50;
  c.defaults.repetition_penalty = 1.05F;
  auto request = parse_completion(Json::parse(kCompletion), c).value();
  EXPECT_EQ(request.params.sampling.temperature, 0.3F);
  EXPECT_EQ(request.params.sampling.top_k, 50);
  EXPECT_EQ(request.params.sampling.repetition_penalty, 1.05F);
  request = parse_completion(with(kCompletion, R"({"temperature":0,"top_k":-1})"), c).value();
  EXPECT_TRUE(request.params.sampling.greedy());
  EXPECT_EQ(request.params.sampling.top_k, 0);
}

TEST(ParseCompletion, EveryField) {
  const auto request = parse_completion(with(kCompletion, R"({
      "prompt":[[1,2],[3]], "max_tokens":7.0, "temperature":0.5, "top_p":0.9, "top_k":40,
      "min_p":0.05, "repetition_penalty":1.1, "presence_penalty":-1, "frequency_penalty":2,
      "logit_bias":{"9":-100,"5":2.5}, "seed":-1, "n":3, "best_of":3, "stop":["a","bb"],
      "stop_token_ids":[4], "include_stop_str_in_output":true, "ignore_eos":true, "min_tokens":2,
      "logprobs":4, "echo":true, "stream":true,
      "stream_options":{"include_usage":true,"continuous_usage_stats":true,"include_obfuscation":false},
      "skip_special_tokens":false, "return_token_ids":true, "add_special_tokens":false,
      "user":"u", "metadata":{"a":"b"}, "store":true, "service_tier":"auto", "priority":3,
      "suffix":null, "response_format":{"type":"text"}, "nobody_knows_this":[1,2]})"),
                                        context());
  ASSERT_TRUE(request.has_value()) << request.error().message;
  const GenerationParams& p = request->params;
  EXPECT_EQ(request->prompts.size(), 2U);
  EXPECT_EQ(std::get<std::vector<std::int32_t>>(request->prompts[0]),
            (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(p.max_tokens, 7U);
  EXPECT_EQ(p.sampling.top_k, 40);
  EXPECT_EQ(p.sampling.seed, ~0ULL);
  EXPECT_EQ(p.sampling.logit_bias,
            (std::vector<std::pair<std::int32_t, float>>{{5, 2.5F}, {9, -100.0F}}));
  EXPECT_EQ(p.n, 3U);
  EXPECT_EQ(p.stop, (std::vector<std::string>{"a", "bb"}));
  EXPECT_EQ(p.stop_token_ids, std::vector<std::int32_t>{4});
  EXPECT_TRUE(p.ignore_eos && p.output.include_stop && p.output.echo && p.output.stream);
  EXPECT_TRUE(p.output.include_usage && p.output.continuous_usage && p.output.return_token_ids);
  EXPECT_FALSE(p.output.skip_special_tokens);
  EXPECT_FALSE(request->add_special_tokens);
  EXPECT_EQ(p.sampling.logprobs, 4);
  EXPECT_TRUE(p.sampling.prompt_logprobs);
}

TEST(ParseCompletion, PromptForms) {
  const auto count = [](const char* prompt) {
    return parse_completion(with(kCompletion, std::string("{\"prompt\":") + prompt + "}"),
                            context())
        .value()
        .prompts.size();
  };
  EXPECT_EQ(count("\"\""), 1U);
  EXPECT_EQ(count("[\"a\",\"b\",\"c\"]"), 3U);
  EXPECT_EQ(count("[1,2,3]"), 1U);
  EXPECT_EQ(count("[[1],[2]]"), 2U);
  EXPECT_EQ(count("[\"a\",[2]]"), 2U);
}

TEST(ParseChat, Messages) {
  const auto request = parse_chat(with(kChat, R"({"messages":[
      {"role":"developer","content":"be brief"},
      {"role":"user","name":"ann","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
      {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",
          "function":{"name":"f","arguments":"{\"x\":1}"}}],"audio":null},
      {"role":"tool","tool_call_id":"c1","content":"42"},
      {"role":"assistant","content":"x","reasoning_content":"because"}]})"),
                                  context());
  ASSERT_TRUE(request.has_value()) << request.error().message;
  const Json expected = Json::parse(R"([
      {"role":"system","content":"be brief"},
      {"role":"user","content":"a\nb","name":"ann"},
      {"role":"assistant","content":"","tool_calls":[{"id":"c1","type":"function",
          "function":{"name":"f","arguments":"{\"x\":1}"}}]},
      {"role":"tool","content":"42","tool_call_id":"c1"},
      {"role":"assistant","content":"x","reasoning_content":"because"}])");
  EXPECT_EQ(request->prompt.messages, expected);

  ParseContext parts = context();
  parts.content_parts = true;
  const auto kept = parse_chat(
      with(kChat, R"({"messages":[{"role":"user","content":[{"type":"text","text":"a","x":1}]}]})"),
      parts);
  EXPECT_EQ(kept->prompt.messages[0]["content"], Json::parse(R"([{"type":"text","text":"a"}])"));
}

TEST(ParseChat, ToolsReachTheTemplateInOrder) {
  const char* tools =
      R"([{"type":"function","function":{"name":"f","description":"d","parameters":{"z":1,"a":2}}}])";
  const std::string fields = std::string("{\"tools\":") + tools;
  EXPECT_EQ(parse_chat(with(kChat, fields + "}"), context())->prompt.tools.dump(), tools);
  EXPECT_TRUE(parse_chat(with(kChat, fields + ",\"tool_choice\":\"none\"}"), context())
                  ->prompt.tools.is_null());
  ParseContext no_tools = context();
  no_tools.renders_tools = false;
  const auto refused = parse_chat(with(kChat, fields + "}"), no_tools);
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().param, "tools");
  EXPECT_TRUE(parse_chat(with(kChat, "{\"tools\":[]}"), no_tools).has_value());
}

TEST(ParseChat, LogprobsAndLengths) {
  auto request = parse_chat(
      with(kChat, R"({"logprobs":true,"top_logprobs":3,"max_completion_tokens":9})"), context());
  EXPECT_EQ(request->params.output.logprobs, 3);
  EXPECT_EQ(request->params.sampling.logprobs, 3);
  EXPECT_EQ(request->params.max_tokens, 9U);
  request = parse_chat(with(kChat, R"({"logprobs":true,"max_tokens":2})"), context());
  EXPECT_EQ(request->params.output.logprobs, 0);
  request = parse_chat(with(kChat, R"({"prompt_logprobs":2})"), context());
  EXPECT_EQ(request->params.output.logprobs, -1);
  EXPECT_EQ(request->params.sampling.logprobs, 2);
  EXPECT_TRUE(request->params.sampling.prompt_logprobs);
  request = parse_chat(with(kChat, R"({"continue_final_message":true})"), context());
  EXPECT_FALSE(request->prompt.add_generation_prompt);
}

TEST(ParseJson, BadBodies) {
  for (const char* body :
       {"", " ", "{", "{\"a\":}", "[1]", "null", "\"x\"", "{\"a\":1}x", "{\"a\":1e999}",
        "{\"a\":NaN}", "{\"a\":Infinity}", "{'a':1}", "{\"a\":\"\xff\"}",
        "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\\ud800\"}", "\xef\xbb\xbf"}) {
    const auto result = parse_json_object(body);
    ASSERT_TRUE(result.has_error()) << body;
    EXPECT_EQ(result.error().status, 400U);
    EXPECT_EQ(result.error().code, "invalid_json");
    // The message may quote the body; it must still be one that can be written.
    EXPECT_TRUE(Json::accept(error_body(result.error())));
  }
}

TEST(ParseJson, NulIsNotTheEnd) {
  const std::string good = R"({"a":1})";
  for (const std::string& body : {std::string(1, '\0'), good + '\0', good + '\0' + good}) {
    const auto result = parse_json_object(body);
    ASSERT_TRUE(result.has_error());
    EXPECT_NE(result.error().message.find("NUL byte"), std::string::npos) << result.error().message;
  }
}

// None of these may take long or much memory: 32 MiB of each.
TEST(ParseJson, HostileShapes) {
  const std::size_t size = 32u << 20;
  const auto refused = [](const std::string& body) {
    const auto begun = std::chrono::steady_clock::now();
    const bool error = parse_json_object(body).has_error();
    EXPECT_LT(std::chrono::steady_clock::now() - begun,
              std::chrono::seconds(20 * millrace::testing::kPatience));
    return error;
  };
  EXPECT_TRUE(refused(std::string(size, '[')));
  EXPECT_TRUE(refused("{\"a\":" + std::string(size, '[')));
  std::string deep = "{\"a\":1";
  for (int i = 0; i < 63; ++i) deep = "{\"a\":" + deep;
  EXPECT_FALSE(refused(deep + std::string(64, '}')));
  EXPECT_TRUE(refused("{\"a\":" + deep + std::string(65, '}')));
  std::string many = "{\"a\":[0";
  while (many.size() < size) many += ",0";
  EXPECT_TRUE(refused(many + "]}"));
  std::string keys = "{\"k\":0";
  for (int i = 0; keys.size() < size; ++i) keys += ",\"" + std::to_string(i) + "\":0";
  EXPECT_TRUE(refused(keys + "}"));
  // Brackets and quotes inside strings are text.
  EXPECT_FALSE(refused("{\"a\":\"" + std::string(1000, '[') + "\\\"[[[{{{::,,\"}"));
  // One long string is an ordinary prompt.
  EXPECT_FALSE(refused("{\"prompt\":\"" + std::string(size, 'x') + "\"}"));
}

TEST(Errors, AllFourFields) {
  EXPECT_EQ(error_body(bad_field("messages[2].role", "no")),
            R"({"error":{"message":"no","type":"invalid_request_error","param":"messages[2].role",)"
            R"("code":"invalid_value"}})");
  ApiError bare;
  bare.message = "bad \xff bytes";
  const Json json = Json::parse(error_body(bare));
  EXPECT_EQ(json["error"].size(), 4U);
  EXPECT_TRUE(json["error"]["param"].is_null() && json["error"]["code"].is_null());
}

TEST(Errors, OfTheEngine) {
  const auto of = [](ErrorCode code, bool as_429 = false) {
    return api_error_of(Error{code, "", "m"}, std::chrono::seconds(7), as_429);
  };
  EXPECT_EQ(of(ErrorCode::kResourceExhausted).status, 503U);
  EXPECT_EQ(of(ErrorCode::kResourceExhausted).type, "service_unavailable_error");
  EXPECT_EQ(of(ErrorCode::kResourceExhausted).code, "server_is_overloaded");
  EXPECT_EQ(of(ErrorCode::kResourceExhausted).retry_after, std::chrono::seconds(7));
  EXPECT_EQ(of(ErrorCode::kResourceExhausted, true).status, 429U);
  EXPECT_EQ(of(ErrorCode::kResourceExhausted, true).type, "rate_limit_error");
  EXPECT_EQ(of(ErrorCode::kUnavailable, true).status, 503U);
  EXPECT_EQ(of(ErrorCode::kInvalidArgument).status, 400U);
  EXPECT_EQ(of(ErrorCode::kInternal).status, 500U);
  EXPECT_FALSE(of(ErrorCode::kInternal).retry_after.has_value());
}

TEST(ParseTokenize, Forms) {
  auto request =
      parse_tokenize(Json::parse(R"({"prompt":"a","add_special_tokens":false})"), context());
  EXPECT_EQ(std::get<std::string>(request->input), "a");
  EXPECT_FALSE(request->add_special_tokens);
  request = parse_tokenize(
      Json::parse(R"({"messages":[{"role":"user","content":"a"}],"add_generation_prompt":false})"),
      context());
  EXPECT_FALSE(std::get<ChatPrompt>(request->input).add_generation_prompt);
  EXPECT_EQ(parse_tokenize(Json::parse("{}"), context()).error().param, "prompt");
  EXPECT_EQ(parse_detokenize(Json::parse(R"({"tokens":[1,1000]})"), context()).error().param,
            "tokens[1]");
  EXPECT_EQ(parse_detokenize(Json::parse("{}"), context()).error().param, "tokens");
}

}  // namespace
}  // namespace millrace::net
