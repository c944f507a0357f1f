// Rows of noise (csrc/noise.h), and rows whose type and layout are known.
#pragma once

#include "../math/noise.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

template <class V>
__attribute__((noinline)) void draw_normal(Stream stream, uint64_t first, Scalar<V>* out,
                                           int64_t count) {
  fill_normal<V>(stream, first, out, count);
}

// A row of drawn numbers, made a part at a time.
template <class V>
class DrawnReader {
  static constexpr int64_t part = 512;

 public:
  DrawnReader(const Noise& noise, const RowShape& shape, RowPlace at)
      : stream_(stream_of(noise, at.sample)),
        inner_(shape.inner),
        first_(uint64_t(at.row) * uint64_t(shape.inner)) {}
  DrawnReader(const DrawnReader& other)  // without the numbers
      : stream_(other.stream_), inner_(other.inner_), first_(other.first_) {}

  // Vectors in their order.
  template <class Span>
  GMFAST_HD V load(int64_t i, Span span) const {
    if (i < drawn_ || i >= drawn_ + part) {
      draw_normal<V>(stream_, first_ + uint64_t(i), buffer_, inner_ - i < part ? inner_ - i : part);
      drawn_ = i;
    }
    return span.load(buffer_ + (i - drawn_));
  }

 private:
  Stream stream_;
  int64_t inner_;
  uint64_t first_;
  mutable int64_t drawn_ = -part;  // where the buffer starts
  mutable Scalar<V> buffer_[part];
};

// As RowReader and RowWriter, of elements of type T that follow each other: nothing is left to be
// asked at each vector.
template <class V, class T>
class DenseRow {
 public:
  DenseRow(const RowOperand& operand, RowPlace at)
      : row_(operand.data ? row_of<T>(operand, at) : nullptr) {}

  explicit operator bool() const { return row_; }
  template <class Span>
  GMFAST_HD V load(int64_t i, Span span) const {
    return span.load(row_ + i);
  }
  template <class Span>
  GMFAST_HD void store(int64_t i, Span span, V v) const {
    span.store(row_ + i, v);
  }

 private:
  T* row_;
};

// Calls body<Reader, Writer>() of the rows' types: DenseRow's where all operands with data are
// dense and of one type that is computed in S, else RowReader and RowWriter.
template <class V, class Reader, class Writer>
struct RowTypes {
  using In = Reader;
  using Out = Writer;
};

template <class V, class Body, class... Operands>
void with_rows(const Body& body, const RowOperand& first, const Operands&... others) {
  bool same = first.inner_stride == 1;
  for (const RowOperand* operand : {&first, &others...}) {
    same =
        same && (!operand->data || (operand->dtype == first.dtype && operand->inner_stride == 1));
  }
  bool done = false;
  if (same) {
    with_type(first.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if constexpr (std::is_same<Compute<T>, Scalar<V>>::value) {
        body(RowTypes<V, DenseRow<V, T>, DenseRow<V, T>>());
        done = true;
      }
    });
  }
  if (!done) body(RowTypes<V, RowReader<V>, RowWriter<V>>());
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
