// The kernels under C names, for tests that load them with ctypes; without ONNX Runtime.
#include "cpu.h"
#include "product.h"
#include "quantize.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Whether CATONNX_ISA names an instruction set of this machine; if so it is used from now on.
EXPORT bool choose_isa() { return catonnx::choose_isa().empty(); }

EXPORT const char* isa() { return catonnx::name(catonnx::isa()); }

EXPORT void quantize_rows(const float* x, int64_t rows, int64_t K, int bits, float clip, int8_t* q, float* scale) {
  catonnx::quantize_rows(catonnx::isa(), x, rows, K, bits, clip, q, scale);
}

EXPORT void multiply(int64_t K, int64_t N, int64_t group, const uint8_t* codes, const float* scales, const int8_t* a,
                     const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y) {
  catonnx::multiply(catonnx::isa(), {K, N, group, codes, scales}, a, a_scale, rows, first, last, y + first, N);
}
