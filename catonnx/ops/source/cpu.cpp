#include "cpu.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace catonnx {
namespace {

constexpr Isa all[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512vnni, Isa::neon, Isa::neondot};

#if defined(__x86_64__)
bool has_f16c() {  // __builtin_cpu_supports knows it from g++ 11 on only
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has(Isa isa) {
  __builtin_cpu_init();  // this may run before constructors do
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512vnni: return avx512 && __builtin_cpu_supports("avx512vnni");
    default: return false;
  }
}
#elif defined(__aarch64__)
bool has_dot_product() {
#if defined(__ARM_FEATURE_DOTPROD)
  return true;
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
}

bool has(Isa isa) {
  switch (isa) {
    case Isa::portable:
    case Isa::neon: return true;  // every aarch64 has NEON
    case Isa::neondot: return has_dot_product();
    default: return false;
  }
}
#else
bool has(Isa isa) { return isa == Isa::portable; }
#endif

// What CATONNX_ISA asks for, or the best; `wrong` says why it is not the former.
Isa wished(std::string& wrong) {
  const std::vector<Isa> found = available();
  const char* wish = std::getenv("CATONNX_ISA");
  if (wish == nullptr || *wish == '\0') return found.back();
  std::string names;
  for (const Isa isa : found) {
    if (std::string(wish) == name(isa)) return isa;
    names += std::string(names.empty() ? "" : ", ") + name(isa);
  }
  wrong = std::string("CATONNX_ISA is '") + wish + "', and this processor has: " + names;
  return found.back();
}

std::atomic<Isa>& chosen() {
  std::string wrong;
  static std::atomic<Isa> isa{wished(wrong)};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512vnni: return "avx512vnni";
    case Isa::neon: return "neon";
    case Isa::neondot: return "neondot";
  }
  return "";
}

std::vector<Isa> available() {
  std::vector<Isa> found;
  for (const Isa isa : all) {
    if (has(isa)) found.push_back(isa);
  }
  return found;
}

Isa isa() { return chosen().load(std::memory_order_relaxed); }

std::string choose_isa() {
  std::string wrong;
  const Isa isa = wished(wrong);
  if (wrong.empty()) chosen() = isa;
  return wrong;
}

}  // namespace catonnx
