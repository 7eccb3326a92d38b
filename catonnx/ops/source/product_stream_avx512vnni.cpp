// Few rows: codes are read once, 64 bytes (128 channels) at a time, and stay in registers for all rows of a tile.
//
// The low nibbles of a chunk are its even channels and the high nibbles its odd ones, so each row of activations is split
// that way beforehand. vpdpbusd takes the codes as they are, unsigned; its accumulator starts at -8 times the activations
// that will meet in each lane. A lane holds 8 successive channels, hence never two groups.
#include <cstring>

#include "avx512.h"
#include "product_kernels.h"

namespace catonnx {
namespace {

struct alignas(64) Chunk {
    int8_t even[64], odd[64];
    int32_t start[16];
};

// channel: one scale per column. wide: groups of one chunk or several. narrow: several groups in one chunk.
enum class Grouping { channel, wide, narrow };

void split_row(const int8_t* a, int64_t K, bool channel, int64_t count, Chunk* chunks) {
    const __m512i eights = _mm512_set1_epi8(8);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; ++i, ++chunks) {
        alignas(64) int8_t run[128] = {};
        if (i * 128 < K) std::memcpy(run, a + i * 128, static_cast<size_t>(smaller(128, K - i * 128)));
        const __m512i front = _mm512_load_si512(run), back = _mm512_load_si512(run + 64);
        const __m512i even = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(front)), _mm512_cvtepi16_epi8(back), 1);
        const __m512i odd = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(_mm512_srli_epi16(front, 8))),
                                               _mm512_cvtepi16_epi8(_mm512_srli_epi16(back, 8)), 1);
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), eights, even);
        sum = _mm512_dpbusd_epi32(sum, eights, odd);
        total = _mm512_sub_epi32(total, sum);
        _mm512_store_si512(chunks->even, even);
        _mm512_store_si512(chunks->odd, odd);
        _mm512_store_si512(chunks->start, total);
        if (!channel) total = _mm512_setzero_si512();
    }
}

inline __m256i halves(__m512i v) { return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)); }
inline __m256 float_halves(__m512i v) {
    const __m512 x = _mm512_castsi512_ps(v);
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

// The sums of the 16 elements of four vectors.
template <bool whole>
inline __m128 sums_of_4(const __m512i* v) {
    if (whole) {
        const __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(halves(v[0]), halves(v[1])), _mm256_hadd_epi32(halves(v[2]), halves(v[3])));
        return _mm_cvtepi32_ps(_mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
    }
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(float_halves(v[0]), float_halves(v[1])), _mm256_hadd_ps(float_halves(v[2]), float_halves(v[3])));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

// Where a chunk finds its scales, and how they spread over its 16 lanes.
struct Spread {
    int shift;         // wide: log2 of the chunks in a group; narrow: log2 of the groups in a chunk
    __mmask16 groups;  // narrow: the groups of a full chunk
    __mmask16 tail_groups;
    __m512i lanes;
};

Spread spread_of(const Product& p) {
    Spread s = {0, 1, 1, _mm512_setzero_si512()};
    if (p.group >= 128) {
        while ((int64_t{128} << s.shift) < p.group) ++s.shift;
        return s;
    }
    while ((int64_t{128} >> s.shift) > p.group) ++s.shift;
    const int count = 1 << s.shift;
    s.groups = static_cast<__mmask16>((1u << count) - 1);
    const int rest = static_cast<int>(group_count(p) % count);
    s.tail_groups = static_cast<__mmask16>((1u << rest) - 1);
    s.lanes = _mm512_srli_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), static_cast<unsigned>(4 - s.shift));
    return s;
}

// 16 sums as a type of their own: with __m512i, GCC keeps every sum of a loop twice, once as 8 long integers.
using Sums = int32_t __attribute__((vector_size(64)));

inline Sums add_products(Sums sum, __m512i codes, __m512i x) { return (Sums)_mm512_dpbusd_epi32((__m512i)sum, codes, x); }

