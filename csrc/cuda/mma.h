// Products of small matrices by a warp on tensor cores.
#pragma once

#include "launch.h"

namespace gmfast {

// Words that each lane of a warp shows to the others. All 32 construct, ask for the same word at
// the same time, each of a lane of its choice, and destroy.
template <int count>
class WarpWords {
 public:
#if defined(__CUDACC__)
  GMFAST_DEVICE explicit WarpWords(const uint32_t (&words)[count]) : words_(words) {}
  GMFAST_DEVICE uint32_t get(int lane, int word) const {
    return __shfl_sync(0xffffffffu, words_[word], lane);
  }

 private:
  const uint32_t (&words_)[count];
#else
  explicit WarpWords(const uint32_t (&words)[count]) : exchange_(words, sizeof(words)) {}
  uint32_t get(int lane, int word) const {
    return static_cast<const uint32_t*>(exchange_.from(lane))[word];
  }

 private:
  cuda_on_cpu::Exchange exchange_;
#endif
};

// c[i][j] += a[i] b[j] for tiles a of 16 rows by 16 and b of 16 by 8 columns of T, Half or
// BFloat16, accumulated in float. A lane holds, with row = lane / 4 and pair = lane % 4
// (mma.m16n8k16 of the PTX manual), two numbers in a word:
//   a  (row, k), (row + 8, k), (row, k + 8), (row + 8, k + 8)  for k = 2 pair, 2 pair + 1
//   b  (k, row), (k + 8, row)                                  for k = 2 pair, 2 pair + 1
//   c  (row, 2 pair), (row, 2 pair + 1), (row + 8, 2 pair), (row + 8, 2 pair + 1)
// All lanes must call.
template <class T, int rows, int columns>
GMFAST_DEVICE void warp_multiply(float (&c)[rows][columns][4], const uint32_t (&a)[rows][4],
                                 const uint32_t (&b)[columns][2]) {
  static_assert(std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value, "16 bits");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define GMFAST_MMA(type)                                                       \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                   \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"   \
      : "+f"(c[i][j][0]), "+f"(c[i][j][1]), "+f"(c[i][j][2]), "+f"(c[i][j][3]) \
      : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]))
  GMFAST_UNROLL
  for (int i = 0; i < rows; ++i) {
    GMFAST_UNROLL
    for (int j = 0; j < columns; ++j) {
      if constexpr (std::is_same<T, Half>::value) {
        GMFAST_MMA("f16");
      } else {
        GMFAST_MMA("bf16");
      }
    }
  }
#undef GMFAST_MMA
#else  // the same by shuffles: GPUs without that instruction, and the CPU
  constexpr int words = 4 * rows + 2 * columns;
  uint32_t mine[words];
  for (int i = 0; i < rows; ++i) {
    for (int r = 0; r < 4; ++r) mine[4 * i + r] = a[i][r];
  }
  for (int j = 0; j < columns; ++j) {
    for (int r = 0; r < 2; ++r) mine[4 * rows + 2 * j + r] = b[j][r];
  }
  const WarpWords<words> shown(mine);
  const int lane = thread_index() % warp_size, row = lane / 4, pair = lane % 4;
  for (int k = 0; k < 8; ++k) {  // pairs of the 16
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < columns; ++j) {
        for (int e = 0; e < 4; ++e) {
          const auto left =
              bit_cast<Pack<T, 2> >(shown.get(4 * row + k % 4, 4 * i + k / 4 * 2 + e / 2));
          const auto right = bit_cast<Pack<T, 2> >(
              shown.get(4 * (2 * pair + e % 2) + k % 4, 4 * rows + 2 * j + k / 4));
          for (int half = 0; half < 2; ++half) {
            c[i][j][e] += left.template get<float>(half) * right.template get<float>(half);
          }
        }
      }
    }
  }
#endif
}

}  // namespace gmfast
