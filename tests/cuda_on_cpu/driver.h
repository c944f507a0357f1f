// A program that runs kernels on the cases of a file: `driver CASES RESULTS`. What a case consists
// of is up to the operation: it takes from the Cases, in order, what tests/cuda_on_cpu/emulator.py
// wrote. The contents of all memory blocks after the run become RESULTS.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "../../csrc/args/masked_conv2d.h"
#include "../../csrc/common/rows.h"
#include "../../csrc/common/tensor.h"

class Cases {
 public:
  explicit Cases(const char* path) : file_(path, std::ios::binary) {}
  ~Cases() {
    for (const Memory& memory : memories_) std::free(memory.data);
  }

  bool more() { return file_.peek() != EOF; }
  int64_t integer() { return number<int64_t>(); }
  double real() { return number<double>(); }

  // Memory of exactly the given size; null where the test gave None.
  char* memory() {
    const int64_t bytes = integer();
    if (bytes < 0) return nullptr;
    char* data = static_cast<char*>(std::malloc(bytes));
    file_.read(data, bytes);
    memories_.push_back({data, bytes});
    return data;
  }

  gmfast::Image image() {
    gmfast::Image image;
    image.data = memory();
    if (!image.data) return image;
    image.dtype = gmfast::DType(integer());
    image.data = static_cast<char*>(image.data) + integer();
    image.batch_stride = integer();
    image.channel_stride = integer();
    image.pixel_stride = integer();
    return image;
  }

  gmfast::Grid grid() {
    gmfast::Grid grid;
    grid.data = memory();
    if (!grid.data) return grid;
    grid.dtype = gmfast::DType(integer());
    grid.data = static_cast<char*>(grid.data) + integer();
    grid.batch_stride = integer();
    grid.channel_stride = integer();
    grid.row_stride = integer();
    grid.column_stride = integer();
    return grid;
  }

  gmfast::PairOperand operand() {
    gmfast::PairOperand operand;
    operand.data = memory();
    if (!operand.data) return operand;
    operand.dtype = gmfast::DType(integer());
    operand.data = static_cast<char*>(operand.data) + integer();
    operand.batch_stride = integer();
    operand.row_stride = integer();
    operand.half_stride = integer();
    return operand;
  }

  void write(const char* path) const {
    std::ofstream results(path, std::ios::binary);
    for (const Memory& memory : memories_) results.write(memory.data, memory.bytes);
  }

 private:
  struct Memory {
    char* data;
    int64_t bytes;
  };

  template <class T>
  T number() {
    T value;
    file_.read(reinterpret_cast<char*>(&value), sizeof(value));
    return value;
  }

  std::ifstream file_;
  std::vector<Memory> memories_;
};

// Takes one case and runs it.
void run_case(Cases& cases);

int main(int, char** arguments) {
  Cases cases(arguments[1]);
  for (int i = 0; cases.more(); ++i) {
    std::fprintf(stderr, "case %d\n", i);
    run_case(cases);
  }
  cases.write(arguments[2]);
}
