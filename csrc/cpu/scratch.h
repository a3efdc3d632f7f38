#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cmlora::cpu {

// Memory that a thread keeps between calls; starts on a cache line, holds no value over a call.
template <typename T>
class Scratch {
 public:
  T* get(int64_t count) {
    if (count > capacity_) {
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<T*>(::operator new(size_t(count) * sizeof(T), kLine)));
      capacity_ = count;
    }
    return data_.get();
  }

  // Gives back what only an unusually large call needed.
  void trim() {
    constexpr int64_t kKeep = 32 << 20;
    if (capacity_ * int64_t(sizeof(T)) > kKeep) data_.reset(), capacity_ = 0;
  }

 private:
  static constexpr std::align_val_t kLine{64};

  struct Free {
    void operator()(T* data) const { ::operator delete(data, kLine); }
  };

  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace cmlora::cpu
