// Rows of noise (common/noise.h), and rows whose type and layout are known at compile time.
#pragma once

#include "../common/noise.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

template <class V>
__attribute__((noinline)) void draw_normal(Stream stream, uint64_t first, Scalar<V>* out,
                                           int64_t count) {
  fill_normal<V>(stream, first, out, count);
}

// As many as a piece of for_each_piece has: of much fewer, each channel has but part of a tile.
constexpr int64_t walked_part = 4096;

// Numbers for elements of a walk that has a pixel's channels one after another; noise counts a
// channel's pixels.
template <class V>
__attribute__((noinline)) void draw_walked(Stream stream, int64_t channels, int64_t pixels,
                                           int64_t first, Scalar<V>* out, int64_t count) {
  alignas(64) Scalar<V> of_channel[walked_part];
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t pixel = (first - c + channels - 1) / channels;
    const int64_t end = (first + count - c + channels - 1) / channels;
    if (pixel >= end) continue;
    draw_normal<V>(stream, uint64_t(c * pixels + pixel), of_channel, end - pixel);
    Scalar<V>* to = out + (pixel * channels + c - first);
    for (int64_t p = 0; p < end - pixel; ++p) to[p * channels] = of_channel[p];
  }
}

// A row of drawn numbers, made a part at a time.
template <class V>
class DrawnReader {
 public:
  DrawnReader(const Noise& noise, const RowShape& shape, RowPlace at)
      : stream_(stream_of(noise, at.sample)),
        inner_(shape.inner),
        first_(at.row * shape.inner),
        channels_(noise.channels),
        pixels_(shape.rows * shape.inner / noise.channels),
        part_(noise.channels == 1 ? 512 : walked_part) {}
  DrawnReader(const DrawnReader& other)  // without the numbers
      : stream_(other.stream_),
        inner_(other.inner_),
        first_(other.first_),
        channels_(other.channels_),
        pixels_(other.pixels_),
        part_(other.part_) {}

  // Vectors in their order.
  template <class Span>
  GMFAST_HD V load(int64_t i, Span span) const {
    if (i < drawn_ || i >= drawn_ + part_) {
      const int64_t count = inner_ - i < part_ ? inner_ - i : part_;
      if (channels_ == 1) {
        draw_normal<V>(stream_, uint64_t(first_ + i), buffer_, count);
      } else {
        draw_walked<V>(stream_, channels_, pixels_, first_ + i, buffer_, count);
      }
      drawn_ = i;
    }
    return span.load(buffer_ + (i - drawn_));
  }

 private:
  Stream stream_;
  int64_t inner_, first_, channels_, pixels_, part_;
  mutable int64_t drawn_ = -walked_part;  // where the buffer starts
  mutable Scalar<V> buffer_[walked_part];
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
