// vpmaddubsw adds two products of a code (0 to 15) and an activation (-128 to 127) in 16 bits, saturated: at most
// 2 * 15 * 128 = 3840 in magnitude, and twice that for the even and odd channels together. Nothing can saturate.
#include <immintrin.h>

#include "product_stream.h"

namespace catonnx {
namespace {

inline __m256i load(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }

struct Avx2 {
  using Vector = __m256i;
  static constexpr int bytes = 32, columns = 1;

  int64_t length, chunks, count;  // bytes and chunks of a column, and its groups
  int shift;
  __m128i groups, tail_groups;  // narrow: those of a full chunk, and of the last one if it is not
  __m256i lanes;                // narrow: the group of each lane

  explicit Avx2(const Product& p)
      : length(row_bytes(p)),
        chunks(ceil_div(length, bytes)),
        count(group_count(p)),
        shift(group_shift(p.group, 2 * bytes)) {
    const int several = p.group < 2 * bytes ? 1 << shift : 1;
    const __m128i four = _mm_setr_epi32(0, 1, 2, 3);
    groups = _mm_cmplt_epi32(four, _mm_set1_epi32(several));
    tail_groups = _mm_cmplt_epi32(four, _mm_set1_epi32(static_cast<int>(count % several)));
    lanes = _mm256_srli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), 3 - (several > 1 ? shift : 0));
  }

  template <bool whole>
  static void sums_of_4(const Vector* v, float* out) {
    if (whole) {
      const __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
      _mm_storeu_ps(out, _mm_cvtepi32_ps(_mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1))));
    } else {
      const __m256 a = _mm256_hadd_ps(_mm256_castsi256_ps(v[0]), _mm256_castsi256_ps(v[1]));
      const __m256 b = _mm256_hadd_ps(_mm256_castsi256_ps(v[2]), _mm256_castsi256_ps(v[3]));
      const __m256 s = _mm256_hadd_ps(a, b);
      _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
    }
  }

  template <Grouping grouping, int R, int C>
  void tile(const Product& p, const Chunk<bytes>* a, int64_t n, Vector* out) const {
    static_assert(C == 1, "more sums than registers");
    constexpr bool channel = grouping == Grouping::channel;
    const int64_t full = length / bytes;
    const uint8_t* codes = p.codes + n * length;
    const float* scales = p.scales + n * count;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i whole[R];  // of these two one is used
    __m256 real[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      whole[r] = load(a[(r + 1) * chunks - 1].start);
      real[r] = _mm256_setzero_ps();
    }

    auto step = [&](int64_t i, __m256i pair, __m128i here) __attribute__((always_inline)) {
      const __m256i even = _mm256_and_si256(pair, low), odd = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
      __m256 scale = _mm256_setzero_ps();
      if (grouping == Grouping::wide) scale = _mm256_set1_ps(scales[i >> shift]);
      if (grouping == Grouping::narrow) {
        const __m128 some = _mm_maskload_ps(scales + (i << shift), here);
        scale = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(some), lanes);
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Chunk<bytes>& x = a[r * chunks + i];
        const __m256i products =
            _mm256_add_epi16(_mm256_maddubs_epi16(even, load(x.even)), _mm256_maddubs_epi16(odd, load(x.odd)));
        const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(products, ones), channel ? whole[r] : load(x.start));
        if (channel)
          whole[r] = sum;
        else
          real[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, real[r]);
      }
    };
    for (int64_t i = 0; i < full; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(codes) + i * bytes + 4096, _MM_HINT_T1);
      step(i, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i * bytes)), groups);
    }
    if (length % bytes) {
      alignas(32) uint8_t tail[bytes] = {};
      std::memcpy(tail, codes + full * bytes, static_cast<size_t>(length % bytes));
      step(full, load(tail), tail_groups);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) out[r] = channel ? whole[r] : _mm256_castps_si256(real[r]);
  }
};

}  // namespace

const Kernel stream_avx2 = stream_kernel<Avx2>;

}  // namespace catonnx
