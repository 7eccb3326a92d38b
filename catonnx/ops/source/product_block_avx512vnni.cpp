// Many rows: a panel of 32 columns is unpacked to bytes, then every tile of up to 6 rows runs over it.
//
// A vector holds 4 channels ("step") of 16 columns; 4 activations of one row meet it as a broadcast. Steps come in pairs, the
// even and then the odd channels of a run of 8, because that is how the nibbles of 4 bytes come apart. vpdpbusd takes the codes
// as they are, unsigned; a sum starts at -8 times the sum of its activations.
#include <cstring>

#include "avx512.h"
#include "product_kernels.h"

namespace catonnx {
namespace {

constexpr int kColumns = 32, kRows = 6;

// What block() has in scratch: one panel, and a block of rows, tile by tile.
struct Layout {
    int64_t steps, group_steps, groups;
    uint8_t* panel;   // [steps rounded up to 32, 32, 4]
    float* scales;    // [groups rounded up to 16, 32]
    int8_t* rows;     // [steps, R, 4] for each tile of R rows
    int32_t* starts;  // [groups, R] for each tile of R rows
};

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
    // v[4 i + j] now holds, in 128-bit lane l, element 4 l + j of vectors 4 i to 4 i + 3: a 4 x 4 transpose of lanes is left.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i a = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x44), b = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xee);
        const __m512i c = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x44), d = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xee);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Words [at, at + 16) of 16 rows of `words` words, transposed: v[i] is word at + i of every row. 0 beyond the rows and words.
inline void load_transposed(const void* base, int64_t words, int64_t at, int64_t rows, __m512i* v) {
    const __mmask16 present = static_cast<__mmask16>((1u << smaller(16, words - at)) - 1);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        v[i] = i < rows ? _mm512_maskz_loadu_epi32(present, static_cast<const char*>(base) + (i * words + at) * 4) : _mm512_setzero_si512();
    transpose(v);
}

void unpack(const Product& p, const Layout& to, int64_t n, int64_t columns) {
    const __m512i low = _mm512_set1_epi8(15);
    const int64_t words = row_bytes(p) / 4, pairs = to.steps / 2;
    for (int64_t c = 0; c < kColumns; c += 16) {
        __m512i v[16];
        for (int64_t w = 0; w < pairs; w += 16) {
            load_transposed(p.codes + (n + c) * words * 4, words, w, columns - c, v);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                uint8_t* out = to.panel + ((w + i) * 2 * kColumns + c) * 4;
                _mm512_store_si512(out, _mm512_and_si512(v[i], low));
                _mm512_store_si512(out + kColumns * 4, _mm512_and_si512(_mm512_srli_epi16(v[i], 4), low));
            }
        }
        for (int64_t g = 0; g < to.groups; g += 16) {
            load_transposed(p.scales + (n + c) * to.groups, to.groups, g, columns - c, v);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) _mm512_store_si512(to.scales + (g + i) * kColumns + c, v[i]);
        }
    }
}

// R rows of a as steps of a tile, and where their sums start. 16 channels at a time: never of two groups.
void arrange(const Product& p, const int8_t* a, int64_t R, const Layout& layout, int8_t* rows, int32_t* starts) {
    const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15), eights = _mm_set1_epi8(8);
    for (int64_t r = 0; r < R; ++r) {
        const int8_t* x = a + r * p.K;
        for (int64_t g = 0, step = 0; g < layout.groups; ++g) {
            const int64_t end = smaller(layout.steps, step + layout.group_steps);
            __m128i sum = _mm_setzero_si128();
            for (; step < end; step += 4) {
                const int64_t rest = p.K - step * 4;
                const __m128i run = rest >= 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + step * 4))
                                               : _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << rest) - 1), x + step * 4);
                sum = _mm_dpbusd_epi32(sum, eights, run);
                const __m128i words = _mm_shuffle_epi8(run, apart);
                int8_t* to = rows + (step * R + r) * 4;
                _mm_storeu_si32(to, words);
                _mm_storeu_si32(to + R * 4, _mm_shuffle_epi32(words, 1));
                if (step + 2 < end) {
                    _mm_storeu_si32(to + R * 8, _mm_shuffle_epi32(words, 2));
                    _mm_storeu_si32(to + R * 12, _mm_shuffle_epi32(words, 3));
                }
            }
            sum = _mm_hadd_epi32(sum, sum);
            starts[g * R + r] = -_mm_cvtsi128_si32(_mm_hadd_epi32(sum, sum));
        }
    }
}

