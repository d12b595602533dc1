// A model run inside this process for the command line: no gateway, no HTTP.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <variant>

#include "cli/cell_setup.h"
#include "cli/embedded_cell.h"
#include "config/result.h"

namespace millrace {

class LocalEngine {
 public:
  // Loads the model; `on_loading` gets the share loaded. The config's grid runs as threads.
  static Result<std::unique_ptr<LocalEngine>> start(ClusterConfig config,
                                                    std::function<void(double)> on_loading);
  ~LocalEngine();

  const CellSetup& setup() const { return setup_; }

  // Runs one sequence to its end on the calling thread's time. `on_token` may return false to
  // cancel. The error is a failed sequence or cell.
  Result<FinishReason> generate(
      SequenceRequest request, const std::function<bool(const TokenEvent&)>& on_token,
      const std::function<void(const PromptLogprobsEvent&)>& on_prompt = {});

 private:
  using Event = std::variant<TokenEvent, PromptLogprobsEvent>;

  explicit LocalEngine(CellSetup setup);
  Event next();

  CellSetup setup_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Event> events_;
  RequestId next_id_ = 1;
  Cell* cell_ = nullptr;
  std::unique_ptr<EmbeddedCell> ranks_;
};

}  // namespace millrace
