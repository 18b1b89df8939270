#pragma once
#include <array>
#include <cstddef>
#include <memory>

#include "memory/exec.h"

namespace qlora {

// On a CUDA device: weights decoded to bf16 on a stream of its own, ahead of the products that take them. A
// weight waits for nothing that a pass computes, so its decode begins when the panel that it goes to is free.
// Two panels take turns: a product's weight is decoded while the product before is made, and what lies
// between. Changes no bit. The products ask in the order in which they run, so nothing has to be known of the
// next one: the host puts it on the streams while the device is at work on this one.
//
// A weight must be there, or put on its way on the pass' stream, before the pass begins, and stay as it is to
// the pass' end.
class DecodeAhead {
 public:
  DecodeAhead();
  ~DecodeAhead();
  DecodeAhead(const DecodeAhead&) = delete;
  // Makes the stream; before the first pass that computes.
  void start(const Device& device);

  // While it lives, e's products may name `ahead` (null: nothing is done). It holds the panels, of as many
  // bytes as the largest product that was rehearsed asked for: passes that are rehearsed together are one
  // plan's.
  class Pass {
   public:
    Pass(DecodeAhead* ahead, Exec& e);
    ~Pass();
    Pass(const Pass&) = delete;

   private:
    DecodeAhead* ahead_;
  };
  bool passing() const { return passing_; }
  // Of a panel; 0: no product that was rehearsed decodes ahead.
  size_t bytes() const { return bytes_; }

  // Of gemm (gemm_cuda.cu): a product needs so many bytes of a panel.
  void ask(Exec& e, size_t bytes);
  // Then, of each decode: the panel whose turn it is, to be filled on stream().
  std::byte* take();
  Exec& stream();
  void filled(Exec& e);  // what follows on e's stream reads the panel
  void read(Exec& e);    // it has been put there: the panel is free behind it

 private:
  struct Side;
  std::unique_ptr<Side> side_;
  std::array<Buffer, 2> panels_;
  std::array<size_t, 2> spans_{};  // in rehearsal
  size_t bytes_ = 0, turn_ = 0;
  bool passing_ = false;
};

}  // namespace qlora
