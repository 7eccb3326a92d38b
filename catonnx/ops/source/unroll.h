// A loop of constant length, unrolled in the source: arrays that it indexes stay in registers, whatever the optimizer thinks.
#pragma once

namespace catonnx {

template <int i>
struct Index {
    static constexpr int value = i;
};

template <int count, int i = 0, typename Body>
__attribute__((always_inline)) static inline void unroll(const Body& body) {
    if constexpr (i < count) {
        body(Index<i>{});
        unroll<count, i + 1>(body);
    }
}

}  // namespace catonnx
