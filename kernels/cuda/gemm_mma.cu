#include "kernels/cuda/gemm_mma.cuh"

#include "kernels/cuda/gemm_dispatch.cuh"

namespace millrace::kernels::cuda {
namespace {

struct StartMma {
  StreamRef stream;
  const GemmPlan& plan;
  const GemmParams& params;

  template <class T>
  void run() const {
    using C = MmaConfig<T>;
    launch(gemm_mma_kernel<C>, persistent_shape<C>(plan), stream, params);
  }
};

}  // namespace

void launch_mma(StreamRef stream, WeightFormat format, const GemmPlan& plan,
                const GemmParams& params) {
  with_tile(format, plan, StartMma{stream, plan, params});
}

}  // namespace millrace::kernels::cuda
