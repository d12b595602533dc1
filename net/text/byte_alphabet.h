// The GPT-2 byte alphabet: every byte has a printable character of its own, so that a vocabulary of
// byte strings can be written as text. Source: openai/gpt-2, encoder.py, bytes_to_unicode.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace millrace::text {

char32_t byte_to_char(unsigned char byte);

// The byte that `c` stands for, or -1.
int char_to_byte(char32_t c);

// The bytes of a token written in the alphabet. A token with any character outside of it (an added
// token with a space, say) stands for its own UTF-8, as in `tokenizers`' ByteLevel decoder.
std::string token_to_bytes(std::string_view token);

std::string bytes_to_token(std::string_view bytes);

}  // namespace millrace::text
