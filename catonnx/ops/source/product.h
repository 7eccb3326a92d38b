#pragma once

#include <cstdint>

#include "cpu.h"

namespace catonnx {

// A weight [N, K] in 4 bits: codes uint8 [N, G, group / 2], two to a byte, the even channel in the low nibble, each 8
// too large; scales float [N, G], G = ceil(K / group). group is 16, 32, 64, 128, 256, or a multiple of 16 not below K.
struct Product {
  int64_t K, N, group;
  const uint8_t* codes;
  const float* scales;
};

// QuantizedMatMul, by the code of one instruction set: columns [first, last) of the product of a int8 [rows, K] and
// a_scale [rows] go to y [rows, last - first], whose rows begin `stride` apart:
// y = a_scale * sum over groups of scale * sum of a * (code - 8). The sum within a group is an exact int32 (K up to
// 2^20). Each call first rearranges the rows that it is given: ranges of columns ought to be much wider than 32.
void multiply(Isa isa, const Product& product, const int8_t* a, const float* a_scale, int64_t rows, int64_t first,
              int64_t last, float* y, int64_t stride);

}  // namespace catonnx
