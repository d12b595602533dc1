#include "kernels/cuda/gemm_wgmma.cuh"

#include "kernels/cuda/gemm_dispatch.cuh"

namespace millrace::kernels::cuda {
namespace {

struct StartWgmma {
  StreamRef stream;
  const GemmPlan& plan;
  const GemmParams& params;

  template <class T>
  void run() const {
    using C = WgmmaConfig<T>;
    launch(gemm_wgmma_kernel<C>, persistent_shape<C>(plan), stream, params);
  }
};

}  // namespace

void launch_wgmma(StreamRef stream, WeightFormat format, const GemmPlan& plan,
                  const GemmParams& params) {
  with_tile(format, plan, StartWgmma{stream, plan, params});
}

}  // namespace millrace::kernels::cuda
