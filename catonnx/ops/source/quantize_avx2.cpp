#include "quantize_kernels.h"
#include "quantize_row.h"

namespace catonnx {

void quantize_rows_avx2(const float* x, int64_t rows, int64_t K, float levels, float clip, int8_t* q, float* scale) {
  for (int64_t r = 0; r < rows; ++r) quantize_row(x + r * K, K, levels, clip, q + r * K, scale + r);
}

}  // namespace catonnx
