#pragma once

namespace catonnx {

enum class Isa { portable, avx2, avx512, avx512vnni, neon };

Isa isa();

}  // namespace catonnx
