#include "transform_cuda.h"

#include <algorithm>

#include "dense_cuda.cuh"
#include "mix_plan_cuda.cuh"

namespace catonnx {
namespace {

// Rows of any width, rounded; read twice.
template <class T>
__global__ void quantize_kernel(const T* x, int64_t rows, int64_t channels, Rounded out) {
  uint32_t* const maxima = reinterpret_cast<uint32_t*>(shared_memory());
  uint32_t turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    uint32_t top = 0;
    for (int64_t k = threadIdx.x; k < channels; k += blockDim.x) top = max(top, magnitude(widen(x[row * channels + k])));
    const Rounder rounder(out, largest_of_block(top, maxima + turn * WARP));
    turn ^= 1;
    for (int64_t k = threadIdx.x; k < channels; k += blockDim.x) {
      out.codes[row * channels + k] = static_cast<int8_t>(rounder.code(widen(x[row * channels + k])));
    }
    if (threadIdx.x == 0) out.scales[row] = rounder.written();
  }
}

// --- what is launched -----------------------------------------------------------------------------------------------

unsigned resident_blocks(int64_t wanted, int threads) {
  const int64_t room = static_cast<int64_t>(std::max(1, attribute(cudaDevAttrMultiProcessorCount))) *
                       std::max(1, 2 * MOST_THREADS / threads);
  return static_cast<unsigned>(std::min(wanted, room));
}

size_t row_bytes(int64_t channels, int64_t inner, int64_t outer) {
  return sizeof(float) * static_cast<size_t>(MAXIMA + (through_shared(inner, outer) ? channels : 0));
}

// Whether a block can hold that many channels.
bool fits(int64_t channels, int64_t inner, int64_t outer) {
  return channels <= MOST_CHANNELS &&
         row_bytes(channels, inner, outer) <= static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// The rows, cut into parts of `width` channels, which are whole runs.
template <class T>
RowTask<Number<T>> row_task(const CudaTransform<T>& t, const T* x, int64_t rows, int64_t width) {
  return {numbers(x),
          rows * (t.channels / width),
          static_cast<int>(width),
          static_cast<int>(t.inner),
          static_cast<int>(t.outer),
          t.factor,
          numbers(t.scale),
          t.one_scale,
          t.channels / width,
          numbers(t.first),
          static_cast<int>(t.side),
          static_cast<int>(t.step)};
}

template <class T, class Out>
Problem launch_rows(const RowTask<T>& task, const Out& out, Stream stream) {
  if (task.rows == 0) return nullptr;
  const int64_t threads = ceil_div(std::max(task.channels, 1), VECTORS * VECTOR * WARP) * WARP;
  const dim3 blocks(resident_blocks(task.rows, static_cast<int>(threads)));
  const size_t shared = row_bytes(task.channels, task.inner, task.outer);
  return launch(rows_kernel<T, Out>, blocks, static_cast<int>(threads), shared, stream, task, out);
}

template <class T, class Y>
Problem launch_dense(const CudaTransform<T>& t, const T* x, int64_t rows, Y* y, Stream stream) {
  if constexpr (MixShape<Number<T>>::STAGED) {
    if (const MixPlan plan = plain_plan(t, rows); plan.ranks > 0) return launch_mix(t, plan, x, rows, Plain<Y>{y}, stream);
  }
  const int64_t runs = t.channels / t.inner;
  DenseTask<Number<T>> task = {numbers(x), rows,   runs, static_cast<int>(t.inner), numbers(t.scale), t.one_scale,
                               runs,       numbers(t.matrix), t.per_run ? t.inner * t.inner : 0};
  const auto limited = [](int64_t blocks, int64_t most) { return static_cast<unsigned>(std::min(blocks, most)); };
  if (rows <= MOST_FEW_ROWS) {
    const dim3 blocks(static_cast<unsigned>(ceil_div(rows, FEW_ROWS)), limited(ceil_div(t.inner, WARP), MOST_BLOCKS),
                      limited(runs, MOST_BLOCKS));
    return launch(few_kernel<Number<T>, Y>, blocks, FEW_WARPS * WARP, FEW_WARPS * FEW_ROWS * WARP * sizeof(float), stream,
                  task, y);
  }
  if (!t.per_run) {  // one matrix for all: every run is a row
    task.rows *= runs;
    task.runs = 1;
  }
  const dim3 blocks(limited(ceil_div(task.rows, TILE), INT32_MAX), limited(ceil_div(t.inner, TILE), MOST_BLOCKS),
                    limited(task.runs, MOST_BLOCKS));
  return launch(dense_kernel<Number<T>, Y>, blocks, TILE_THREADS, 2 * DEPTH * TILE_STRIDE * sizeof(float), stream, task, y);
}

Rounded rounded(const Codes& codes) {
  return {codes.codes, codes.scales, static_cast<float>((1 << (codes.bits - 1)) - 1), codes.clip};
}

// Width of the parts of rows that launch_rows can transform, all of a row if possible; 0 if there is none.
template <class T>
int64_t part_width(const CudaTransform<T>& t) {
  if (!t.hadamard) return 0;
  if (fits(t.channels, t.inner, t.outer)) return t.channels;
  const int64_t run = t.outer * t.inner;
  return fits(run, t.inner, t.outer) ? run : 0;
}

// The transform, without rounding; `scratch` holds a number for each of x if there are two steps.
template <class T, class Y>
Problem to_memory(const CudaTransform<T>& t, const T* x, int64_t rows, float* scratch, Y* y, Stream stream) {
  using N = Number<T>;
  if (const int64_t width = part_width(t); width > 0) {
    return launch_rows(row_task(t, x, rows, width), Plain<Y>{y}, stream);
  }
  if (t.outer == 1) return launch_dense(t, x, rows, y, stream);
  CudaTransform<T> inner = t;
  inner.outer = 1;
  const Problem problem = t.hadamard
                              ? launch_rows(row_task(inner, x, rows, t.inner), Plain<float>{scratch}, stream)
                              : launch_dense(inner, x, rows, scratch, stream);
  if (problem != nullptr) return problem;
  const int64_t total = rows * t.channels;
  RowTask<N> task = row_task(t, x, rows, t.outer * t.inner);
  const dim3 blocks(resident_blocks(ceil_div(total, TILE_THREADS), TILE_THREADS));
  return launch(outer_kernel<N, Y>, blocks, TILE_THREADS, 0, stream, task, static_cast<const float*>(scratch), total, y);
}

template <class T>
bool in_one_pass(const CudaTransform<T>& t, int64_t rows) {
  return t.hadamard ? fits(t.channels, t.inner, t.outer) : rounded_plan(t, rows).ranks > 0;
}

}  // namespace

template <class T>
int64_t transform_scratch(const CudaTransform<T>& t, int64_t rows, bool quantized) {
  if (quantized && in_one_pass(t, rows)) return 0;
  const int64_t steps = t.outer > 1 && part_width(t) == 0 ? 1 : 0;
  return (steps + (quantized ? 1 : 0)) * rows * t.channels;
}

template <class T>
Problem transform(const CudaTransform<T>& t, const T* x, int64_t rows, float* scratch, T* y, Stream stream) {
  if (rows * t.channels == 0) return nullptr;
  return to_memory(t, x, rows, scratch, numbers(y), stream);
}

template <class T>
Problem quantize(const T* x, int64_t rows, int64_t channels, const Codes& codes, Stream stream) {
  if (rows == 0) return nullptr;
  if (channels <= MOST_CHANNELS) {
    RowTask<Number<T>> task = {};
    task.x = numbers(x);
    task.rows = rows;
    task.channels = static_cast<int>(channels);
    task.inner = task.outer = 1;
    task.factor = 1.0f;
    task.period = 1;
    return launch_rows(task, rounded(codes), stream);
  }
  const dim3 blocks(resident_blocks(rows, MOST_THREADS));
  return launch(quantize_kernel<Number<T>>, blocks, MOST_THREADS, MAXIMA * sizeof(uint32_t), stream, numbers(x), rows,
                channels, rounded(codes));
}

template <class T>
Problem transform_quantize(const CudaTransform<T>& t, const T* x, int64_t rows, float* scratch, const Codes& codes,
                           Stream stream) {
  if (rows * t.channels == 0) return quantize(x, rows, t.channels, codes, stream);
  if (const MixPlan plan = rounded_plan(t, rows); plan.ranks > 0) return launch_mix(t, plan, x, rows, rounded(codes), stream);
  if (in_one_pass(t, rows)) return launch_rows(row_task(t, x, rows, t.channels), rounded(codes), stream);
  float* const floats = scratch + transform_scratch(t, rows, true) - rows * t.channels;
  const Problem problem = to_memory(t, x, rows, scratch, floats, stream);
  return problem != nullptr ? problem : quantize(static_cast<const float*>(floats), rows, t.channels, codes, stream);
}

int compute_capability() {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
}

Problem copy_to_host(const void* device, int64_t bytes, void* host) {
  return error_of(cudaMemcpy(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost));
}

template int64_t transform_scratch(const CudaTransform<float>&, int64_t, bool);
template int64_t transform_scratch(const CudaTransform<Half>&, int64_t, bool);
template int64_t transform_scratch(const CudaTransform<Bfloat16>&, int64_t, bool);
template Problem transform(const CudaTransform<float>&, const float*, int64_t, float*, float*, Stream);
template Problem transform(const CudaTransform<Half>&, const Half*, int64_t, float*, Half*, Stream);
template Problem transform(const CudaTransform<Bfloat16>&, const Bfloat16*, int64_t, float*, Bfloat16*, Stream);
template Problem quantize(const float*, int64_t, int64_t, const Codes&, Stream);
template Problem quantize(const Half*, int64_t, int64_t, const Codes&, Stream);
template Problem quantize(const Bfloat16*, int64_t, int64_t, const Codes&, Stream);
template Problem transform_quantize(const CudaTransform<float>&, const float*, int64_t, float*, const Codes&, Stream);
template Problem transform_quantize(const CudaTransform<Half>&, const Half*, int64_t, float*, const Codes&, Stream);
template Problem transform_quantize(const CudaTransform<Bfloat16>&, const Bfloat16*, int64_t, float*, const Codes&, Stream);

}  // namespace catonnx
