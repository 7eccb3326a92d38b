// C names for the kernels without ONNX Runtime, for tests that load them with ctypes.
#include "cpu.h"
#include "product.h"
#include "quantize.h"

extern "C" {

int current_isa() { return static_cast<int>(catonnx::isa()); }

void quantize(const float* x, int64_t rows, int64_t K, int bits, float clip, int8_t* q, float* scale) {
    catonnx::quantize_rows(x, rows, K, bits, clip, q, scale);
}

void product(int64_t K, int64_t N, int64_t group, const uint8_t* codes, const float* scales, const int8_t* a, const float* a_scale,
             int64_t rows, int64_t first, int64_t last, float* y) {
    catonnx::multiply({K, N, group, codes, scales}, a, a_scale, rows, first, last, y);
}

}
