// Few rows: codes are read once, 32 bytes (64 channels) at a time, and stay in registers for all rows of a tile. As in
// product_stream_avx512vnni.cpp, each row of activations is split beforehand into its even and odd channels.
//
// vpmaddubsw adds two products of a code (0 to 15) and an activation (-128 to 127) in 16 bits, saturated: at most 2 * 15 * 128 =
// 3840 in magnitude, and twice that for the even and odd channels together, so nothing saturates. A 32-bit lane holds 8
// successive channels, hence never two groups.
#include <immintrin.h>

#include <cstring>

#include "product_kernels.h"

namespace catonnx {
namespace {

struct alignas(32) Chunk {
    int8_t even[32], odd[32];
    int32_t start[8];
};

// channel: one scale per column. wide: groups of one chunk or several. narrow: several groups in one chunk.
enum class Grouping { channel, wide, narrow };

void split_row(const int8_t* a, int64_t K, bool channel, int64_t count, Chunk* chunks) {
    int32_t total[8] = {};
    for (int64_t i = 0; i < count; ++i, ++chunks) {
        int8_t run[64] = {};
        if (i * 64 < K) std::memcpy(run, a + i * 64, static_cast<size_t>(smaller(64, K - i * 64)));
        for (int j = 0; j < 32; ++j) {
            chunks->even[j] = run[2 * j];
            chunks->odd[j] = run[2 * j + 1];
            total[j / 4] -= 8 * (run[2 * j] + run[2 * j + 1]);
        }
        std::memcpy(chunks->start, total, sizeof total);
        if (!channel) std::memset(total, 0, sizeof total);
    }
}

inline __m256i load(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }

// The sums of the 8 elements of four vectors.
template <bool whole>
inline __m128 sums_of_4(const __m256i* v) {
    if (whole) {
        const __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
        return _mm_cvtepi32_ps(_mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
    }
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(_mm256_castsi256_ps(v[0]), _mm256_castsi256_ps(v[1])),
                                    _mm256_hadd_ps(_mm256_castsi256_ps(v[2]), _mm256_castsi256_ps(v[3])));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

// Where a chunk finds its scales, and how they spread over its 8 lanes.
struct Spread {
    int shift;        // wide: log2 of the chunks in a group; narrow: log2 of the groups in a chunk
    __m128i present;  // narrow: the groups of a full chunk
    __m128i tail_present;
    __m256i lanes;
};

Spread spread_of(const Product& p) {
    Spread s = {0, _mm_setzero_si128(), _mm_setzero_si128(), _mm256_setzero_si256()};
    if (p.group >= 64) {
        while ((int64_t{64} << s.shift) < p.group) ++s.shift;
        return s;
    }
    while ((int64_t{64} >> s.shift) > p.group) ++s.shift;
    const int count = 1 << s.shift;
    const __m128i each = _mm_setr_epi32(0, 1, 2, 3);
    s.present = _mm_cmplt_epi32(each, _mm_set1_epi32(count));
    s.tail_present = _mm_cmplt_epi32(each, _mm_set1_epi32(static_cast<int>(group_count(p) % count)));
    s.lanes = _mm256_srli_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), 3 - s.shift);
    return s;
}

// Column n with R rows: the 8 partial sums of each, int32 for Grouping::channel and else float.
template <Grouping grouping, int R>
inline void tile(const Product& p, const Spread& spread, const Chunk* a, int64_t chunks, int64_t n, __m256i* out) {
    constexpr bool channel = grouping == Grouping::channel;
    const int64_t bytes = row_bytes(p), full = bytes / 32;
    const uint8_t* codes = p.codes + n * bytes;
    const float* scales = p.scales + n * group_count(p);
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i whole[R];  // of these two one is used
    __m256 real[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
        whole[r] = load(a[(r + 1) * chunks - 1].start);
        real[r] = _mm256_setzero_ps();
    }

    auto step = [&](int64_t i, __m256i pair, __m128i present) __attribute__((always_inline)) {
        const __m256i even = _mm256_and_si256(pair, low), odd = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
        __m256 scale = _mm256_setzero_ps();
        if (grouping == Grouping::wide) scale = _mm256_set1_ps(scales[i >> spread.shift]);
        if (grouping == Grouping::narrow)
            scale = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_maskload_ps(scales + (i << spread.shift), present)), spread.lanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const Chunk& x = a[r * chunks + i];
            const __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(even, load(x.even)), _mm256_maddubs_epi16(odd, load(x.odd)));
            const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(products, ones), channel ? whole[r] : load(x.start));
            if (channel) whole[r] = sum;
            else real[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, real[r]);
        }
    };
    for (int64_t i = 0; i < full; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(codes) + i * 32 + 4096, _MM_HINT_T1);
        step(i, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i * 32)), spread.present);
    }
    if (bytes % 32) {
        alignas(32) uint8_t tail[32] = {};
        std::memcpy(tail, codes + full * 32, static_cast<size_t>(bytes % 32));
        step(full, load(tail), spread.tail_present);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) out[r] = channel ? whole[r] : _mm256_castps_si256(real[r]);
}

// R rows with columns [n, n + count), count up to 4: one after the other, so that the codes are read in their order.
template <Grouping grouping, int R>
void columns(const Product& p, const Spread& spread, const Chunk* a, int64_t chunks, const float* a_scale, int64_t n, int64_t count, float* y) {
    constexpr bool channel = grouping == Grouping::channel;
    __m256i partial[4 * R];
    for (int64_t c = 0; c < 4; ++c) {
        if (c < count) tile<grouping, R>(p, spread, a, chunks, n + c, partial + c * R);
        else for (int r = 0; r < R; ++r) partial[c * R + r] = _mm256_setzero_si256();
    }
    float sums[4 * R];
    for (int i = 0; i < 4 * R; i += 4) _mm_storeu_ps(sums + i, sums_of_4<channel>(partial + i));
    for (int64_t c = 0; c < count; ++c)
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

void stream_avx2(const Product& p, const int8_t* a, const float* a_scale, int64_t rows, int64_t first, int64_t last, float* y, uint8_t* scratch) {
    const bool channel = group_count(p) == 1;
    const int64_t chunks = ceil_div(row_bytes(p), 32);
    Chunk* split = reinterpret_cast<Chunk*>(scratch);
    for (int64_t r = 0; r < rows; ++r) split_row(a + r * p.K, p.K, channel, chunks, split + r * chunks);
    if (channel) return stream<Grouping::channel>(p, split, chunks, a_scale, rows, first, last, y);
    if (p.group >= 64) return stream<Grouping::wide>(p, split, chunks, a_scale, rows, first, last, y);
    stream<Grouping::narrow>(p, split, chunks, a_scale, rows, first, last, y);
}

}  // namespace catonnx
