#include "avx512.h"
#include "product_block.h"

namespace catonnx {
namespace {

// 16 sums as a type of their own: with __m512i, GCC keeps every sum of a loop twice, once as 8 long integers.
using Sums = int32_t __attribute__((vector_size(64)));

inline Sums add_products(Sums sum, __m512i codes, __m512i x) {
  return (Sums)_mm512_dpbusd_epi32((__m512i)sum, codes, x);
}

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

struct Vnni {
  using Vector = __m512i;
  static constexpr int lanes = 16, tile_rows = 6;

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

  static void store_nibbles(Vector v, uint8_t* even, uint8_t* odd) {
    const __m512i low = _mm512_set1_epi8(15);
    _mm512_store_si512(even, _mm512_and_si512(v, low));
    _mm512_store_si512(odd, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
  }

  template <int R>
  static void tile(const Layout<Vnni>& layout, const Rows& rows, const int32_t* starts, int64_t columns) {
    const uint8_t* codes = layout.panel;
    const float* scales = layout.scales;
    const int8_t* a = rows.a;
    __m512 real[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) real[r][0] = real[r][1] = _mm512_setzero_ps();
    for (int64_t g = 0, step = 0; g < layout.groups; ++g, scales += 32) {
      Sums sum[R][2];
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = (Sums)_mm512_set1_epi32(starts[g * R + r]);
      const int64_t end = smaller(layout.steps, step + layout.group_steps);
      do {
        const __m512i left = _mm512_load_si512(codes), right = _mm512_load_si512(codes + 64);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          int32_t four;
          std::memcpy(&four, a + r * 4, 4);
          const __m512i x = _mm512_set1_epi32(four);
          sum[r][0] = add_products(sum[r][0], left, x);
          sum[r][1] = add_products(sum[r][1], right, x);
        }
        codes += 128;
        a += R * 4;
      } while (++step < end);
      const __m512 left = _mm512_load_ps(scales), right = _mm512_load_ps(scales + 16);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        real[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][0]), left, real[r][0]);
        real[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][1]), right, real[r][1]);
      }
    }
    const auto present = static_cast<__mmask32>((uint64_t{1} << columns) - 1);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m512 scale = _mm512_set1_ps(rows.scale[r]);
      float* y = rows.y + r * rows.stride;
      _mm512_mask_storeu_ps(y, static_cast<__mmask16>(present), _mm512_mul_ps(real[r][0], scale));
      _mm512_mask_storeu_ps(y + 16, static_cast<__mmask16>(present >> 16), _mm512_mul_ps(real[r][1], scale));
    }
  }
};

}  // namespace

int64_t block_bytes_avx512vnni(const Product& product, int64_t rows) {
  return Layout<Vnni>(product, rows, nullptr).bytes;
}

void block_avx512vnni(const Product& product, const Rows& rows, int64_t first, int64_t last, uint8_t* scratch) {
  block<Vnni>(product, rows, first, last, scratch);
}

}  // namespace catonnx
