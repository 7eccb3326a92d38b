#include "cpu.h"

#include <cstdlib>
#include <cstring>

namespace catonnx {

Isa isa() {
    const char* asked = std::getenv("CATONNX_ISA");
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    if (asked && !std::strcmp(asked, "portable")) return Isa::portable;
    if (asked && !std::strcmp(asked, "avx2") && avx2) return Isa::avx2;
    if (asked && !std::strcmp(asked, "avx512") && avx512) return Isa::avx512;
    return vnni ? Isa::avx512vnni : avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::portable;
}

}  // namespace catonnx
