#include "../args/affine_coupling.h"

#include <cstring>

#include "../common/parallel.h"
#include "../math/affine_coupling.h"
#include "reduce.h"
#include "scratch.h"
#include "tile.h"
#include "vectors.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// What is computed at once: its operands, where they must be gathered or converted, fit into the L1
// cache.
constexpr int piece_elements = 512;
// A sample's elements whose logarithms are summed by one task, whatever the threads.
constexpr int64_t segment_elements = 8192;
// Shorter samples are computed several at once.
constexpr int64_t short_sample = 64;
// Whether the end of a row, which fills no vector, costs no more than a vector.
constexpr bool masked_tails = native_bytes == 64;

// `count` elements of a sample from element `first` of row `row` on, into the rows behind; or, by
// rows, as many of each of `rows` rows, which are whole where there are several.
struct Piece {
  int64_t sample, row, first;
  int rows, count;

  int elements() const { return rows * count; }
};

// Where the rows of a piece lie, in the compute type.
template <class S>
struct Rows {
  S* data;
  int64_t stride;
};

template <class S>
constexpr DType dtype_of = std::is_same<S, double>::value ? DType::float64 : DType::float32;

// Calls body(element of the operand, stride, done, count) for the runs of one stride of a piece.
template <class T, class Body>
void for_each_stretch(const RowOperand& operand, int64_t inner, const Piece& piece,
                      const Body& body) {
  T* row = static_cast<T*>(operand.data) + piece.sample * operand.batch_stride +
           piece.row * operand.row_stride;
  if (inner == 1) return body(row, operand.row_stride, 0, piece.elements());
  int64_t first = piece.first;
  const int elements = piece.elements();
  for (int done = 0; done < elements; first = 0, row += operand.row_stride) {
    const int64_t rest = inner - first;
    const int count = rest < elements - done ? int(rest) : elements - done;
    body(row + first * operand.inner_stride, operand.inner_stride, done, count);
    done += count;
  }
}

// Of `count` elements, calls body(i) for vectors from i on that cover them, the last one
// overlapping its neighbour. False where they fill none.
template <class V, class Body>
GMFAST_HD bool for_each_overlapping(int count, const Body& body) {
  if (count < lanes<V>) return false;
  for (int i = 0; i + lanes<V> <= count; i += lanes<V>) body(i);
  if (count % lanes<V>) body(count - lanes<V>);
  return true;
}

// Lanes First, First + 2, ... of the two in a row.
template <int First, class V, int... I>
GMFAST_HD V every_other(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (First + 2 * I)...);
}
// Lanes First, First + 1, ... of the two, taken in turns.
template <int First, class V, int... I>
GMFAST_HD V in_turns(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (First + I / 2 + (I % 2) * lanes<V>)...);
}
template <class V>
using EachLane = std::make_integer_sequence<int, lanes<V>>;

// May write up to a vector behind.
template <class T, class S>
void gather(const T* from, int64_t stride, int count, S* to) {
  using V = Native<S>;
  int i = 0;
  if (stride == 1) {
    if (for_each_overlapping<V>(count, [&](int j) { store(to + j, load<V>(from + j)); })) return;
    if constexpr (masked_tails && std::is_same<T, S>::value) {
      return store(to, load_partial<V>(from, count));
    }
  } else if (stride == 2) {
    // The element behind the last one is read, so there must be one.
    for (; i + lanes<V> < count; i += lanes<V>) {
      const V a = load<V>(from + 2 * i), b = load<V>(from + 2 * i + lanes<V>);
      store(to + i, every_other<0>(a, b, EachLane<V>{}));
    }
  }
  for (; i < count; ++i) to[i] = load<S>(from + i * stride);
}

template <class T, class S>
void scatter(const S* from, int64_t stride, int count, T* to) {
  using V = Native<S>;
  if (stride == 1) {
    if (for_each_overlapping<V>(count, [&](int i) { store(to + i, load<V>(from + i)); })) return;
    if constexpr (masked_tails && std::is_same<T, S>::value) {
      return store_partial(to, load_partial<V>(from, count), count);
    }
  }
  for (int i = 0; i < count; ++i) store(to + i * stride, from[i]);
}

