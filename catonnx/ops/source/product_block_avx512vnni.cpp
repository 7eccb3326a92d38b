// Many rows: a panel of 32 columns is unpacked to bytes, then every tile of up to 12 rows runs over it.
//
// A vector holds 4 channels ("step") of 16 columns; 4 activations of one row meet it as a broadcast. Steps come in pairs, the
// even and then the odd channels of a run of 8, because that is how the nibbles of 4 bytes come apart. vpdpbusd takes the codes
// as they are, unsigned; a sum starts at -8 times the sum of its activations.
#include <cstring>

#include "avx512.h"
#include "product_kernels.h"

namespace catonnx {
namespace {

constexpr int kColumns = 32, kRows = 12;

// What block() has in scratch: one panel, and a block of rows, tile by tile.
struct Layout {
    int64_t steps, group_steps, groups;
    uint8_t* panel;   // [steps, 32, 4]
    float* scales;    // [groups rounded up to 16, 32]
    int8_t* rows;     // [steps, R, 4] for each tile of R rows
    int32_t* starts;  // [groups, R] for each tile of R rows
};

inline void transpose(__m512i* v) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    // v[4 i + j] now holds, in 128-bit lane l, element 4 l + j of vectors 4 i to 4 i + 3: a 4 x 4 transpose of lanes is left.
    for (int j = 0; j < 4; ++j) {
        const __m512i a = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x44), b = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xee);
        const __m512i c = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x44), d = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xee);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Words [at, at + 16) of 16 rows of `words` words, transposed: v[i] is word at + i of every row. 0 beyond the rows and words.
inline void load_transposed(const void* base, int64_t words, int64_t at, int64_t rows, __m512i* v) {
    const __mmask16 present = static_cast<__mmask16>((1u << smaller(16, words - at)) - 1);
    for (int64_t i = 0; i < 16; ++i)
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
            for (int64_t i = 0; i < smaller(16, pairs - w); ++i) {
                uint8_t* out = to.panel + ((w + i) * 2 * kColumns + c) * 4;
                _mm512_store_si512(out, _mm512_and_si512(v[i], low));
                _mm512_store_si512(out + kColumns * 4, _mm512_and_si512(_mm512_srli_epi16(v[i], 4), low));
            }
        }
        for (int64_t g = 0; g < to.groups; g += 16) {
            load_transposed(p.scales + (n + c) * to.groups, to.groups, g, columns - c, v);
            for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(to.scales + (g + i) * kColumns + c, v[i]);
        }
    }
}

// R rows of a as steps of a tile, and where their sums start.
void arrange(const Product& p, const int8_t* a, int64_t R, const Layout& layout, int8_t* rows, int32_t* starts) {
    const __m512i apart = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    const __m512i eights = _mm512_set1_epi8(8);
    std::memset(starts, 0, static_cast<size_t>(layout.groups * R) * 4);
    for (int64_t r = 0; r < R; ++r)
        for (int64_t step = 0; step < layout.steps; step += 16) {
            const int64_t rest = p.K - step * 4;
            const __m512i run = _mm512_maskz_loadu_epi8(rest < 64 ? (__mmask64{1} << rest) - 1 : ~__mmask64{0}, a + r * p.K + step * 4);
            alignas(64) int32_t words[16], sums[16];
            _mm512_store_si512(words, _mm512_shuffle_epi8(run, apart));
            _mm512_store_si512(sums, _mm512_dpbusd_epi32(_mm512_setzero_si512(), eights, run));
            for (int64_t i = 0; i < smaller(16, layout.steps - step); ++i) {
                std::memcpy(rows + ((step + i) * R + r) * 4, words + i, 4);
                starts[(step + i) / layout.group_steps * R + r] -= sums[i];
            }
        }
}

// 16 sums as a type of their own: with __m512i, GCC keeps every sum of a loop twice, once as 8 long integers.
using Sums = int32_t __attribute__((vector_size(64)));

inline Sums add_products(Sums sum, __m512i codes, __m512i x) { return (Sums)_mm512_dpbusd_epi32((__m512i)sum, codes, x); }

template <int R>
void tile(const Layout& layout, const int8_t* a, const int32_t* starts, const float* a_scale, int64_t columns, float* y, int64_t stride) {
    alignas(64) float sums[R][kColumns] = {};
    const uint8_t* codes = layout.panel;
    for (int64_t g = 0, step = 0; g < layout.groups; ++g) {
        Sums sum[R][2];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = (Sums)_mm512_set1_epi32(starts[g * R + r]);
        const int64_t end = smaller(layout.steps, step + layout.group_steps);
        do {
            const __m512i left = _mm512_load_si512(codes), right = _mm512_load_si512(codes + 64);
#pragma GCC unroll 12
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
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            float* to = sums[r];
            _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][0]), left, _mm512_load_ps(to)));
            _mm512_store_ps(to + 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sum[r][1]), right, _mm512_load_ps(to + 16)));
        }
    }
    for (int64_t h = 0; h * 16 < columns; ++h) {
        const __mmask16 present = static_cast<__mmask16>((1u << smaller(16, columns - h * 16)) - 1);
        for (int r = 0; r < R; ++r)
            _mm512_mask_storeu_ps(y + r * stride + h * 16, present, _mm512_mul_ps(_mm512_load_ps(sums[r] + h * 16), _mm512_set1_ps(a_scale[r])));
    }
}

using Tile = void(const Layout& layout, const int8_t* a, const int32_t* starts, const float* a_scale, int64_t columns, float* y, int64_t stride);

constexpr Tile* kTiles[kRows + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>, tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};

inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

}  // namespace

int64_t block_bytes_avx512vnni(const Product& p, int64_t rows) {
    const int64_t steps = ceil_div(p.K, 8) * 2, groups = group_count(p);
    return steps * kColumns * 4 + ceil_div(groups, 16) * 16 * kColumns * 4 + aligned(steps * rows * 4) + groups * rows * 4;
}

void block_avx512vnni(const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y,
                      uint8_t* scratch) {
    Layout layout;
    layout.steps = ceil_div(p.K, 8) * 2;
    layout.group_steps = p.group / 4;
    layout.groups = group_count(p);
    layout.panel = scratch;
    layout.scales = reinterpret_cast<float*>(layout.panel + layout.steps * kColumns * 4);
    layout.rows = reinterpret_cast<int8_t*>(layout.scales + ceil_div(layout.groups, 16) * 16 * kColumns);
    layout.starts = reinterpret_cast<int32_t*>(layout.rows + aligned(layout.steps * rows * 4));
    for (int64_t r = 0; r < rows; r += kRows)
        arrange(p, a + r * p.K, smaller(kRows, rows - r), layout, layout.rows + r * layout.steps * 4, layout.starts + r * layout.groups);
    for (int64_t n = first; n < last; n += kColumns) {
        const int64_t columns = smaller(kColumns, last - n);
        unpack(p, layout, n, columns);
        for (int64_t r = 0; r < rows; r += kRows)
            kTiles[smaller(kRows, rows - r)](layout, layout.rows + r * layout.steps * 4, layout.starts + r * layout.groups, a_scale + r,
                                             columns, y + r * p.N + n, p.N);
    }
}

}  // namespace catonnx
