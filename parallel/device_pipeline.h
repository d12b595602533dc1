// Activations from stage to stage on devices: the hidden state [T, D] f32 of a step, in step order.
//
// Messages travel on a stream of their own, so that a stage goes on with the next step while one is
// on its way. Unlike parallel/pipeline.h a message carries no header: both ends take T from the
// same plan.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "parallel/device_communicator.h"

namespace millrace::parallel {

class DevicePipeline {
 public:
  // `column`: the stages of one lane, rank = stage; must outlive this. Allocates everything here.
  DevicePipeline(DeviceCommunicator& column, std::int64_t max_tokens, std::int64_t hidden);

  static std::size_t device_bytes(int stages, std::int64_t max_tokens, std::int64_t hidden);

  bool has_previous() const { return column_->rank() > 0; }
  bool has_next() const { return column_->rank() + 1 < column_->size(); }

  // x [tokens, D] is read in the order of `stream`, and free again for what follows there. Waits on
  // the host only as the communicator does.
  void send(StreamRef stream, const float* x, std::int64_t tokens);
  // Work given to `stream` from now on finds x [tokens, D] there.
  void recv(StreamRef stream, float* x, std::int64_t tokens);

 private:
  struct Slot {
    kernels::cuda::DeviceBuffer data;
    kernels::cuda::Event filled;   // by the stream that fills it
    kernels::cuda::Event drained;  // by the stream that empties it
    bool used = false;
  };
  Slot& next(std::vector<Slot>& ring, std::size_t& at);
  std::size_t bytes(std::int64_t tokens) const;

  DeviceCommunicator* column_;
  std::int64_t max_tokens_;
  std::int64_t hidden_;
  kernels::cuda::Stream stream_;
  std::vector<Slot> out_, in_;
  std::size_t next_out_ = 0, next_in_ = 0;
};

}  // namespace millrace::parallel