// `count` pairs that lie behind each other.
template <class T, class S>
void gather_pairs(const T* from, int count, S* to_first, S* to_second) {
  using V = Native<S>;
  constexpr EachLane<V> each{};
  const bool done = for_each_overlapping<V>(count, [&](int i) {
    const V a = load<V>(from + 2 * i), b = load<V>(from + 2 * i + lanes<V>);
    store(to_first + i, every_other<0>(a, b, each));
    store(to_second + i, every_other<1>(a, b, each));
  });
  for (int i = 0; !done && i < count; ++i) {
    to_first[i] = load<S>(from + 2 * i);
    to_second[i] = load<S>(from + 2 * i + 1);
  }
}

template <class T, class S>
void scatter_pairs(const S* from_first, const S* from_second, int count, T* to) {
  using V = Native<S>;
  constexpr EachLane<V> each{};
  const bool done = for_each_overlapping<V>(count, [&](int i) {
    const V a = load<V>(from_first + i), b = load<V>(from_second + i);
    store(to + 2 * i, in_turns<0>(a, b, each));
    store(to + 2 * i + lanes<V>, in_turns<lanes<V> / 2>(a, b, each));
  });
  for (int i = 0; !done && i < count; ++i) {
    store(to + 2 * i, from_first[i]);
    store(to + 2 * i + 1, from_second[i]);
  }
}

// Whether elements of the two lie in turns.
bool are_pairs(const RowOperand& first, const RowOperand& second, int64_t inner) {
  const int64_t stride = inner == 1 ? first.row_stride : first.inner_stride;
  if (!first.data || !second.data || stride != 2) return false;
  bool next = false;
  with_type(first.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    next = static_cast<T*>(first.data) + 1 == second.data;
  });
  return next && second.dtype == first.dtype && second.inner_stride == first.inner_stride &&
         second.row_stride == first.row_stride && second.batch_stride == first.batch_stride;
}

// Where a piece lies as it is to be computed on; no data if it does not.
template <class S>
Rows<S> in_place(const RowOperand& operand, int64_t inner, const Piece& piece) {
  const bool within = piece.first + piece.count <= inner || operand.row_stride == inner;
  const bool one_run = within && (operand.inner_stride == 1 || inner == 1);
  if (!operand.data || operand.dtype != dtype_of<S> || !one_run) return {nullptr, 0};
  return {static_cast<S*>(operand.data) + piece.sample * operand.batch_stride +
              piece.row * operand.row_stride + piece.first,
          operand.row_stride};
}

// The piece's values, in `buffer` if need be; those of an absent operand are 0.
template <class S>
Rows<const S> read(const RowOperand& operand, int64_t inner, const Piece& piece, S* buffer) {
  const Rows<S> values = in_place<S>(operand, inner, piece);
  if (values.data) return {values.data, values.stride};
  if (!operand.data) {
    std::memset(buffer, 0, piece.elements() * sizeof(S));
  } else {
    with_type(operand.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      for_each_stretch<const T>(operand, inner, piece,
                                [&](const T* from, int64_t stride, int done, int count) {
                                  gather(from, stride, count, buffer + done);
                                });
    });
  }
  return {buffer, piece.count};
}

template <class S>
void read_pairs(const RowOperand& operand, int64_t inner, const Piece& piece, S* first, S* second) {
  with_type(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_stretch<const T>(operand, inner, piece,
                              [&](const T* from, int64_t, int done, int count) {
                                gather_pairs(from, count, first + done, second + done);
                              });
  });
}

// Where to put the piece's values: write() then brings them home.
template <class S>
Rows<S> place_for(const RowOperand& operand, int64_t inner, const Piece& piece, S* buffer) {
  const Rows<S> values = in_place<S>(operand, inner, piece);
  return values.data ? values : Rows<S>{buffer, piece.count};
}

template <class S>
void write(const RowOperand& operand, int64_t inner, const Piece& piece, const Rows<S>& values,
           const S* buffer) {
  if (values.data != buffer || !operand.data) return;
  with_type(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_stretch<T>(operand, inner, piece, [&](T* to, int64_t stride, int done, int count) {
      scatter(buffer + done, stride, count, to);
    });
  });
}

template <class S>
void write_pairs(const RowOperand& operand, int64_t inner, const Piece& piece, const S* first,
                 const S* second) {
  with_type(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_stretch<T>(operand, inner, piece, [&](T* to, int64_t, int done, int count) {
      scatter_pairs(first + done, second + done, count, to);
    });
  });
}

