// Many rows with vectors of 512 bits: what kernels share that unpack a panel so. See product_block.h.
#pragma once

#include "avx512.h"
#include "product_block.h"

namespace catonnx {
namespace {

inline void transpose(__m512i* v) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
    // v[4 i + j] now holds, in its 128-bit lane l, element 4 l + j of the vectors 4 i to 4 i + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x44), b = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xee);
    t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

struct Avx512Panel {
  using Vector = __m512i;
  static constexpr int lanes = 16;

  // Words [at, at + 16) of 16 rows of `words` words; 0 beyond the rows and the words.
  static void load_transposed(const void* base, int64_t words, int64_t at, int64_t rows, Vector* v) {
    const auto present = static_cast<__mmask16>((1u << smaller(16, words - at)) - 1);
    const auto* from = static_cast<const int32_t*>(base) + at;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
      v[i] = i < rows ? _mm512_maskz_loadu_epi32(present, from + i * words) : _mm512_setzero_si512();
    transpose(v);
  }

  static void store(void* to, Vector v) { _mm512_store_si512(to, v); }
};

}  // namespace
}  // namespace catonnx
