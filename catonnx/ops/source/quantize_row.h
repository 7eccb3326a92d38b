// The one row of quantize_rows, compiled once per instruction set: plain loops that the compiler turns into vectors.
// Everything here is static and calls no inline function of the standard library: the linker keeps one copy of those
// for the whole library, and that could be the one that was compiled for AVX-512.
#pragma once

#include <cstdint>
#include <cstring>

namespace catonnx {

static inline void quantize_row(const float* x, int64_t K, float levels, float clip, int8_t* q, float* scale) {
  // As whole numbers the bits of |x| are ordered like |x|, with infinity and then NaN on top: none gets lost in a
  // maximum.
  uint32_t top = 0;
  for (int64_t k = 0; k < K; ++k) {
    uint32_t bits;
    std::memcpy(&bits, x + k, 4);
    bits &= 0x7fffffffu;
    top = bits > top ? bits : top;
  }
  float largest;
  std::memcpy(&largest, &top, 4);
  float s = clip * largest / levels;
  if (!(s <= 3.402823466e38f)) {
    *scale = __builtin_nanf("");
    std::memset(q, 0, static_cast<size_t>(K));
    return;
  }
  if (s == 0.0f) s = 1.0f;
  *scale = s;
  for (int64_t k = 0; k < K; ++k) {
    float v = x[k] / s;
    v = v > levels ? levels : v;
    v = v < -levels - 1.0f ? -levels - 1.0f : v;
    // Around 1.5 * 2^23 floats are 1 apart: the addition rounds half to even, and the low bits are the whole number.
    v += 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    q[k] = static_cast<int8_t>(bits);
  }
}

}  // namespace catonnx