// Rows may be a few elements long: what a call of memcpy costs would count.
inline void copy_bytes(char* to, const char* from, int64_t bytes) {
  const auto chunks = [&](auto constant) {
    constexpr int64_t size = decltype(constant)::value;
    if (bytes < size) return false;
    for (int64_t i = 0; i + size <= bytes; i += size) __builtin_memcpy(to + i, from + i, size);
    if (bytes % size) __builtin_memcpy(to + bytes - size, from + bytes - size, size);
    return true;
  };
  if (bytes > 1024) {
    std::memcpy(to, from, bytes);
  } else if (!chunks(std::integral_constant<int64_t, native_bytes>{}) &&
             !chunks(std::integral_constant<int64_t, 16>{}) &&
             !chunks(std::integral_constant<int64_t, 4>{})) {
    for (int64_t i = 0; i < bytes; ++i) to[i] = from[i];
  }
}

// Elements [begin, end) of a sample's (rows, inner), copied; 0 from an absent operand.
void copy_elements(const RowOperand& from, const RowOperand& to, int64_t inner, int64_t sample,
                   int64_t begin, int64_t end) {
  with_type(to.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (inner == 1 && from.data) {
      T* target = static_cast<T*>(to.data) + sample * to.batch_stride;
      const T* source = static_cast<const T*>(from.data) + sample * from.batch_stride;
      for (int64_t i = begin; i < end; ++i) target[i * to.row_stride] = source[i * from.row_stride];
      return;
    }
    int64_t row = begin < end ? begin / inner : 0, first = begin - row * inner;
    for (int64_t i = begin; i < end; ++row, first = 0) {
      const int64_t count = inner - first < end - i ? inner - first : end - i;
      T* target = static_cast<T*>(to.data) + sample * to.batch_stride + row * to.row_stride +
                  first * to.inner_stride;
      const T* source = static_cast<const T*>(from.data) + sample * from.batch_stride +
                        row * from.row_stride + first * from.inner_stride;
      if (!from.data) {
        for (int64_t j = 0; j < count; ++j) target[j * to.inner_stride] = T{};
      } else if (from.inner_stride == 1 && to.inner_stride == 1) {
        copy_bytes(reinterpret_cast<char*>(target), reinterpret_cast<const char*>(source),
                   count * int64_t(sizeof(T)));
      } else {
        for (int64_t j = 0; j < count; ++j)
          target[j * to.inner_stride] = source[j * from.inner_stride];
      }
      i += count;
    }
  });
}

// A sum in double of numbers of any V. Of floats, whose conversion costs as much as an exponential,
// a few are added before.
template <class V>
class DoubleSum {
 public:
  static constexpr int few = 8;

  GMFAST_HD void add(V v) {
    if constexpr (is_single<V>) {
      part_ += v;
      if (++count_ == few) flush();
    } else {
      total_ += v;
    }
  }

  GMFAST_HD double result() {
    flush();
    return reduce_add(total_);
  }

 private:
  GMFAST_HD void flush() {
    if constexpr (is_single<V>) {
      total_ += convert<Native<double>>(take<0>(part_, HalfLanes<V>{})) +
                convert<Native<double>>(take<lanes<V> / 2>(part_, HalfLanes<V>{}));
      part_ = splat<V>(0);
      count_ = 0;
    }
  }

  Native<double> total_ = splat<Native<double>>(0);
  V part_ = splat<V>(0);
  int count_ = 0;
};

// The operands of a piece in the compute type. `mask` may be absent, as may what is not wanted.
template <class S>
struct Values {
  Rows<const S> x, shift, scale, mask;
  Rows<S> y, log_s;                    // forward; log_s of every element, or absent
  Rows<const S> grad_y, grad_log_det;  // backward; of every element, or absent: grad_of_sample
  S grad_of_sample;
  Rows<S> grad_x, grad_shift, grad_scale;
};

template <ScaleMap map, class V>
GMFAST_HD CouplingScale<V> scale_of(V a, V mask, bool masked, const Coupling<V>& c) {
  CouplingScale<V> scale = coupling_scale<map>(a, c);
  if (masked) {
    const auto passes = mask != splat<V>(0);
    scale.log_s = select<V>(passes, splat<V>(0), scale.log_s);
    scale.factor = select<V>(passes, splat<V>(1), scale.factor);
    scale.slope = select<V>(passes, splat<V>(0), scale.slope);
  }
  return scale;
}

