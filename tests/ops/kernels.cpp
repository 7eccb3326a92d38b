// The kernels as a process, for tests: cases come in and results go out, without ONNX Runtime. So they run under an
// emulator or a sanitizer as they do here.
//
// A case is a line of words (what, instruction set, numbers), then the bytes of its operands; a result is bytes alone.
// Every operand and every result ends where memory must not be touched.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>

#include "cpu.h"
#include "product.h"
#include "quantize.h"
#include "transform.h"

#if defined(TILES_EMULATED)
extern "C" bool tiles_in_use();
#endif

namespace {

using catonnx::Half;
using catonnx::Isa;

[[noreturn]] void fail(const std::string& why) {
  std::cerr << why << std::endl;
  std::exit(2);
}

// Bytes with a forbidden page right behind them.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), pages = (bytes_ + page - 1) / page * page;
    whole_ = pages + page;
    memory_ = static_cast<char*>(mmap(nullptr, whole_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_ + pages, page, PROT_NONE) != 0) fail("no memory");
    data_ = memory_ + pages - bytes_;
    std::memset(data_, 0xff, bytes_);  // as a float: not a number
  }
  ~Guarded() { munmap(memory_, whole_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  void send() const { std::cout.write(data_, static_cast<std::streamsize>(bytes_)); }
  void receive() { std::cin.read(data_, static_cast<std::streamsize>(bytes_)); }

 private:
  size_t bytes_, whole_;
  char *memory_, *data_;
};

class Operand : public Guarded {
 public:
  explicit Operand(int64_t bytes) : Guarded(bytes) { receive(); }
};

Isa named(const std::string& name) {
  for (int i = 0; *catonnx::name(static_cast<Isa>(i)) != '\0'; ++i) {
    if (name == catonnx::name(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  fail("no instruction set " + name);
}

void quantize(Isa isa, std::istream& words) {
  int64_t rows, K;
  int bits;
  float clip;
  words >> rows >> K >> bits >> clip;
  const Operand x(rows * K * 4);
  const Guarded codes(rows * K), scales(rows * 4);
  catonnx::quantize_rows(isa, x.as<float>(), rows, K, bits, clip, codes.as<int8_t>(), scales.as<float>());
  codes.send();
  scales.send();
}

// All of y [rows, N], of which columns [first, last) are computed.
void multiply(Isa isa, std::istream& words) {
  int64_t K, N, group, rows, first, last;
  words >> K >> N >> group >> rows >> first >> last;
  const int64_t groups = (K + group - 1) / group;
  const Operand codes(N * groups * group / 2), scales(N * groups * 4), a(rows * K), a_scale(rows * 4);
  const Guarded y(rows * N * 4);
  const catonnx::Product product = {K, N, group, codes.as<uint8_t>(), scales.as<float>()};
  const catonnx::Multiplication multiplication(isa, product, a.as<int8_t>(), a_scale.as<float>(), rows);
  // Its end need not be aligned: what is behind, up to the next 64 bytes, goes unnoticed.
  const Guarded arranged((multiplication.bytes() + 63) / 64 * 64);
  const int64_t tiles = multiplication.tiles(), middle = tiles / 2;
  multiplication.arrange(middle, tiles, arranged.as<int8_t>());
  multiplication.arrange(0, middle, arranged.as<int8_t>());
  multiplication.columns(arranged.as<int8_t>(), first, last, y.as<float>() + first, N);
#if defined(TILES_EMULATED)
  if (tiles_in_use()) fail("tiles are still configured");
#endif
  y.send();
}

// `count` matrices [size, size]; or, if `kronecker`, the matrices [count, count] and [size, size].
void transform(Isa isa, std::istream& words) {
  int64_t half, rows, channels, scales, kronecker, count, size;
  words >> half >> rows >> channels >> scales >> kronecker >> count >> size;
  const int64_t bytes = rows * channels * (half ? 2 : 4);
  const Operand x(bytes), scale(scales * 4), first(kronecker ? count * count * 4 : count * size * size * 4),
      second(kronecker ? size * size * 4 : 0);
  const Guarded y(bytes);
  const catonnx::Transform made =
      kronecker ? catonnx::Transform::kronecker(channels, scale.as<float>(), scales, first.as<float>(), count,
                                                second.as<float>(), size)
                : catonnx::Transform::blocks(channels, scale.as<float>(), scales, first.as<float>(), count, size, true);
  catonnx::TransformView view = made.view();
  if (view.matrix == nullptr && !view.hadamard) {
    if (size % 16 != 0) fail("the rows of this matrix need padding");
    view.matrix = first.as<float>();
  } else if (!kronecker && !view.hadamard && size % 16 == 0) {
    fail("this matrix need not be held twice");
  }
  const Guarded scratch(catonnx::scratch_floats(view) * 4);
  const catonnx::TransformKernels& kernels = catonnx::transform_kernels(isa);
  if (half) {
    kernels.half_rows(view, x.as<Half>(), rows, scratch.as<float>(), y.as<Half>());
  } else {
    kernels.rows(view, x.as<float>(), rows, scratch.as<float>(), y.as<float>());
  }
  y.send();
}

// Whether a matrix [size, size] is one that runs as a few sums.
void known(std::istringstream& words) {
  int64_t size;
  words >> size;
  const Operand matrix(size * size * 4);
  std::cout.put(catonnx::outer_kind(matrix.as<float>(), size) != catonnx::Outer::dense);
}

}  // namespace

int main() {
  for (const Isa isa : catonnx::available()) std::cout << catonnx::name(isa) << ' ';
  std::cout << '\n' << std::flush;
  std::string line, what, isa;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    words >> what >> isa;
    if (what == "quantize") {
      quantize(named(isa), words);
    } else if (what == "multiply") {
      multiply(named(isa), words);
    } else if (what == "transform") {
      transform(named(isa), words);
    } else if (what == "known") {
      known(words);
    } else if (what == "overrun") {  // what must not go well
      std::cout << Guarded(5).as<volatile char>()[5];
    } else {
      fail("what is " + line);
    }
    std::cout << std::flush;
  }
}
