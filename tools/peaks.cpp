// How fast this processor reads, and how many products of int8 it adds up: the floors of `tools.bench_products`.
// Compiled for the processor at hand by `tools.peaks`.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__linux__)
#define CATONNX_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// SUMS is that of independent sums: at least an instruction's latency times how many begin at once.
#if defined(__AVX512VNNI__)
using Vector = __m512i;
constexpr const char* NAME = "vpdpbusd, 512 bits";
constexpr int64_t PRODUCTS = 64;
constexpr int SUMS = 16;
Vector add_products(Vector sum, Vector a, Vector b) { return _mm512_dpbusd_epi32(sum, a, b); }
#define CATONNX_OPAQUE(a) asm volatile("" : "+v"(a))
#elif defined(__AVXVNNI__)
using Vector = __m256i;
constexpr const char* NAME = "vpdpbusd, 256 bits";
constexpr int64_t PRODUCTS = 32;
constexpr int SUMS = 10;
Vector add_products(Vector sum, Vector a, Vector b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#define CATONNX_OPAQUE(a) asm volatile("" : "+x"(a))
#elif defined(__AVX2__)
using Vector = __m256i;
constexpr const char* NAME = "vpmaddubsw, vpmaddwd, vpaddd, 256 bits";
constexpr int64_t PRODUCTS = 32;
constexpr int SUMS = 10;
Vector add_products(Vector sum, Vector a, Vector b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#define CATONNX_OPAQUE(a) asm volatile("" : "+x"(a))
#elif defined(__ARM_FEATURE_DOTPROD)
using Vector = int32x4_t;
constexpr const char* NAME = "sdot, 128 bits";
constexpr int64_t PRODUCTS = 16;
constexpr int SUMS = 16;
Vector add_products(Vector sum, Vector a, Vector b) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
}
#define CATONNX_OPAQUE(a) asm volatile("" : "+w"(a))
#else
using Vector = int32_t;
constexpr const char* NAME = "one multiplication after the other";
constexpr int64_t PRODUCTS = 1;
constexpr int SUMS = 10;
Vector add_products(Vector sum, Vector a, Vector b) { return sum + a * b; }
#define CATONNX_OPAQUE(a) asm volatile("" : "+r"(a))
#endif

int64_t vectors(int64_t rounds) {
  Vector sums[SUMS] = {}, a = {}, b = {};
  CATONNX_OPAQUE(b);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int s = 0; s < SUMS; ++s) {
      CATONNX_OPAQUE(a);  // else what does not change is computed once
      sums[s] = add_products(sums[s], a, b);
    }
  }
  for (Vector& sum : sums) CATONNX_OPAQUE(sum);
  return rounds * SUMS * PRODUCTS;
}

#if defined(CATONNX_TILES)
struct alignas(64) Tiles {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

bool may_use_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool may = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return may;
}

int64_t tiles(int64_t rounds) {
  const Tiles shapes;
  _tile_loadconfig(&shapes);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 64;
}
#else
bool may_use_tiles() { return false; }
int64_t tiles(int64_t) { return 0; }
#endif

}  // namespace

// What the figure of `add_up` is that of.
extern "C" const char* instruction() { return may_use_tiles() ? "tdpbssd, tiles of 16 x 64 bytes" : NAME; }

// Multiplies and adds in registers, and returns how often.
extern "C" int64_t add_up(int64_t rounds) { return may_use_tiles() ? tiles(rounds) : vectors(rounds); }

// Returns the sum of all words, which come from memory one behind the other.
extern "C" uint64_t read_all(const uint64_t* words, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += words[i];
  return sum;
}
