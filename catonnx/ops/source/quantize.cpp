#include "quantize.h"

#include "quantize_kernels.h"
#include "quantize_row.h"

namespace catonnx {

void quantize_rows(Isa isa, const float* x, int64_t rows, int64_t K, int bits, float clip, int8_t* q, float* scale) {
  const float levels = static_cast<float>((1 << (bits - 1)) - 1);
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512vnni:
    case Isa::avx512: return quantize_rows_avx512(x, rows, K, levels, clip, q, scale);
    case Isa::avx2: return quantize_rows_avx2(x, rows, K, levels, clip, q, scale);
#endif
    default:  // compiled for aarch64, that is NEON
      for (int64_t r = 0; r < rows; ++r) quantize_row(x + r * K, K, levels, clip, q + r * K, scale + r);
  }
}

}  // namespace catonnx