// 16 sums as a type of their own: with __m512i, GCC keeps every sum of a loop twice, once as 8 long integers.
using Sums = int32_t __attribute__((vector_size(64)));

inline Sums add_products(Sums sum, __m512i codes, __m512i x) { return (Sums)_mm512_dpbusd_epi32((__m512i)sum, codes, x); }

template <int R>
void tile(const Layout& layout, const int8_t* a, const int32_t* starts, const float* a_scale, int64_t columns, float* y, int64_t stride) {
    __m512 real[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) real[r][0] = real[r][1] = _mm512_setzero_ps();
    const uint8_t* codes = layout.panel;
    for (int64_t g = 0, step = 0; g < layout.groups; ++g) {
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
            codes += kColumns * 4;
            a += R * 4;
        } while (++step < end);
        const __m512 left = _mm512_load_ps(layout.scales + g * kColumns), right = _mm512_load_ps(layout.scales + g * kColumns + 16);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            real[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][0]), left, real[r][0]);
            real[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][1]), right, real[r][1]);
        }
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        if (columns <= h * 16) break;
        const __mmask16 present = static_cast<__mmask16>((1u << smaller(16, columns - h * 16)) - 1);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) _mm512_mask_storeu_ps(y + r * stride + h * 16, present, _mm512_mul_ps(real[r][h], _mm512_set1_ps(a_scale[r])));
    }
}

using Tile = void(const Layout& layout, const int8_t* a, const int32_t* starts, const float* a_scale, int64_t columns, float* y, int64_t stride);

constexpr Tile* kTiles[kRows + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

inline int64_t round_up(int64_t length, int64_t to) { return ceil_div(length, to) * to; }

}  // namespace

int64_t block_bytes_avx512vnni(const Product& p, int64_t rows) {
    const int64_t steps = ceil_div(p.K, 8) * 2, groups = group_count(p);
    return (round_up(steps, 32) + round_up(groups, 16)) * kColumns * 4 + round_up(steps * rows * 4, 64) + groups * rows * 4;
}

void block_avx512vnni(const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y,
                      uint8_t* scratch) {
    Layout layout;
    layout.steps = ceil_div(p.K, 8) * 2;
    layout.group_steps = p.group / 4;
    layout.groups = group_count(p);
    layout.panel = scratch;
    layout.scales = reinterpret_cast<float*>(layout.panel + round_up(layout.steps, 32) * kColumns * 4);
    layout.rows = reinterpret_cast<int8_t*>(layout.scales + round_up(layout.groups, 16) * kColumns);
    layout.starts = reinterpret_cast<int32_t*>(layout.rows + round_up(layout.steps * rows * 4, 64));
    for (int64_t r = 0; r < rows; r += kRows)
        arrange(p, a + r * p.K, smaller(kRows, rows - r), layout, layout.rows + r * layout.steps * 4, layout.starts + r * layout.groups);
    const int64_t piece = round_up(ceil_div(kColumns * row_bytes(p), ceil_div(rows, kRows)), 64);
    for (int64_t n = first; n < last; n += kColumns) {
        const int64_t columns = smaller(kColumns, last - n);
        unpack(p, layout, n, columns);
        // unpack() reads 16 places at once, which no prefetcher foresees: fetch what it will read next, a piece with every tile.
        const char* next = reinterpret_cast<const char*>(p.codes + (n + kColumns) * row_bytes(p));
        const char* end = reinterpret_cast<const char*>(p.codes + smaller(n + 2 * kColumns, last) * row_bytes(p));
        for (int64_t r = 0; r < rows; r += kRows) {
            const char* stop = r + kRows < rows ? next + piece : end;
            for (; next < stop && next < end; next += 64) _mm_prefetch(next, _MM_HINT_T0);
            kTiles[smaller(kRows, rows - r)](layout, layout.rows + r * layout.steps * 4, layout.starts + r * layout.groups, a_scale + r,
                                             columns, y + r * p.N + n, p.N);
        }
    }
}

}  // namespace catonnx
