// Loops and sums over rows (common/rows.h), by threads and vectors. Operands keep their dtype until
// a vector is loaded, so a kernel is compiled for the two types that are computed in, whatever its
// inputs.
//
// A kernel says what happens to one row by a function of the row's place that returns one of the
// row's vectors:
//
//   for_each_row<V>(shape, [&](RowPlace at) {
//     return [x = RowReader<V>(args.x, at), y = RowWriter<V>(args.y, at)](int64_t i, auto span) {
//       y.store(i, span, x.load(i, span));
//     };
//   });
//
// Rows may be short, so readers and writers are made where they stay, and hold no vectors: copies
// of them would cost as much as a row's work.
#pragma once

#include "../common/parallel.h"
#include "../common/rows.h"
#include "../math/simd.h"
#include "reduce.h"
#include "scratch.h"
#include "tile.h"
#include "vectors.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

struct RowPlace {
  int64_t sample, row;
};

template <class T>
inline T* row_of(const RowOperand& operand, RowPlace at) {
  return static_cast<T*>(operand.data) + at.sample * operand.batch_stride +
         at.row * operand.row_stride;
}

// A row's elements, in the type computed in. Without data they are 0.
template <class V>
class RowReader {
 public:
  RowReader(const RowOperand& operand, RowPlace at) : dtype_(operand.dtype) {
    constant_ = !operand.data || operand.inner_stride == 0;
    if (!operand.data) return;
    with_type(dtype_, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const T* row = row_of<T>(operand, at);
      row_ = row;
      if (constant_) value_ = gmfast::load<Scalar<V>>(row);
    });
  }

  bool constant() const { return constant_; }
  Scalar<V> value() const { return value_; }  // of a constant row

  template <class Span>
  GMFAST_HD V load(int64_t i, Span span) const {
    if (constant_) return splat<V>(value_);
    switch (dtype_) {
      case DType::bfloat16:
        return span.load(static_cast<const BFloat16*>(row_) + i);
      case DType::float16:
        return span.load(static_cast<const Half*>(row_) + i);
      case DType::float64:
        if constexpr (!is_single<V>) return span.load(static_cast<const double*>(row_) + i);
        [[fallthrough]];
      default:
        return span.load(static_cast<const float*>(row_) + i);
    }
  }

 private:
  const void* row_ = nullptr;
  Scalar<V> value_ = 0;
  DType dtype_;
  bool constant_;
};

// Where a row's results go; nowhere without data.
template <class V>
class RowWriter {
 public:
  RowWriter(const RowOperand& operand, RowPlace at) : dtype_(operand.dtype) {
    if (!operand.data) return;
    with_type(dtype_, [&](auto* type) {
      row_ = row_of<std::remove_pointer_t<decltype(type)>>(operand, at);
    });
  }

  explicit operator bool() const { return row_; }

  template <class Span>
  GMFAST_HD void store(int64_t i, Span span, V v) const {
    switch (dtype_) {
      case DType::bfloat16:
        return span.store(static_cast<BFloat16*>(row_) + i, v);
      case DType::float16:
        return span.store(static_cast<Half*>(row_) + i, v);
      case DType::float64:
        if constexpr (!is_single<V>) return span.store(static_cast<double*>(row_) + i, v);
        [[fallthrough]];
      default:
        return span.store(static_cast<float*>(row_) + i, v);
    }
  }

 private:
  void* row_ = nullptr;
  DType dtype_;
};

template <class S>
S read_channel(const Channels& channels, int64_t c) {
  S value = 0;
  with_type(channels.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    value = load<S>(static_cast<const T*>(channels.data) + c * channels.stride);
  });
  return value;
}

inline void write_channel(const Channels& channels, int64_t c, double value) {
  with_type(channels.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    store(static_cast<T*>(channels.data) + c * channels.stride, value);
  });
}

// ---------------------------------------------------------------------------------------------
// Elementwise
// ---------------------------------------------------------------------------------------------

template <class V, class Row>
void for_each_row(const RowShape& shape, const Row& row) {
  // A copy: no store of a row can change it.
  const RowShape pieces{shape.batch, shape.rows, shape.inner};
  for_each_piece(pieces, [&](int64_t sample, int64_t index, int64_t first, int64_t count) {
    for_each_vector<V>(first, count, row(RowPlace{sample, index}));
  });
}

// ---------------------------------------------------------------------------------------------
// Sums. What is added in one go depends on sizes alone. Groups of vectors are added in double.
// ---------------------------------------------------------------------------------------------

// Half of a vector of floats as doubles. Named, because compilers split the conversion.
template <int upper, class V>
GMFAST_HD Native<double> widen(V v) {
#if GMFAST_X86 && defined(__AVX512DQ__)
  if constexpr (sizeof(V) == 64) return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, upper));
