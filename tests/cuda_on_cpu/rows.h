// The operands of csrc/common/rows.h, from the cases of a test.
#pragma once

#include "../../csrc/common/rows.h"
#include "../../csrc/common/sample_sum.h"
#include "driver.h"

inline gmfast::RowShape row_shape(Cases& cases) {
  gmfast::RowShape shape;
  shape.batch = cases.integer();
  shape.rows = cases.integer();
  shape.inner = cases.integer();
  return shape;
}

inline gmfast::RowOperand row_operand(Cases& cases) {
  gmfast::RowOperand operand;
  char* data = cases.memory();
  if (!data) return operand;
  operand.dtype = gmfast::DType(cases.integer());
  operand.data = data + cases.integer();
  operand.batch_stride = cases.integer();
  operand.row_stride = cases.integer();
  operand.inner_stride = cases.integer();
  return operand;
}

inline gmfast::Channels channels(Cases& cases) {
  gmfast::Channels channels;
  channels.data = cases.memory();
  channels.dtype = gmfast::DType(cases.integer());
  channels.stride = 1;
  return channels;
}

// What a kernel needs besides, in memory of exactly its size.
class ScratchMemory {
 public:
  explicit ScratchMemory(int64_t bytes) : data_(std::malloc(bytes)) {}
  ScratchMemory(const ScratchMemory&) = delete;
  ~ScratchMemory() { std::free(data_); }

  operator void*() const { return data_; }
  operator double*() const { return static_cast<double*>(data_); }

 private:
  void* data_;
};