// The sum of log s.
template <ScaleMap map, class V>
double forward(const Values<Scalar<V>>& p, int rows, int count, const Coupling<V>& c) {
  DoubleSum<V> sum;
  const bool masked = p.mask.data;
  for (int row = 0; row < rows; ++row) {
    const auto at = [&](const auto& operand) { return operand.data + row * operand.stride; };
    for_each_vector<V>(0, count, [&](int64_t i, auto span) {
      V a = splat<V>(0), mask = a;
      if constexpr (map != ScaleMap::none) a = span.load(at(p.scale) + i);
      V shift = span.load(at(p.shift) + i);
      if (masked) {
        mask = span.load(at(p.mask) + i);
        shift = select<V>(mask != splat<V>(0), splat<V>(0), shift);
      }
      CouplingScale<V> scale = scale_of<map>(a, mask, masked, c);
      span.store(at(p.y) + i, coupling(span.load(at(p.x) + i), shift, scale, c));
      if (p.log_s.data) {
        span.store(at(p.log_s) + i, scale.log_s);
      } else if constexpr (map != ScaleMap::none) {
        if (span.count < lanes<V>) {
          const auto inside = iota<V>() < splat<V>(Scalar<V>(span.count));
          scale.log_s = select<V>(inside, scale.log_s, splat<V>(0));
        }
        sum.add(scale.log_s);
      }
    });
  }
  return sum.result();
}

template <ScaleMap map, class V>
double backward(const Values<Scalar<V>>& p, int rows, int count, const Coupling<V>& c,
                bool from_output) {
  const bool masked = p.mask.data;
  for (int row = 0; row < rows; ++row) {
    const auto at = [&](const auto& operand) { return operand.data + row * operand.stride; };
    for_each_vector<V>(0, count, [&](int64_t i, auto span) {
      V a = splat<V>(0), mask = a;
      if constexpr (map != ScaleMap::none) a = span.load(at(p.scale) + i);
      V shift = span.load(at(p.shift) + i);
      if (masked) {
        mask = span.load(at(p.mask) + i);
        shift = select<V>(mask != splat<V>(0), splat<V>(0), shift);
      }
      const CouplingScale<V> scale = scale_of<map>(a, mask, masked, c);
      const V grad_log_det =
          p.grad_log_det.data ? span.load(at(p.grad_log_det) + i) : splat<V>(p.grad_of_sample);
      V grad_x, grad_shift, grad_scale;
      coupling_backward(span.load(at(p.grad_y) + i), grad_log_det, span.load(at(p.x) + i),
                        from_output, shift, scale, c, grad_x, grad_shift, grad_scale);
      if (masked) grad_shift = select<V>(mask != splat<V>(0), splat<V>(0), grad_shift);
      if (p.grad_x.data) span.store(at(p.grad_x) + i, grad_x);
      if (p.grad_shift.data) span.store(at(p.grad_shift) + i, grad_shift);
      if (p.grad_scale.data) span.store(at(p.grad_scale) + i, grad_scale);
    });
  }
  return 0;
}

template <class V>
double run_piece(ScaleMap map, bool backwards, const Values<Scalar<V>>& p, int rows, int count,
                 const Coupling<V>& c, bool from_output) {
  const auto run = [&](auto constant) {
    constexpr ScaleMap m = decltype(constant)::value;
    return backwards ? backward<m>(p, rows, count, c, from_output) : forward<m>(p, rows, count, c);
  };
  switch (map) {
    case ScaleMap::exp:
      return run(std::integral_constant<ScaleMap, ScaleMap::exp>{});
    case ScaleMap::sigmoid:
      return run(std::integral_constant<ScaleMap, ScaleMap::sigmoid>{});
    case ScaleMap::tanh:
      return run(std::integral_constant<ScaleMap, ScaleMap::tanh>{});
    case ScaleMap::atan:
      return run(std::integral_constant<ScaleMap, ScaleMap::atan>{});
    case ScaleMap::softclip:
      return run(std::integral_constant<ScaleMap, ScaleMap::softclip>{});
    default:
      return run(std::integral_constant<ScaleMap, ScaleMap::none>{});
  }
}

template <class S>
S grad_log_det_of(const AffineCoupling& args, int64_t sample) {
  if (!args.grad_log_det) return 0;
  const int64_t i = sample * args.grad_log_det_stride;
  return args.grad_log_det_dtype == DType::float64
             ? S(static_cast<const double*>(args.grad_log_det)[i])
             : S(static_cast<const float*>(args.grad_log_det)[i]);
}

template <class S>
class Kernel {
  using V = Native<S>;

 public:
  Kernel(const AffineCoupling& args, bool backwards)
      : args_(args), c_(args.inverse, args.shift_first, args.clamp), backwards_(backwards) {}