#endif
#if GMFAST_X86 && defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_cvtps_pd(_mm256_extractf128_ps(v, upper));
#endif
  return convert<Native<double>>(take<upper * lanes<V> / 2>(v, HalfLanes<V>{}));
}

// A vector's sum in double lanes. Doubles are added with what rounding loses, as few lanes have
// long sums.
template <class V>
class DoubleSum {
  using D = Native<double>;
  static constexpr int parts = lanes<V> / lanes<D>;

 public:
  GMFAST_HD void add(V v) {
    if constexpr (parts == 1) {
      const D before = sums_[0], after = before + v, added = after - before;
      sums_[1] += (before - (after - added)) + (v - added);
      sums_[0] = after;
    } else {
      sums_[0] += widen<0>(v);
      sums_[1] += widen<1>(v);
    }
  }
  double total() const {
    if constexpr (parts > 1) return reduce_add(sums_[0] + sums_[1]);
    // What was lost by an infinite sum is NaN.
    return reduce_add(sums_[0] + select<D>(sums_[1] == sums_[1], sums_[1], splat<D>(0)));
  }

 private:
  D sums_[2] = {};
};

// Calls values(i, span, terms) for the vectors of a piece and adds the terms to `sums`: a few
// vectors at a time, as that to make doubles of one takes longer than to compute it.
template <class V, int count, class Values>
GMFAST_HD void add_vectors(int64_t first, int64_t length, DoubleSum<V> (&sums)[count],
                           const Values& values) {
  constexpr int64_t group = 8 * lanes<V>;
  const int64_t end = first + length;
  for (int64_t start = first; start < end; start += group) {
    V local[count];
    for (int q = 0; q < count; ++q) local[q] = splat<V>(0);
    for_each_vector<V>(start, end - start < group ? end - start : group, [&](int64_t i, auto span) {
      V terms[count];
      values(i, span, terms);
      GMFAST_UNROLL
      for (int q = 0; q < count; ++q) local[q] += span.keep(terms[q]);
    });
    for (int q = 0; q < count; ++q) sums[q].add(local[q]);
  }
}

// Adds a vector to as many doubles in memory.
template <class V, bool whole>
GMFAST_HD void add_to(double* sums, V v, Span<V, whole> span) {
  using D = Native<double>;
  constexpr int half = lanes<D>;
  if constexpr (lanes<V> == half) {
    span.store(sums, span.load(sums) + v);
  } else if constexpr (whole) {
    store(sums, load<D>(sums) + widen<0>(v));
    store(sums + half, load<D>(sums + half) + widen<1>(v));
  } else {
    const int low = span.count < half ? span.count : half, high = span.count - low;
    store_partial(sums, load_partial<D>(sums, low) + widen<0>(v), low);
    if (high) {
      sums += half;
      store_partial(sums, load_partial<D>(sums, high) + widen<1>(v), high);
    }
  }
}

// As for_each_row, where the row's function fills `count` vectors to be added over each sample:
// row(at)(i, span, terms), terms a V[count]. write(sample, sums) takes a sample's.
template <class V, int count, class Row, class Write>
void sum_samples(const RowShape& shape, const Row& row, const Write& write) {
  constexpr int64_t piece = 4096;
  const int64_t rows_of_piece = shape.inner > 0 && shape.inner < piece ? piece / shape.inner : 1;
  const int64_t row_groups = (shape.rows + rows_of_piece - 1) / rows_of_piece;
  const int64_t inner_pieces = (shape.inner + piece - 1) / piece;
  const int64_t pieces = row_groups * inner_pieces;
  Scratch<double> partial(count * shape.batch * pieces);
  const int64_t work = rows_of_piece * shape.inner < piece ? rows_of_piece * shape.inner : piece;
  parallel_for(shape.batch * pieces, 16384 / (work + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const bool several = pieces > 1;
      const int64_t sample = several ? index / pieces : index;
      const int64_t part = several ? index % pieces : 0;
      const int64_t group = several ? part / inner_pieces : 0;
      const int64_t first = several ? index % inner_pieces * piece : 0, rest = shape.inner - first;
      const int64_t first_row = group * rows_of_piece, rows_left = shape.rows - first_row;
      DoubleSum<V> sums[count];
      for (int64_t r = 0; r < (rows_left < rows_of_piece ? rows_left : rows_of_piece); ++r) {
        const auto values = row(RowPlace{sample, first_row + r});
        add_vectors(first, rest < piece ? rest : piece, sums, values);
      }
      double totals[count];
      for (int q = 0; q < count; ++q) totals[q] = sums[q].total();
      if (pieces == 1) {
        write(sample, totals);
      } else {
        for (int q = 0; q < count; ++q) {
          partial.get()[(sample * count + q) * pieces + part] = totals[q];
        }
      }
    }
  });
  for (int64_t sample = 0; pieces != 1 && sample < shape.batch; ++sample) {
    double totals[count];
    for (int q = 0; q < count; ++q) {
      totals[q] = sum(partial.get() + (sample * count + q) * pieces, pieces);
    }
    write(sample, totals);
  }
}

