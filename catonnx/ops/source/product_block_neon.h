// Many rows on aarch64: what both kernels share, see product_block.h.
#pragma once

#include "product_block.h"
#include "product_neon.h"

namespace catonnx {
namespace {

struct NeonPanel {
  using Vector = uint32x4_t;
  static constexpr int lanes = 4;

  // Words [at, at + 4) of 4 rows of `words` words; 0 beyond the rows and the words.
  static void load_transposed(const void* base, int64_t words, int64_t at, int64_t rows, Vector* v) {
    const auto* from = static_cast<const uint32_t*>(base) + at;
    uint32x4_t row[4];
    for (int i = 0; i < 4; ++i) {
      uint32_t some[4] = {};
      if (i < rows && words - at >= 4)
        row[i] = vld1q_u32(from + i * words);
      else {
        if (i < rows) std::memcpy(some, from + i * words, static_cast<size_t>(words - at) * 4);
        row[i] = vld1q_u32(some);
      }
    }
    const uint32x4_t a = vtrn1q_u32(row[0], row[1]), b = vtrn2q_u32(row[0], row[1]);
    const uint32x4_t c = vtrn1q_u32(row[2], row[3]), d = vtrn2q_u32(row[2], row[3]);
    v[0] = vcombine_u32(vget_low_u32(a), vget_low_u32(c));
    v[1] = vcombine_u32(vget_low_u32(b), vget_low_u32(d));
    v[2] = vcombine_u32(vget_high_u32(a), vget_high_u32(c));
    v[3] = vcombine_u32(vget_high_u32(b), vget_high_u32(d));
  }

  static void store(void* to, Vector v) { vst1q_u32(static_cast<uint32_t*>(to), v); }

  static void store_nibbles(Vector v, uint8_t* even, uint8_t* odd) {
    vst1q_s8(reinterpret_cast<int8_t*>(even), low_nibbles(vreinterpretq_u8_u32(v)));
    vst1q_s8(reinterpret_cast<int8_t*>(odd), high_nibbles(vreinterpretq_u8_u32(v)));
  }
};

inline void store_columns(float* y, int64_t columns, float32x4_t left, float32x4_t right) {
  float some[8];
  float* to = columns == 8 ? y : some;
  vst1q_f32(to, left);
  vst1q_f32(to + 4, right);
  if (columns < 8) std::memcpy(y, some, static_cast<size_t>(columns) * 4);
}

}  // namespace
}  // namespace catonnx
