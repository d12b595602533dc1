// `millrace top`: a gateway's cells, queue and latencies in a terminal, once a second.
#pragma once

#include <string>

namespace millrace {

struct TopCommand {
  std::string url = "http://127.0.0.1:8000";
  std::string api_key;      // sent as Authorization: Bearer when not empty
  double interval_s = 1.0;  // between two looks
  bool once = false;        // one look, printed; as when standard output is no terminal
  bool color = true;
};

// 0 when it was left by q, Ctrl-C or SIGTERM, or had its one look; 1 when that look failed or the
// gateway refused the key; 2 when `url` is none.
int run_top(const TopCommand& command);

}  // namespace millrace
