#pragma once

#include <cstdint>

namespace catonnx {

// A weight [N, K] in 4 bits: codes uint8 [N, G, group / 2], two to a byte, the even channel in the low nibble, each 8 too
// large; scales float [N, G], G = ceil(K / group). group is 16, 32, 64, 128, 256, or any multiple of 16 that is at least K.
struct Product {
    int64_t K, N, group;
    const uint8_t* codes;
    const float* scales;
};

// QuantizedMatMul: y [rows, N] (row stride N), columns [first, last) only, from a int8 [rows, K] and a_scale [rows]:
// y = a_scale * sum over groups of scale * sum of a * (code - 8). Within a group the sum is an exact int32 (K below 2^20).
// Up to few_rows rows the codes stream past once; above they are unpacked, once for a block of rows. Each call first
// rearranges the rows it is given, so ranges of columns ought to be much wider than 32.
void multiply(const Product& product, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y);

}  // namespace catonnx
