// Which rows mix_kernel() takes, and how: by what fits into the shared memory and the registers of a block of the device in use.
#pragma once

#include <algorithm>
#include <atomic>

#include "dense_cuda.cuh"
#include "mix_kernel_cuda.cuh"

namespace catonnx {
namespace {

// How mix_kernel() runs; with no ranks if it does not.
struct MixPlan {
  int ranks = 0, runs = 0, tiles = 0, buffers = 0;
  bool resident = true;
  size_t bytes = 0;
};

// The plan for so many ranks and tiles, if that fits.
template <class T>
MixPlan mix_plan(const CudaTransform<T>& t, int ranks, int tiles, int buffers, bool resident) {
  const int64_t own = ceil_div(t.channels / t.inner, ranks);
  if (own * t.inner > MOST_CHANNELS || (!resident && !t.per_run)) return {};
  const int runs = static_cast<int>(own);
  const MixShape<Number<T>> shape(static_cast<int>(t.inner), runs);
  const int matrices = !t.per_run ? 1 : resident ? runs : shape.round_runs();
  const size_t bytes = shape.bytes(tiles * MIX_ROWS, buffers, matrices);
  if (shape.rounds(runs) > 4 / tiles || bytes > static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))) {
    return {};
  }
  return {ranks, runs, tiles, buffers, resident, bytes};
}

// The most ranks that the device in use can run as a cluster; asked once for each device.
template <class T>
int most_ranks() {
  static std::atomic<int> known[64];  // processors * 16 + ranks
  const int processors = attribute(cudaDevAttrMultiProcessorCount);
  int device = 0;
  if (attribute(cudaDevAttrClusterLaunch) == 0 || cudaGetDevice(&device) != cudaSuccess) return 1;
  std::atomic<int>& told = known[device % 64];
  if (told / 16 != processors) {
    int ranks = MOST_RANKS;
    while (ranks > 1 && !holds_cluster(ranks, mix_kernel<Number<T>, 2, Rounded>, MIX_THREADS)) ranks /= 2;
    told = processors * 16 + ranks;
  }
  return told % 16;
}

// Of rows that are rounded: as many ranks as there may be, and the first of the choices that fits. Matrices that do not stay
// are read again for every tile: then many rows matter more than that the next ones are copied meanwhile.
template <class T>
MixPlan rounded_plan(const CudaTransform<T>& t, int64_t rows) {
  constexpr int64_t FEWEST_CHANNELS = 128;  // of a rank, if there are several
  constexpr int64_t MUCH = 256 << 10;       // bytes of matrices
  if (t.hadamard || t.outer > 1 || t.inner > WIDEST_MIXED) return {};
  const int most = most_ranks<T>();
  constexpr struct {
    bool resident;
    int tiles, buffers;
  } CHOICES[] = {{true, 2, 2},  {true, 1, 2},  {true, 2, 1},  {true, 1, 1},
                 {false, 2, 2}, {false, 2, 1}, {false, 1, 2}, {false, 1, 1}};
  for (const auto& choice : CHOICES) {
    if (choice.tiles > 1 && rows <= MIX_ROWS) continue;
    for (int ranks = MOST_RANKS; ranks > 0; ranks /= 2) {
      if (ranks > 1 && (ranks > most || t.channels < ranks * FEWEST_CHANNELS)) continue;
      const MixPlan plan = mix_plan(t, ranks, choice.tiles, choice.buffers, choice.resident);
      if (plan.ranks == 0) continue;
      // One block would read all matrices for a few rows, where few_kernel() divides that among many.
      const bool slow = ranks == 1 && rows <= MOST_FEW_ROWS && t.per_run &&
                        t.channels * t.inner * static_cast<int64_t>(sizeof(T)) > MUCH;
      return slow ? MixPlan{} : plan;
    }
  }
  return {};
}

// Of rows that are not, on the tensor cores: parts of rows are on their own, and there are enough of them for all processors.
template <class T>
MixPlan plain_plan(const CudaTransform<T>& t, int64_t rows) {
  constexpr int TILES = 2;
  if (t.inner > WIDEST_MIXED || rows <= MOST_FEW_ROWS) return {};
  const int64_t runs = t.channels / t.inner, tiles = ceil_div(rows, TILES * MIX_ROWS);
  for (int ranks = 1; ranks < 2 * runs; ranks *= 2) {
    const MixPlan plan = mix_plan(t, ranks, TILES, 2, true);
    const bool busy = tiles * ranks >= attribute(cudaDevAttrMultiProcessorCount) || ranks >= runs;
    if (plan.ranks > 0 && busy) return plan;
  }
  return {};
}

template <class T, class Out>
Problem launch_mix(const CudaTransform<T>& t, const MixPlan& plan, const T* x, int64_t rows, const Out& out,
                   Stream stream) {
  using N = Number<T>;
  MixTask<N> task = {};
  task.x = numbers(x);
  task.rows = rows;
  task.channels = static_cast<int>(t.channels);
  task.size = static_cast<int>(t.inner);
  task.scale = numbers(t.scale);
  task.one_scale = t.one_scale;
  task.matrix = numbers(t.matrix);
  task.matrix_step = t.per_run ? t.inner * t.inner : 0;
  task.ranks = plan.ranks;
  task.runs = plan.runs;
  task.resident = plan.resident;
  task.buffers = plan.buffers;
  const int64_t at_once = std::max(1, attribute(cudaDevAttrMultiProcessorCount) / plan.ranks);
  const dim3 blocks(static_cast<unsigned>(std::min(at_once, ceil_div(rows, plan.tiles * MIX_ROWS)) * plan.ranks));
  const int cluster = Out::rounded ? plan.ranks : 1;
  if constexpr (Out::rounded) {
    if (plan.tiles == 1) {
      return launch_clusters(cluster, mix_kernel<N, 1, Out>, blocks, MIX_THREADS, plan.bytes, stream, task, out);
    }
  }
  return launch_clusters(cluster, mix_kernel<N, 2, Out>, blocks, MIX_THREADS, plan.bytes, stream, task, out);
}

}  // namespace
}  // namespace catonnx
