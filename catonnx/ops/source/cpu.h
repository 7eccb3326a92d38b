// Which instruction sets this processor has, and which of them the kernels use.
#pragma once

#include <string>
#include <vector>

namespace catonnx {

enum class Isa { portable, avx2, avx512, avx512vnni, neon, neondot };

const char* name(Isa isa);

// What this processor has and this library has code for, the best one last.
std::vector<Isa> available();

// The instruction set in use: the best one, or what the environment variable CATONNX_ISA named when choose_isa()
// last ran (at first: when it is first asked for).
Isa isa();

// Reads CATONNX_ISA. Returns what is wrong with it; empty if nothing.
std::string choose_isa();

}  // namespace catonnx
