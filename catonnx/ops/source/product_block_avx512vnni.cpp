#include "product_block_avx512.h"

namespace catonnx {
namespace {

// 16 sums as a type of their own: with __m512i, GCC keeps every sum of a loop twice, once as 8 long integers.
using Sums = int32_t __attribute__((vector_size(64)));

inline Sums add_products(Sums sum, __m512i codes, __m512i x) {
  return (Sums)_mm512_dpbusd_epi32((__m512i)sum, codes, x);
}

struct Vnni : Avx512Panel {
  static constexpr int tile_rows = 6;

  static void store_nibbles(Vector v, uint8_t* even, uint8_t* odd) {
    const __m512i low = _mm512_set1_epi8(15);
    _mm512_store_si512(even, _mm512_and_si512(v, low));
    _mm512_store_si512(odd, _mm512_and_si512(_mm512_srli_epi16(v, 4), low));
  }

  template <int R>
  static void tile(const Panel<Vnni>& panel, const Rows& rows, const int32_t* starts, int64_t columns) {
    const uint8_t* codes = panel.codes;
    const float* scales = panel.scales;
    const int8_t* a = rows.tiles;
    __m512 real[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) real[r][0] = real[r][1] = _mm512_setzero_ps();
    for (int64_t g = 0, step = 0; g < panel.groups; ++g, scales += 32) {
      Sums sum[R][2];
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = (Sums)_mm512_set1_epi32(starts[g * R + r]);
      const int64_t end = smaller(panel.steps, step + panel.group_steps);
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

const Kernel block_avx512vnni = block_kernel<Vnni>;

}  // namespace catonnx
