// Activations from stage to stage: the hidden state [T, D] f32 of a step, in step order.
//
// Sends are asynchronous over a ring of stages + 1 buffers, so that as many steps as there are
// stages can be in flight; a send waits, up to the communicator's deadline, only when the ring is
// full. Each message carries its step and T, and a receiver that expects others throws CommError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace millrace::parallel {

class PipelineLink {
 public:
  // `column`: the stages of one lane, rank = stage; must outlive this. Allocates everything here.
  PipelineLink(Communicator& column, std::size_t max_tokens, std::size_t hidden);
  ~PipelineLink();  // waits for sends in progress unless the communicator failed

  bool has_previous() const { return column_->rank() > 0; }
  bool has_next() const { return column_->rank() + 1 < column_->size(); }

  // The ring buffer that the next send() ships, [max_tokens, D]: a layer may write its output there
  // and spare the copy. Waits for the buffer to be free. CHECKs has_next().
  std::span<float> send_buffer();
  // Ships the first `tokens` rows of send_buffer().
  void send(std::uint64_t step, std::size_t tokens);
  // Copies x [T, D] into send_buffer(), then ships it.
  void send(std::uint64_t step, std::span<const float> x);
  // The activations of `step` from the previous stage, [T, D], valid until the next recv.
  std::span<float> recv(std::uint64_t step, std::size_t tokens);

 private:
  struct Header;
  struct Slot;

  Communicator* column_;
  std::size_t max_tokens_;
  std::size_t hidden_;
  std::vector<Slot> ring_;
  std::size_t next_ = 0;
  std::unique_ptr<std::byte[]> incoming_;
};

}  // namespace millrace::parallel
