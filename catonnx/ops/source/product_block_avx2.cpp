// Many rows, as in product_block_avx512vnni.cpp, with 8 columns to a vector: a panel of 16 columns is unpacked to bytes, then every
// tile of up to 4 rows runs over it.
//
// vpmaddubsw adds two products of a code (0 to 15) and an activation (-128 to 127) in 16 bits, saturated: at most 2 * 15 * 128 =
// 3840 in magnitude. Sums of 8 steps stay within 30720 before they are widened to 32 bits, so nothing saturates.
#include <immintrin.h>

#include <cstring>

#include "product_kernels.h"

namespace catonnx {
namespace {

constexpr int kColumns = 16, kRows = 4, kWiden = 8;

// What block_avx2 has in scratch: one panel, and a block of rows, tile by tile. A step is 4 channels; steps come in pairs, the even
// and then the odd channels of a run of 8.
struct Layout {
    int64_t steps, group_steps, groups;
    uint8_t* panel;   // [steps, 16, 4]
    float* scales;    // [groups rounded up to 8, 16]
    int8_t* rows;     // [steps, R, 4] for each tile of R rows
    int32_t* starts;  // [groups, R] for each tile of R rows: -8 times the sum of the activations
};

inline __m256i load(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(to), v); }

inline void transpose(__m256i* v) {
    __m256i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            u[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + j + 2]);
            u[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int j = 0; j < 4; ++j) {
        v[j] = _mm256_permute2x128_si256(u[j], u[4 + j], 0x20);
        v[4 + j] = _mm256_permute2x128_si256(u[j], u[4 + j], 0x31);
    }
}

// Words [at, at + 8) of 8 rows of `words` words, transposed: v[i] is word at + i of every row. 0 beyond the rows and words.
inline void load_transposed(const void* base, int64_t words, int64_t at, int64_t rows, __m256i* v) {
    const __m256i present = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(smaller(8, words - at))), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (int64_t i = 0; i < 8; ++i)
        v[i] = i < rows ? _mm256_maskload_epi32(static_cast<const int*>(base) + i * words + at, present) : _mm256_setzero_si256();
    transpose(v);
}

void unpack(const Product& p, const Layout& to, int64_t n, int64_t columns) {
    const __m256i low = _mm256_set1_epi8(15);
    const int64_t words = row_bytes(p) / 4, pairs = to.steps / 2;
    for (int64_t c = 0; c < kColumns; c += 8) {
        __m256i v[8];
        for (int64_t w = 0; w < pairs; w += 8) {
            load_transposed(p.codes + (n + c) * words * 4, words, w, columns - c, v);
            for (int64_t i = 0; i < smaller(8, pairs - w); ++i) {
                uint8_t* out = to.panel + ((w + i) * 2 * kColumns + c) * 4;
                store(out, _mm256_and_si256(v[i], low));
                store(out + kColumns * 4, _mm256_and_si256(_mm256_srli_epi16(v[i], 4), low));
            }
        }
        for (int64_t g = 0; g < to.groups; g += 8) {
            load_transposed(p.scales + (n + c) * to.groups, to.groups, g, columns - c, v);
            for (int64_t i = 0; i < 8; ++i) store(to.scales + (g + i) * kColumns + c, v[i]);
        }
    }
}

// R rows of a as steps of a tile, and where their sums start.
void arrange(const Product& p, const int8_t* a, int64_t R, const Layout& layout, int8_t* rows, int32_t* starts) {
    std::memset(starts, 0, static_cast<size_t>(layout.groups * R) * 4);
    for (int64_t r = 0; r < R; ++r)
        for (int64_t step = 0; step < layout.steps; step += 2) {
            int8_t run[8] = {};
            std::memcpy(run, a + r * p.K + step * 4, static_cast<size_t>(smaller(8, p.K - step * 4)));
            const int8_t even[4] = {run[0], run[2], run[4], run[6]}, odd[4] = {run[1], run[3], run[5], run[7]};
            std::memcpy(rows + (step * R + r) * 4, even, 4);
            std::memcpy(rows + ((step + 1) * R + r) * 4, odd, 4);
            int32_t sum = 0;
            for (int i = 0; i < 8; ++i) sum += run[i];
            starts[step / layout.group_steps * R + r] -= 8 * sum;
        }
}

// 16 sums as a type of their own: with __m256i, GCC keeps every sum of a loop twice, once as 4 long integers.
using Sums = int16_t __attribute__((vector_size(32)));

template <int R>
void tile(const Layout& layout, const int8_t* a, const int32_t* starts, const float* a_scale, int64_t columns, float* y, int64_t stride) {
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t* codes = layout.panel;
    alignas(32) float real[R][kColumns] = {};
    for (int64_t g = 0, step = 0; g < layout.groups; ++g) {
        alignas(32) int32_t whole[R][kColumns];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < kColumns; ++c) whole[r][c] = starts[g * R + r];
        const int64_t group_end = smaller(layout.steps, step + layout.group_steps);
        while (step < group_end) {
            Sums sum[R][2];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = Sums{};
            const int64_t end = smaller(group_end, step + kWiden);
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
                codes += kColumns * 4;
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
            for (int h = 0; h < 2; ++h) {
                float* to = real[r] + h * 8;
                const __m256 scale = _mm256_load_ps(layout.scales + g * kColumns + h * 8);
                _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_cvtepi32_ps(load(whole[r] + h * 8)), scale, _mm256_load_ps(to)));
            }
    }
    for (int r = 0; r < R; ++r)
        for (int64_t c = 0; c < columns; ++c) y[r * stride + c] = real[r][c] * a_scale[r];
}

using Tile = void(const Layout& layout, const int8_t* a, const int32_t* starts, const float* a_scale, int64_t columns, float* y, int64_t stride);

constexpr Tile* kTiles[kRows + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>};

inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

}  // namespace

int64_t block_bytes_avx2(const Product& p, int64_t rows) {
    const int64_t steps = ceil_div(p.K, 8) * 2, groups = group_count(p);
    return steps * kColumns * 4 + ceil_div(groups, 8) * 8 * kColumns * 4 + aligned(steps * rows * 4) + groups * rows * 4;
}

void block_avx2(const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y, uint8_t* scratch) {
    Layout layout;
    layout.steps = ceil_div(p.K, 8) * 2;
    layout.group_steps = p.group / 4;
    layout.groups = group_count(p);
    layout.panel = scratch;
    layout.scales = reinterpret_cast<float*>(layout.panel + layout.steps * kColumns * 4);
    layout.rows = reinterpret_cast<int8_t*>(layout.scales + ceil_div(layout.groups, 8) * 8 * kColumns);
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
