// The terminal while a program fills it: another screen, no cursor, keys without Enter or echo. The
// destructor gives it back as it was.
#pragma once

#include <termios.h>

#include <string_view>

namespace millrace::cli {

struct TerminalSize {
  int columns = 80;
  int rows = 24;
};

// Of standard output; 80 x 24 where that is no terminal.
TerminalSize terminal_size();

// The locale's characters are UTF-8. Reads LC_ALL, LC_CTYPE and LANG.
bool terminal_is_utf8();

class Terminal {
 public:
  Terminal();
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  // Keys can be read from here, without blocking; -1 when the process has no terminal to ask. Owned
  // by this object. An opening of its own: the flag that keeps reads from blocking must not reach
  // the shell's standard input.
  int keys() const { return keys_; }

  // The whole of it to standard output, or as much as goes.
  static void write(std::string_view bytes);

 private:
  int keys_ = -1;
  termios before_{};
};

}  // namespace millrace::cli
