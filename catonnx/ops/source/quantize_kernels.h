#pragma once

#include <cstdint>

namespace catonnx {

void quantize_rows_avx2(const float* x, int64_t rows, int64_t K, float levels, float clip, int8_t* q, float* scale);
void quantize_rows_avx512(const float* x, int64_t rows, int64_t K, float levels, float clip, int8_t* q, float* scale);

}  // namespace catonnx
