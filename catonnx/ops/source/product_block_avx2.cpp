// vpmaddubsw adds two products of a code (0 to 15) and an activation (-128 to 127) in 16 bits, saturated: at most
// 2 * 15 * 128 = 3840 in magnitude. Sums of 8 steps stay within 30720 before they are widened to 32 bits: nothing can
// saturate.
#include "product_block.h"

namespace catonnx {
namespace {

constexpr int64_t widen_every = 8;

// 16 sums as a type of their own: with __m256i, GCC keeps every sum of a loop twice, once as 4 long integers.
using Sums = int16_t __attribute__((vector_size(32)));

inline __m256i load(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }

inline void transpose(__m256i* v) {
  __m256i t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
      u[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm256_permute2x128_si256(u[j], u[4 + j], 0x20);
    v[4 + j] = _mm256_permute2x128_si256(u[j], u[4 + j], 0x31);
  }
}

struct Avx2 {
  using Vector = __m256i;
  static constexpr int lanes = 8, tile_rows = 4;

  // Words [at, at + 8) of 8 rows of `words` words; 0 beyond the rows and the words.
  static void load_transposed(const void* base, int64_t words, int64_t at, int64_t rows, Vector* v) {
    const __m256i each = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i present = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(smaller(8, words - at))), each);
    const auto* from = static_cast<const int*>(base) + at;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      v[i] = i < rows ? _mm256_maskload_epi32(from + i * words, present) : _mm256_setzero_si256();
    transpose(v);
  }

  static void store(void* to, Vector v) { _mm256_store_si256(static_cast<__m256i*>(to), v); }

  static void store_nibbles(Vector v, uint8_t* even, uint8_t* odd) {
    const __m256i low = _mm256_set1_epi8(15);
    store(even, _mm256_and_si256(v, low));
    store(odd, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
  }

  template <int R>
  static void tile(const Panel<Avx2>& panel, const Rows& rows, const int32_t* starts, int64_t columns) {
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t* codes = panel.codes;
    const float* scales = panel.scales;
    const int8_t* a = rows.tiles;
    // Sixteen registers hold the sums of 16 bits; these wait in the first-level cache.
    alignas(32) float real[R][16] = {};
    alignas(32) int32_t whole[R][16];
    for (int64_t g = 0, step = 0; g < panel.groups; ++g, scales += 16) {
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < 16; ++c) whole[r][c] = starts[g * R + r];
      const int64_t group_end = smaller(panel.steps, step + panel.group_steps);
      while (step < group_end) {
        Sums sum[R][2];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = Sums{};
        const int64_t end = smaller(group_end, step + widen_every);
        do {
          const __m256i left = load(codes), right = load(codes + 32);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, a + r * 4, 4);
            const __m256i x = _mm256_set1_epi32(four);
            sum[r][0] += (Sums)_mm256_maddubs_epi16(left, x);
            sum[r][1] += (Sums)_mm256_maddubs_epi16(right, x);
          }
          codes += 64;
          a += R * 4;
        } while (++step < end);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) {
            int32_t* to = whole[r] + h * 8;
            store(to, _mm256_add_epi32(load(to), _mm256_madd_epi16((__m256i)sum[r][h], ones)));
          }
      }
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < 16; c += 8) {
          const __m256 v = _mm256_cvtepi32_ps(load(whole[r] + c)), before = _mm256_load_ps(real[r] + c);
          _mm256_store_ps(real[r] + c, _mm256_fmadd_ps(v, _mm256_load_ps(scales + c), before));
        }
    }
    for (int r = 0; r < R; ++r)
      for (int64_t c = 0; c < columns; ++c) rows.y[r * rows.stride + c] = real[r][c] * rows.scale[r];
  }
};

}  // namespace

const Kernel block_avx2 = block_kernel<Avx2>;

}  // namespace catonnx