// Columns [n, n + C) with R rows: the 16 partial sums of each, [C, R], int32 for Grouping::channel and else float.
template <Grouping grouping, int R, int C>
inline void tile(const Product& p, const Spread& spread, const Chunk* a, int64_t chunks, int64_t n, __m512i* out) {
    // Successive chunks have sums of their own where there are registers for it: none has to wait for the one before.
    constexpr int U = R * C <= 4 ? 2 : 1;
    constexpr bool channel = grouping == Grouping::channel;
    const int64_t bytes = row_bytes(p), full = bytes / 64, count = group_count(p);
    const uint8_t* codes = p.codes + n * bytes;
    const float* scales = p.scales + n * count;
    const __m512i low = _mm512_set1_epi8(15);
    Sums whole[U][R][C];  // of these two one is used
    __m512 real[U][R][C];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                whole[u][r][c] = channel && u == 0 ? (Sums)_mm512_load_si512(a[(r + 1) * chunks - 1].start) : Sums{};
                real[u][r][c] = _mm512_setzero_ps();
            }

    auto step = [&](int u, int64_t i, __mmask64 present, __mmask16 groups) __attribute__((always_inline)) {
        __m512i even[C], odd[C];
        __m512 scale[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            _mm_prefetch(reinterpret_cast<const char*>(codes) + (i * C + c) * 64 + 4096, _MM_HINT_T1);
            const __m512i pair = _mm512_maskz_loadu_epi8(present, codes + c * bytes + i * 64);
            even[c] = _mm512_and_si512(pair, low);
            odd[c] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
            if (grouping == Grouping::wide) scale[c] = _mm512_set1_ps(scales[c * count + (i >> spread.shift)]);
            if (grouping == Grouping::narrow)
                scale[c] = _mm512_permutexvar_ps(spread.lanes, _mm512_maskz_loadu_ps(groups, scales + c * count + (i << spread.shift)));
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const Chunk& x = a[r * chunks + i];
            const __m512i x_even = _mm512_load_si512(x.even), x_odd = _mm512_load_si512(x.odd);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
                const Sums start = channel ? whole[u][r][c] : (Sums)_mm512_load_si512(x.start);
                const Sums sum = add_products(add_products(start, even[c], x_even), odd[c], x_odd);
                if (channel) whole[u][r][c] = sum;
                else real[u][r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum), scale[c], real[u][r][c]);
            }
        }
    };
    int64_t i = 0;
    for (; i + U <= full; i += U)
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) step(u, i + u, ~__mmask64{0}, spread.groups);
    if (i < full) step(0, i, ~__mmask64{0}, spread.groups);
    if (bytes % 64) step(0, full, (__mmask64{1} << bytes % 64) - 1, spread.tail_groups);

#pragma GCC unroll 4
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            if (channel) out[c * R + r] = (__m512i)(U == 1 ? whole[0][r][c] : whole[0][r][c] + whole[U - 1][r][c]);
            else out[c * R + r] = _mm512_castps_si512(U == 1 ? real[0][r][c] : _mm512_add_ps(real[0][r][c], real[U - 1][r][c]));
        }
}

// R rows with columns [n, n + count), count up to 4.
//
// With one row or two, one column comes after the other, so that the codes are read strictly in their order: only then does the
// processor fetch them from memory early enough. (Four columns at a time, with a row: half the speed.) More rows take longer
// than the memory; then two columns share the activations that they load.
template <Grouping grouping, int R>
void columns(const Product& p, const Spread& spread, const Chunk* a, int64_t chunks, const float* a_scale, int64_t n, int64_t count, float* y) {
    constexpr bool channel = grouping == Grouping::channel;
    constexpr int C = R <= 2 ? 1 : 2;
    __m512i partial[4 * R];
    int64_t c = 0;
    for (; c + C <= count; c += C) tile<grouping, R, C>(p, spread, a, chunks, n + c, partial + c * R);
    for (; c < count; ++c) tile<grouping, R, 1>(p, spread, a, chunks, n + c, partial + c * R);
    for (; c < 4; ++c)
        for (int r = 0; r < R; ++r) partial[c * R + r] = _mm512_setzero_si512();
    float sums[4 * R];
    for (int i = 0; i < 4 * R; i += 4) _mm_storeu_ps(sums + i, sums_of_4<channel>(partial + i));
    for (c = 0; c < count; ++c)
        for (int r = 0; r < R; ++r) y[r * p.N + n + c] = sums[c * R + r] * (channel ? a_scale[r] * p.scales[n + c] : a_scale[r]);
}

template <Grouping grouping>
void stream(const Product& p, const Chunk* a, int64_t chunks, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y) {
    constexpr decltype(&columns<grouping, 1>) kinds[] = {columns<grouping, 1>, columns<grouping, 2>, columns<grouping, 3>, columns<grouping, 4>};
    const Spread spread = spread_of(p);
    for (int64_t n = first; n < last; n += 4)
        for (int64_t r = 0; r < rows; r += 4)
            kinds[smaller(4, rows - r) - 1](p, spread, a + r * chunks, chunks, a_scale + r, n, smaller(4, last - n), y + r * p.N);
}

}  // namespace

void stream_avx512vnni(const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y,
                       uint8_t* scratch) {
    const bool channel = group_count(p) == 1;
    const int64_t chunks = ceil_div(row_bytes(p), 64);
    Chunk* split = reinterpret_cast<Chunk*>(scratch);
    for (int64_t r = 0; r < rows; ++r) split_row(a + r * p.K, p.K, channel, chunks, split + r * chunks);
    if (channel) return stream<Grouping::channel>(p, split, chunks, a_scale, rows, first, last, y);
    if (p.group >= 128) return stream<Grouping::wide>(p, split, chunks, a_scale, rows, first, last, y);
    stream<Grouping::narrow>(p, split, chunks, a_scale, rows, first, last, y);
}

}  // namespace catonnx