  void run() {
    const bool short_samples = args_.rows == 1 && args_.inner < short_sample && args_.inner > 0;
    if (short_samples) samples_as_rows();
    read_pairs_ = are_pairs(args_.shift, args_.scale, args_.inner);
    write_pairs_ = are_pairs(args_.grad_shift, args_.grad_scale, args_.inner);
    if (short_samples) {
      run_short_samples();
    } else {
      run_long_samples();
    }
  }

 private:
  struct Buffers {
    static constexpr int size = piece_elements + lanes<V>;  // what gather() may write
    alignas(64) S x[size], shift[size], scale[size], mask[size], grad_y[size], log_det[size];
    alignas(64) S out[3][size];
  };

  // Computes a piece; the sum of log s, or log s of every element into `log_s`.
  double compute(const Piece& piece, Buffers& b, S* log_s, const S* grad_log_det) {
    const int64_t inner = args_.inner;
    Values<S> p{};
    p.x = read(args_.x, inner, piece, b.x);
    if (read_pairs_) {
      read_pairs(args_.shift, inner, piece, b.shift, b.scale);
      p.shift = {b.shift, piece.count};
      p.scale = {b.scale, piece.count};
    } else {
      p.shift = read(args_.shift, inner, piece, b.shift);
      if (args_.scale.data) p.scale = read(args_.scale, inner, piece, b.scale);
    }
    if (args_.mask.data) p.mask = read(args_.mask, inner, piece, b.mask);
    if (!backwards_) {
      p.y = place_for(args_.y, inner, piece, b.out[0]);
      p.log_s = {log_s, piece.count};
      const double sum = run_piece<V>(args_.map, false, p, piece.rows, piece.count, c_, false);
      write(args_.y, inner, piece, p.y, b.out[0]);
      return sum;
    }
    p.grad_y = read(args_.grad_y, inner, piece, b.grad_y);
    p.grad_log_det = {grad_log_det, piece.count};
    if (!grad_log_det) p.grad_of_sample = grad_log_det_of<S>(args_, piece.sample);
    const RowOperand* outputs[] = {&args_.grad_x, &args_.grad_shift, &args_.grad_scale};
    Rows<S>* places[] = {&p.grad_x, &p.grad_shift, &p.grad_scale};
    for (int o = 0; o < 3; ++o) {
      if (!outputs[o]->data) continue;
      // Pairs are put together from the buffers, even one that could be written where it lies.
      *places[o] = write_pairs_ && o > 0 ? Rows<S>{b.out[o], piece.count}
                                         : place_for(*outputs[o], inner, piece, b.out[o]);
    }
    run_piece<V>(args_.map, true, p, piece.rows, piece.count, c_, args_.from_output);
    if (write_pairs_) write_pairs(args_.grad_shift, inner, piece, b.out[1], b.out[2]);
    for (int o = 0; o < (write_pairs_ ? 1 : 3); ++o) {
      write(*outputs[o], inner, piece, *places[o], b.out[o]);
    }
    return 0;
  }

  // Whether to compute row by row, each with an end of its own; else rows are brought together,
  // which costs a copy.
  static bool by_rows(int64_t inner) {
    return inner >= 8 * lanes<V> || inner % lanes<V> == 0 ||
           (masked_tails && inner >= lanes<V> / 2);
  }

  double sign() const { return args_.inverse && args_.map != ScaleMap::none ? -1.0 : 1.0; }
  const RowOperand& kept_from() const { return backwards_ ? args_.kept_grad_y : args_.kept_x; }
  const RowOperand& kept_to() const { return backwards_ ? args_.kept_grad_x : args_.kept_y; }

