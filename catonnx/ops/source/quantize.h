#pragma once

#include <cstdint>

#include "cpu.h"

namespace catonnx {

// DynamicQuantize, by the code of one instruction set: every row of x [rows, K] to whole numbers q [rows, K] and one scale [rows].
//
// scale = clip * max |x| / L with L = 2^(bits - 1) - 1, or 1 where that is 0; q = x / scale, rounded half to even,
// from -L - 1 to L. A row that holds NaN or an infinity (or whose scale overflows) gets the scale NaN and zeros: the product
// then is NaN, as it would be without quantization.
void quantize_rows(Isa isa, const float* x, int64_t rows, int64_t K, int bits, float clip, int8_t* q, float* scale);

}  // namespace catonnx
