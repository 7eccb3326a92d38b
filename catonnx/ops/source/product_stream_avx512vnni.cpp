#include "avx512.h"
#include "product_stream.h"

namespace catonnx {
namespace {

// 16 sums as a type of their own: with __m512i, GCC keeps every sum of a loop twice, once as 8 long integers.
using Sums = int32_t __attribute__((vector_size(64)));

inline Sums add_products(Sums sum, __m512i codes, __m512i x) {
  return (Sums)_mm512_dpbusd_epi32((__m512i)sum, codes, x);
}

inline __m256i halves(__m512i v) {
  return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

inline __m256 float_halves(__m512i v) {
  const __m512 x = _mm512_castsi512_ps(v);
  return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

struct Vnni {
  using Vector = __m512i;
  static constexpr int bytes = 64, columns = 2;

  int64_t length, chunks, count;  // bytes and chunks of a column, and its groups
  int shift;
  __mmask16 groups, tail_groups;  // narrow: those of a full chunk, and of the last one if it is not
  __m512i lanes;                  // narrow: the group of each lane

  explicit Vnni(const Product& p)
      : length(row_bytes(p)),
        chunks(ceil_div(length, bytes)),
        count(group_count(p)),
        shift(group_shift(p.group, 2 * bytes)) {
    const int several = p.group < 2 * bytes ? 1 << shift : 1;
    groups = static_cast<__mmask16>((1u << several) - 1);
    tail_groups = static_cast<__mmask16>((1u << count % several) - 1);
    const __m512i each = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    lanes = _mm512_srli_epi32(each, static_cast<unsigned>(4 - (several > 1 ? shift : 0)));
  }

  template <bool whole>
  static void sums_of_4(const Vector* v, float* out) {
    if (whole) {
      const __m256i a = _mm256_hadd_epi32(halves(v[0]), halves(v[1])),
                    b = _mm256_hadd_epi32(halves(v[2]), halves(v[3]));
      const __m256i s = _mm256_hadd_epi32(a, b);
      _mm_storeu_ps(out, _mm_cvtepi32_ps(_mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1))));
    } else {
      const __m256 a = _mm256_hadd_ps(float_halves(v[0]), float_halves(v[1]));
      const __m256 b = _mm256_hadd_ps(float_halves(v[2]), float_halves(v[3]));
      const __m256 s = _mm256_hadd_ps(a, b);
      _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
    }
  }

  template <Grouping grouping, int R, int C>
  void tile(const Product& p, const Chunk<bytes>* a, int64_t n, Vector* out) const {
    // Successive chunks have sums of their own where there are registers for it: none has to wait for the one before.
    constexpr int U = R * C <= 4 ? 2 : 1;
    constexpr bool channel = grouping == Grouping::channel;
    const int64_t full = length / bytes;
    const uint8_t* codes = p.codes + n * length;
    const float* scales = p.scales + n * count;
    const __m512i low = _mm512_set1_epi8(15);
    Sums whole[U][R][C];  // of these two one is used
    __m512 real[U][R][C];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) {
          whole[u][r][c] = channel && u == 0 ? (Sums)_mm512_load_si512(a[(r + 1) * chunks - 1].start) : Sums{};
          real[u][r][c] = _mm512_setzero_ps();
        }

    auto step = [&](int u, int64_t i, __mmask64 present, __mmask16 here) __attribute__((always_inline)) {
      __m512i even[C], odd[C];
      __m512 scale[C];
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) {
        _mm_prefetch(reinterpret_cast<const char*>(codes) + (i * C + c) * bytes + 4096, _MM_HINT_T1);
        __m512i pair = _mm512_maskz_loadu_epi8(present, codes + c * length + i * bytes);
        asm("" : "+v"(pair));  // or else GCC loads it twice, and it may lie across cache lines
        even[c] = _mm512_and_si512(pair, low);
        odd[c] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
        const float* own = scales + c * count;
        if (grouping == Grouping::wide) scale[c] = _mm512_set1_ps(own[i >> shift]);
        if (grouping == Grouping::narrow)
          scale[c] = _mm512_permutexvar_ps(lanes, _mm512_maskz_loadu_ps(here, own + (i << shift)));
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Chunk<bytes>& x = a[r * chunks + i];
        const __m512i x_even = _mm512_load_si512(x.even), x_odd = _mm512_load_si512(x.odd);
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) {
          const Sums start = channel ? whole[u][r][c] : (Sums)_mm512_load_si512(x.start);
          const Sums sum = add_products(add_products(start, even[c], x_even), odd[c], x_odd);
          if (channel)
            whole[u][r][c] = sum;
          else
            real[u][r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum), scale[c], real[u][r][c]);
        }
      }
    };
    int64_t i = 0;
    for (; i + U <= full; i += U)
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) step(u, i + u, ~__mmask64{0}, groups);
    if (i < full) step(0, i, ~__mmask64{0}, groups);
    if (length % bytes) step(0, full, (__mmask64{1} << length % bytes) - 1, tail_groups);

#pragma GCC unroll 2
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Sums all = U == 1 ? whole[0][r][c] : whole[0][r][c] + whole[U - 1][r][c];
        const __m512 sum = U == 1 ? real[0][r][c] : _mm512_add_ps(real[0][r][c], real[U - 1][r][c]);
        out[c * R + r] = channel ? (__m512i)all : _mm512_castps_si512(sum);
      }
  }
};

}  // namespace

const Kernel stream_avx512vnni = stream_kernel<Vnni>;

}  // namespace catonnx
