// Memory of one thread that stays from node to node: decoding asks at each, for what no allocator keeps in the caches.
#pragma once

#include <cstdint>
#include <memory>

namespace catonnx {

// Memory of one thread, aligned to 64.
class Kept {
 public:
  uint8_t* of(int64_t bytes);

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  std::unique_ptr<void, Free> memory_;
  int64_t size_ = 0;
};

// The same, one at a time in a thread. A little stays for the next one; much is given back at the end.
class Lent {
 public:
  explicit Lent(int64_t bytes);
  ~Lent();
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
  void* own_ = nullptr;  // what does not stay
};

}  // namespace catonnx
