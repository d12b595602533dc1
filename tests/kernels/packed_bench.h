// The packed kernels' part of kernels_bench.
#pragma once

#include <functional>
#include <string_view>

#include "kernels/buffer.h"
#include "kernels/thread_pool.h"

namespace millrace::kernels {

// The best of repeated runs, in seconds.
double seconds(const std::function<void()>& run, double budget);

// Gop/s of the dot-product instructions of the best packed kernels of `set`, from registers, on all
// threads of the context; 0 where there are none.
double int8_ceiling(std::string_view set, const Context& context);

// `weights`: memory of more than the last-level cache, whose every 16-bit half is an ordinary small
// number.
void run_packed(std::string_view set, const Context& context, const Buffer& weights);

}  // namespace millrace::kernels
