// Loops over the pieces of rows, in parallel, and over the vectors of a piece.
#pragma once

#include "../common/parallel.h"
#include "../common/rows.h"
#include "../math/simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// One half of an operand along one row.
template <class T>
inline T* row_of(const PairOperand& operand, int64_t sample, int64_t row, int half) {
  return static_cast<T*>(operand.data) + sample * operand.batch_stride + row * operand.row_stride +
         half * operand.half_stride;
}

// Calls body(sample, row, first, count) for pieces of rows, in parallel.
template <class Body>
void for_each_piece(const RowShape& shape, const Body& body) {
  constexpr int64_t piece = 4096, grain = 16384;
  const int64_t pieces = (shape.inner + piece - 1) / piece;
  const int64_t length = shape.inner < piece ? shape.inner + 1 : piece;
  parallel_for(shape.batch * shape.rows * pieces, grain / length + 1,
               [&](int64_t begin, int64_t end) {
                 // Divisions cost as much as a short row.
                 int64_t row = begin / pieces, first = begin % pieces * piece;
                 int64_t sample = row / shape.rows;
                 row -= sample * shape.rows;
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t rest = shape.inner - first;
                   body(sample, row, first, rest < piece ? rest : piece);
                   first += piece;
                   if (first < shape.inner) continue;
                   first = 0;
                   if (++row == shape.rows) row = 0, ++sample;
                 }
               });
}

// Loads and stores of a whole vector, or of its first `count` lanes at the end of a row.
template <class V, bool whole>
struct Span {
  int count;

  template <class T>
  GMFAST_HD V load(const T* p) const {
    return whole ? gmfast::load<V>(p) : load_partial<V>(p, count);
  }
  template <class T>
  GMFAST_HD void store(T* p, V v) const {
    whole ? gmfast::store(p, v) : store_partial(p, v, count);
  }
  // 0 in the lanes beyond.
  GMFAST_HD V keep(V v) const {
    return whole ? v : select<V>(iota<V>() < splat<V>(Scalar<V>(count)), v, splat<V>(0));
  }
};

// Calls body(i, span) for the vectors of a piece.
template <class V, class Body>
GMFAST_HD void for_each_vector(int64_t first, int64_t count, const Body& body) {
  const int64_t end = first + count;
  int64_t i = first;
  for (; i + lanes<V> <= end; i += lanes<V>) body(i, Span<V, true>{lanes<V>});
  if (i < end) body(i, Span<V, false>{int(end - i)});
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
