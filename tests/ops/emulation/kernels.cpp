// The CUDA kernels under C names, for tests that load them with ctypes.
#include "product_cuda.h"
#include "transform_cuda.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace catonnx;

namespace {

const Stream STREAM = reinterpret_cast<Stream>(8);  // a session's: what is launched in no stream is refused

struct Given {  // as tests/ops/emulated.py has it
  int64_t channels, outer, inner, side, step, rows;
  int32_t hadamard, per_run, one_scale, bits;  // bits 0: not quantized
  float factor, clip;
  const void *scale, *matrix, *first, *x;
  void* y;  // T, or int8
  float* scales;
  float* scratch;
};

template <class T>
CudaTransform<T> transform_of(const Given& g) {
  return {g.channels,
          g.outer,
          g.inner,
          g.hadamard != 0,
          g.per_run != 0,
          g.factor,
          static_cast<const T*>(g.scale),
          g.one_scale != 0,
          static_cast<const T*>(g.matrix),
          static_cast<const T*>(g.first),
          g.side,
          g.step};
}

template <class T>
Problem run(const Given& g) {
  const CudaTransform<T> made = transform_of<T>(g);
  const T* const x = static_cast<const T*>(g.x);
  if (g.bits == 0) return transform(made, x, g.rows, g.scratch, static_cast<T*>(g.y), STREAM);
  const Codes codes = {g.bits, g.clip, static_cast<int8_t*>(g.y), g.scales};
  if (g.inner == 0) return quantize(x, g.rows, g.channels, codes, STREAM);
  return transform_quantize(made, x, g.rows, g.scratch, codes, STREAM);
}

}  // namespace

// kind: 0 for float, 1 for float16, 2 for bfloat16
EXPORT int64_t scratch(const Given* g, int kind) {
  if (kind == 1) return transform_scratch(transform_of<Half>(*g), g->rows, g->bits != 0);
  if (kind == 2) return transform_scratch(transform_of<Bfloat16>(*g), g->rows, g->bits != 0);
  return transform_scratch(transform_of<float>(*g), g->rows, g->bits != 0);
}

EXPORT Problem rows(const Given* g, int kind) {
  return kind == 1 ? run<Half>(*g) : kind == 2 ? run<Bfloat16>(*g) : run<float>(*g);
}

template <class T>
static Problem multiplied(int64_t K, int64_t N, int64_t group, bool channels, const uint8_t* codes, const void* scales,
                          const int8_t* a, const float* a_scale, int64_t count, void* y) {
  const CudaProduct<T> made = {K, N, group, codes, static_cast<const T*>(scales), channels};
  return multiply(made, a, a_scale, count, static_cast<T*>(y), STREAM);
}

EXPORT Problem product(int64_t K, int64_t N, int64_t group, bool channels, int kind, const uint8_t* codes, const void* scales,
                       const int8_t* a, const float* a_scale, int64_t count, void* y) {
  const auto run = kind == 1 ? multiplied<Half> : kind == 2 ? multiplied<Bfloat16> : multiplied<float>;
  return run(K, N, group, channels, codes, scales, a, a_scale, count, y);
}
