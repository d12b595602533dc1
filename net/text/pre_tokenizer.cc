#include "net/text/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <new>
#include <utility>

#include "net/text/unicode_additions.h"

namespace millrace::text {
namespace {

// What is inside a class for the White_Space property.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// The llama-3 pattern backtracks at most once over a run of white space. The limit is there for
// patterns that come with a file; it ends a runaway match after about a second.
constexpr std::uint32_t kMatchLimit = 50'000'000;
constexpr std::uint32_t kHeapLimitKib = 256 * 1024;

Error refuse(std::string_view what) {
  return {ErrorCode::kUnsupported, "pre_tokenizer.pattern",
          fmt::format("{} is not supported in a split pattern", what)};
}

// Escapes that mean the same to both engines once \s and \S are out of the way.
bool same_in_both(char c) {
  return std::string_view("pPrntdDfvxuU").find(c) != std::string_view::npos ||
         !std::isalnum(static_cast<unsigned char>(c));
}

// What to put for \p{L} or \p{N} (negated: \P) inside a class; empty for any other property.
std::string widened_property(std::string_view escape) {
  if (escape == "{L}") return fmt::format("\\p{{L}}{}", kLettersSince14);
  if (escape == "{N}") return fmt::format("\\p{{N}}{}", kNumbersSince14);
  return {};
}

}  // namespace

Result<std::string> translate_oniguruma(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (i + 1 == pattern.size()) return refuse("a backslash at the end");
      const char e = pattern[++i];
      if (e == 's') {
        out += in_class ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace);
      } else if (e == 'S' && !in_class) {
        out += fmt::format("[^{}]", kWhiteSpace);
      } else if (const std::string wide = widened_property(pattern.substr(i + 1, 3));
                 (e == 'p' || e == 'P') && !wide.empty()) {
        if (in_class && e == 'P') return refuse("a negated property inside a class");
        out += in_class ? wide : fmt::format("[{}{}]", e == 'P' ? "^" : "", wide);
        i += 3;
      } else if (!same_in_both(e) || e == 'u' || e == 'U' || e == 'd' || e == 'D' || e == 'v') {
        return refuse(fmt::format("\\{}", e));
      } else {
        out += c;
        out += e;
      }
    } else if (in_class && (c == '[' || pattern.substr(i, 2) == "&&")) {
      return refuse("a class inside a class");
    } else {
      if (c == '[') {
        in_class = true;
        if (pattern.substr(i + 1, 1) == "]" || pattern.substr(i + 1, 2) == "^]") {
          return refuse("an empty class");
        }
      } else if (c == ']') {
        in_class = false;
      } else if (pattern.substr(i, 3) == "(?<" && pattern.substr(i, 4) != "(?<=" &&
                 pattern.substr(i, 4) != "(?<!") {
        return refuse("a named group");
      }
      out += c;
    }
  }
  return out;
}

Result<PreTokenizer> PreTokenizer::compile(const std::string& pattern) {
  const Result<std::string> translated = translate_oniguruma(pattern);
  if (!translated) return translated.error();
  PreTokenizer pre;
  int error = 0;
  PCRE2_SIZE at = 0;
  pre.code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (!pre.code_) {
    PCRE2_UCHAR text[128] = {};
    pcre2_get_error_message(error, text, sizeof text);
    return Error{ErrorCode::kUnsupported, "pre_tokenizer.pattern",
                 fmt::format("the split pattern does not compile: {} at offset {} of {}",
                             reinterpret_cast<const char*>(text), at, *translated)};
  }
  pcre2_jit_compile(pre.code_, PCRE2_JIT_COMPLETE);  // without JIT the interpreter does the work
  pre.context_ = pcre2_match_context_create(nullptr);
  if (!pre.context_) throw std::bad_alloc();
  pcre2_set_match_limit(pre.context_, kMatchLimit);
  pcre2_set_heap_limit(pre.context_, kHeapLimitKib);
  return pre;
}

PreTokenizer::PreTokenizer(PreTokenizer&& other) noexcept
    : code_(std::exchange(other.code_, nullptr)),
      context_(std::exchange(other.context_, nullptr)) {}

PreTokenizer& PreTokenizer::operator=(PreTokenizer&& other) noexcept {
  std::swap(code_, other.code_);
  std::swap(context_, other.context_);
  return *this;
}

PreTokenizer::~PreTokenizer() {
  pcre2_match_context_free(context_);
  pcre2_code_free(code_);
}

PreTokenizer::Cursor::Cursor(const PreTokenizer& pre, std::string_view text)
    : pre_(pre), text_(text), data_(pcre2_match_data_create(1, nullptr)) {
  if (!data_) throw std::bad_alloc();
}

PreTokenizer::Cursor::~Cursor() { pcre2_match_data_free(data_); }

Result<bool> PreTokenizer::Cursor::match(std::size_t from) {
  const auto run = [&](std::uint32_t options) {
    return pcre2_match(pre_.code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), from,
                       options, data_, pre_.context_);
  };
  // The caller has validated the text once; PCRE2 would do it again for every piece.
  int rc = run(PCRE2_NO_UTF_CHECK);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = run(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  if (rc < 0) {
    return Error{ErrorCode::kResourceExhausted, "",
                 fmt::format("the tokenizer's split pattern gave up at byte {} of a text of {} "
                             "bytes (PCRE2 error {}); shorten or break up the text",
                             from, text_.size(), rc)};
  }
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data_);
  begin_ = bounds[0];
  end_ = bounds[1];
  return true;
}

Result<std::string_view> PreTokenizer::Cursor::next() {
  if (!pending_) {
    std::size_t from = at_;
    for (;;) {
      if (from >= text_.size()) {
        begin_ = end_ = text_.size();
        break;
      }
      const Result<bool> found = match(from);
      if (!found) return found.error();
      if (!*found) {
        begin_ = end_ = text_.size();
        break;
      }
      if (end_ > begin_) break;
      // An empty match cuts nothing off; look again behind the next character.
      from = begin_ + 1;
      while (from < text_.size() && (static_cast<unsigned char>(text_[from]) & 0xC0) == 0x80) {
        ++from;
      }
    }
    if (begin_ > at_) {  // a gap before the match, or the rest of the text
      const std::string_view gap = text_.substr(at_, begin_ - at_);
      pending_ = end_ > begin_;
      at_ = begin_;
      return gap;
    }
  }
  pending_ = false;
  const std::string_view piece = text_.substr(begin_, end_ - begin_);
  at_ = end_;
  return piece;
}

}  // namespace millrace::text
