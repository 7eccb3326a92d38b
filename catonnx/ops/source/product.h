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

struct Kernel;

// QuantizedMatMul, by the code of one instruction set: a int8 [rows, K] with a_scale [rows] times a weight,
// y = a_scale * sum over groups of scale * sum of a * (code - 8). The sum within a group is an exact int32 (K up to
// 2^20). First all of a is arranged as the code wants it, then any columns may follow; both in ranges, by any thread.
class Multiplication {
 public:
  static constexpr int64_t COLUMNS = 32;  // ranges of columns had best begin at multiples of this

  Multiplication(Isa isa, const Product& product, const int8_t* a, const float* a_scale, int64_t rows);

  // Arranges tiles [first, last) of tiles() in memory for bytes(), aligned to 64.
  void arrange(int64_t first, int64_t last, int8_t* arranged) const;
  int64_t tiles() const;
  int64_t tile_rows() const;
  int64_t bytes() const;

  // Columns [first, last) go to y [rows, last - first], whose rows begin `stride` apart.
  void columns(const int8_t* arranged, int64_t first, int64_t last, float* y, int64_t stride) const;

 private:
  const Product& product_;
  const Kernel& kernel_;
  const int8_t* a_;
  const float* a_scale_;
  int64_t rows_;
};

}  // namespace catonnx