// As for_each_row, where the row's function returns the vector to be added as well. totals[b]
// becomes scale times the sum over sample b, plus `offset`.
template <class V, class S, class Row>
void sum_samples(const RowShape& shape, double scale, double offset, S* totals, const Row& row) {
  const auto rows = [&](RowPlace at) {
    return [values = row(at)](int64_t i, auto span, V(&terms)[1]) { terms[0] = values(i, span); };
  };
  sum_samples<V, 1>(shape, rows, [&](int64_t sample, const double (&sums)[1]) {
    totals[sample] = S(offset + scale * sums[0]);
  });
}

// As for_each_row, where the row's function fills `count` vectors to be added for each channel:
// row(at)(i, span, sums), sums a V[count]. totals[q * channels + c] becomes the sum of the q-th
// over channel c, which is the row, or with `channels_inner` the place in it.
template <class V, int count, class Row>
void sum_channels(const RowShape& shape, bool channels_inner, double* totals, const Row& row) {
  for (int64_t i = 0; i < count * (channels_inner ? shape.inner : shape.rows); ++i) totals[i] = 0;
  const auto add_up = [&](int64_t channels, int64_t units, const Scratch<double>& partial) {
    const double* from = partial.get();
    for (int64_t unit = 0; unit < units; ++unit) {
      for (int64_t i = 0; i < count * channels; ++i) totals[i] += *from++;
    }
  };

  if (!channels_inner) {
    // A unit is a piece of some channels in some samples, walked as it lies in memory.
    constexpr int64_t piece = 4096, of_block = 32;
    const int64_t channels = shape.rows, block = channels < of_block ? channels : of_block;
    const int64_t work = block * shape.inner, samples = work > 0 && work < 16384 ? 16384 / work : 1;
    const int64_t groups = (shape.batch + samples - 1) / samples;
    const int64_t blocks = channels ? (channels + block - 1) / block : 0;
    const int64_t pieces = (shape.inner + piece - 1) / piece;
    Scratch<double> partial(groups * pieces * count * channels);
    parallel_for(groups * blocks * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t group = index / (blocks * pieces), part = index % pieces;
        const int64_t first = part * piece, rest = shape.inner - first;
        const int64_t first_channel = index / pieces % blocks * block;
        const int64_t left = channels - first_channel, of_unit = left < block ? left : block;
        const int64_t last = (group + 1) * samples;
        DoubleSum<V> sums[of_block][count];
        for (int64_t b = group * samples; b < (last < shape.batch ? last : shape.batch); ++b) {
          for (int64_t c = 0; c < of_unit; ++c) {
            const auto values = row(RowPlace{b, first_channel + c});
            DoubleSum<V> local[count];
            for (int q = 0; q < count; ++q) local[q] = sums[c][q];
            add_vectors(first, rest < piece ? rest : piece, local, values);
            for (int q = 0; q < count; ++q) sums[c][q] = local[q];
          }
        }
        double* to = partial.get() + (group * pieces + part) * count * channels + first_channel;
        for (int q = 0; q < count; ++q) {
          for (int64_t c = 0; c < of_unit; ++c) to[q * channels + c] = sums[c][q].total();
        }
      }
    });
    add_up(channels, groups * pieces, partial);
    return;
  }

  // Rows of channels: at most 64 units, so that their sums are small beside the data.
  const int64_t channels = shape.inner, rows = shape.batch * shape.rows;
  const int64_t by_size = 8192 / (channels + 1) + 1, by_count = (rows + 63) / 64;
  const int64_t rows_of_unit = by_size > by_count ? by_size : by_count;
  const int64_t units = (rows + rows_of_unit - 1) / rows_of_unit;
  Scratch<double> partial(units * count * channels);
  parallel_for(units, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      double* to = partial.get() + unit * count * channels;
      for (int64_t i = 0; i < count * channels; ++i) to[i] = 0;
      const int64_t last = (unit + 1) * rows_of_unit < rows ? (unit + 1) * rows_of_unit : rows;
      RowPlace at{unit * rows_of_unit / shape.rows, unit * rows_of_unit % shape.rows};
      for (int64_t r = unit * rows_of_unit; r < last; ++r) {
        const auto values = row(at);
        if (++at.row == shape.rows) at.row = 0, ++at.sample;
        for_each_vector<V>(0, channels, [&](int64_t i, auto span) {
          V terms[count];
          values(i, span, terms);
          GMFAST_UNROLL
          for (int q = 0; q < count; ++q) add_to(to + q * channels + i, terms[q], span);
        });
      }
    }
  });
  add_up(channels, units, partial);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