  // A task is a segment of a sample, whatever the batch, and its share of what is copied.
  void run_long_samples() {
    const int64_t elements = args_.rows * args_.inner, kept = args_.kept_rows * args_.kept_inner;
    const int64_t longest = elements > kept ? elements : kept;
    const int64_t segments = longest > 0 ? (longest + segment_elements - 1) / segment_elements : 1;
    const int64_t inner = args_.inner;
    const bool rows_apart = by_rows(inner);
    // Rows that fit into a piece are not cut, and what is copied of such a row comes with it.
    const bool whole_rows = rows_apart && args_.rows > 1 && inner > 0 && inner <= piece_elements;
    const int64_t unit = whole_rows ? inner : 1;
    const bool copy_rows = kept_to().data && whole_rows && args_.kept_rows == args_.rows &&
                           args_.kept_inner <= segment_elements;
    const Scratch<double> sums(args_.batch * segments);
    parallel_for(args_.batch * segments, 1 + 16384 / (longest / segments + 1),
                 [&](int64_t begin, int64_t end) {
                   Buffers buffers;
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t sample = task / segments, segment = task % segments;
                     const auto part = [&](int64_t total, int64_t size, int64_t s) {
                       return s == segments ? total : total / size / segments * s * size;
                     };
                     const auto copy = [&](int64_t begin, int64_t end) {
                       copy_elements(kept_from(), kept_to(), args_.kept_inner, sample, begin, end);
                     };
                     if (kept_to().data && !copy_rows) {
                       copy(part(kept, 1, segment), part(kept, 1, segment + 1));
                     }
                     double sum = 0;
                     int64_t i = part(elements, unit, segment);
                     const int64_t last = part(elements, unit, segment + 1);
                     while (i < last) {
                       Piece piece{sample, i / inner, i % inner, 1, 0};
                       const int64_t rest = last - i < piece_elements ? last - i : piece_elements;
                       piece.count = int(rest);
                       if (rows_apart && rest > inner - piece.first) {
                         piece.count = int(inner - piece.first);
                         if (piece.first == 0) piece.rows = int(rest / inner);
                       }
                       if (copy_rows) {
                         copy(piece.row * args_.kept_inner,
                              (piece.row + piece.rows) * args_.kept_inner);
                       }
                       sum += compute(piece, buffers, nullptr, nullptr);
                       i += piece.elements();
                     }
                     sums.get()[task] = sum;
                   }
                 });
    if (!backwards_) {
      sum_rows(sums.get(), args_.batch, segments, sign(), static_cast<S*>(args_.log_det));
    }
  }

  void samples_as_rows() {
    for (RowOperand* operand :
         {&args_.x, &args_.shift, &args_.scale, &args_.mask, &args_.y, &args_.grad_y, &args_.grad_x,
          &args_.grad_shift, &args_.grad_scale}) {
      operand->row_stride = operand->batch_stride;
    }
    if (args_.kept_rows == 1) {
      for (RowOperand* operand :
           {&args_.kept_x, &args_.kept_y, &args_.kept_grad_y, &args_.kept_grad_x}) {
        operand->row_stride = operand->batch_stride;
      }
    }
  }

  // A task is as many samples as fill a piece.
  void run_short_samples() {
    const int64_t inner = args_.inner, kept = args_.kept_rows * args_.kept_inner;
    const int64_t samples = piece_elements / inner, tasks = (args_.batch + samples - 1) / samples;
    parallel_for(tasks, 1 + 16384 / ((inner + kept) * samples), [&](int64_t begin, int64_t end) {
      Buffers buffers;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task * samples;
        const int64_t count = args_.batch - first < samples ? args_.batch - first : samples;
        if (kept_to().data && args_.kept_rows == 1) {
          copy_elements(kept_from(), kept_to(), kept, 0, first * kept, (first + count) * kept);
        } else if (kept_to().data) {
          for (int64_t s = first; s < first + count; ++s) {
            copy_elements(kept_from(), kept_to(), args_.kept_inner, s, 0, kept);
          }
        }
        S* per_element = buffers.log_det;
        for (int64_t s = 0; backwards_ && s < count; ++s) {
          const S grad = grad_log_det_of<S>(args_, first + s);
          for (int64_t i = 0; i < inner; ++i) per_element[s * inner + i] = grad;
        }
        const bool rows_apart = by_rows(inner);
        const Piece piece{0, first, 0, int(rows_apart ? count : 1),
                          int(rows_apart ? inner : count * inner)};
        compute(piece, buffers, backwards_ ? nullptr : per_element,
                backwards_ ? per_element : nullptr);
        if (backwards_) continue;
        for (int64_t s = 0; s < count; ++s) {
          static_cast<S*>(args_.log_det)[first + s] =
              S(sign() * (inner == 1 ? per_element[s] : sum(per_element + s * inner, inner)));
        }
      }
    });
  }

  AffineCoupling args_;
  Coupling<V> c_;
  bool backwards_;
  bool read_pairs_ = false, write_pairs_ = false;
};

void run(const AffineCoupling& args, bool backwards) {
  args.compute == DType::float64 ? Kernel<double>(args, backwards).run()
                                 : Kernel<float>(args, backwards).run();
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(affine_coupling, AffineCoupling) { run(args, false); }

GMFAST_DEFINE_CPU_KERNEL(affine_coupling_backward, AffineCoupling) { run(args, true); }

}  // namespace gmfast
