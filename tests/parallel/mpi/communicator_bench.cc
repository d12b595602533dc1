// Latency of the collectives over MPI, and what a waiting rank costs. Not a test: run it by
//   mpirun -n 4 --oversubscribe --bind-to none parallel_mpi_bench
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "parallel/mpi_communicator.h"

namespace {

using namespace millrace::parallel;
using Clock = std::chrono::steady_clock;

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
         1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

void bench_all_to_all(Communicator& world, std::size_t bytes, int rounds) {
  std::vector<std::byte> out(world.size() * bytes), in(out.size());
  std::vector<double> us(rounds);
  for (int i = -rounds / 10; i < rounds; ++i) {
    const auto start = Clock::now();
    world.all_to_all(out, in, bytes);
    if (i >= 0) us[i] = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
  }
  std::sort(us.begin(), us.end());
  world.barrier();
  if (world.rank() == 0) {
    std::printf("all_to_all %7zu B/peer, %d ranks: median %.1f us, p90 %.1f, p99 %.1f, min %.1f\n",
                bytes, world.size(), us[rounds / 2], us[rounds * 9 / 10], us[rounds * 99 / 100],
                us[0]);
  }
}

// Rank 0 computes for `time` while the others wait for it in a collective.
void bench_waiting(Communicator& world, std::chrono::milliseconds time) {
  world.barrier();
  const double before = cpu_seconds();
  const auto start = Clock::now();
  while (world.rank() == 0 && Clock::now() - start < time) {
  }
  world.barrier();
  const double share =
      (cpu_seconds() - before) / std::chrono::duration<double>(Clock::now() - start).count();
  std::vector<double> all(world.size());
  world.all_gather(std::as_bytes(std::span(&share, 1)), std::as_writable_bytes(std::span(all)));
  if (world.rank() != 0) return;
  std::printf("waiting %5lld ms for a busy rank: CPU share of the waiting ranks",
              static_cast<long long>(time.count()));
  for (int rank = 1; rank < world.size(); ++rank) std::printf(" %.2f %%", 100 * all[rank]);
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  MpiRuntime runtime(&argc, &argv);
  const auto world = runtime.world();
  for (const std::size_t bytes : {64, 4096, 65'536, 1'048'576}) {
    bench_all_to_all(*world, bytes, bytes > 100'000 ? 300 : 3000);
  }
  for (const int ms : {5, 100, 2000}) bench_waiting(*world, std::chrono::milliseconds(ms));
  return 0;
}
