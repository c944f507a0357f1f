#include "../args/diffusion_step.h"

#include <algorithm>
#include <cmath>

#include "../math/diffusion_step.h"
#include "noise.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// What is worked on at once. Operands of another dtype are first converted, so that loops know
// pointers to the type computed in and nothing else.
constexpr int64_t chunk = 512;

template <class S>
struct Buffers {
  alignas(64) S x[chunk], m[chunk],
      unconditional[chunk], x0[chunk], variance[chunk], noise[chunk], history[4][chunk], out[chunk];
  alignas(64) S walked[walked_part];  // noise of the row from `walked_first`
  int64_t walked_first = -walked_part;
};

struct Place {
  RowPlace at;
  int64_t first, count;  // of the row
};

// Calls body with the operand's row, but for doubles where floats are computed in: there are none.
template <class S, class Body>
void with_row(const RowOperand& operand, RowPlace at, const Body& body) {
  with_type(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same<S, double>::value || !std::is_same<T, double>::value) {
      body(row_of<T>(operand, at));
    }
  });
}

// The operand's elements: where they are, or converted into the buffer.
template <class V>
const Scalar<V>* read(const RowOperand& operand, const Place& place, Scalar<V>* buffer) {
  using S = Scalar<V>;
  const S* result = buffer;
  with_row<S>(operand, place.at, [&](auto* row) {
    using T = std::remove_pointer_t<decltype(row)>;
    if (operand.inner_stride == 0) {
      std::fill_n(buffer, place.count, load<S>(row));
    } else if constexpr (std::is_same<T, S>::value) {
      result = row + place.first;
    } else {
      for_each_vector<V>(0, place.count, [&](int64_t i, auto span) {
        span.store(buffer + i, span.load(row + place.first + i));
      });
    }
  });
  return result;
}

// Where to compute an operand, to be handed to finish().
template <class S>
S* target(const RowOperand& operand, const Place& place, S* buffer) {
  constexpr DType same = std::is_same<S, float>::value ? DType::float32 : DType::float64;
  return operand.data && operand.dtype == same && operand.inner_stride == 1
             ? row_of<S>(operand, place.at) + place.first
             : buffer;
}

template <class V>
void finish(const RowOperand& operand, const Place& place, const Scalar<V>* values) {
  using S = Scalar<V>;
  with_row<S>(operand, place.at, [&](auto* row) {
    if (static_cast<const void*>(row + place.first) == values) return;
    for_each_vector<V>(0, place.count, [&](int64_t i, auto span) {
      span.store(row + place.first + i, span.load(values + i));
    });
  });
}

// The order in which terms are added: a loop that predicts x0 has it before it loads others.
constexpr int order[step_terms] = {term_x0,          term_x,           term_m,
                                   term_history,     term_history + 1, term_history + 2,
                                   term_history + 3, term_noise};

template <class S>
struct Term {
  S coefficient;
  const S* values;
};

template <class V, int terms>
void sum_terms(const Term<Scalar<V>>* term, int64_t count, Scalar<V>* out) {
  using S = Scalar<V>;
  V coefficients[terms + 1];
  const S* values[terms + 1];
  for (int t = 0; t < terms; ++t) {
    coefficients[t] = splat<V>(term[t].coefficient);
    values[t] = term[t].values;
  }
  // `out` may be one of the terms: they are read before it is written.
  for_each_vector<V>(0, count, [&](int64_t i, auto span) {
    V total = splat<V>(0);
    GMFAST_UNROLL
    for (int t = 0; t < terms; ++t) {
      const V v = span.load(values[t] + i);
      total = t ? fma(coefficients[t], v, total) : coefficients[t] * v;
    }
    span.store(out + i, total);
  });
}

template <class V>
void sum_terms(const Term<Scalar<V>>* term, int terms, int64_t count, Scalar<V>* out) {
  switch (terms) {
    case 0:
      return sum_terms<V, 0>(term, count, out);
    case 1:
      return sum_terms<V, 1>(term, count, out);
    case 2:
      return sum_terms<V, 2>(term, count, out);
    case 3:
      return sum_terms<V, 3>(term, count, out);
    case 4:
      return sum_terms<V, 4>(term, count, out);
    case 5:
      return sum_terms<V, 5>(term, count, out);
    case 6:
      return sum_terms<V, 6>(term, count, out);
    case 7:
      return sum_terms<V, 7>(term, count, out);
    default:
      return sum_terms<V, 8>(term, count, out);
  }
}

// A sample's row of the table and its stream of noise, and what is known of the whole sample.
template <class V>
struct Sample {
  using S = Scalar<V>;

  Sample(const DiffusionStep& args, int64_t sample) {
    int64_t step = args.steps ? args.steps[sample * args.steps_stride] : args.step;
    step = std::max<int64_t>(0, std::min(step, args.table_rows - 1));
    const double* from = args.table + step * args.table_stride;
    for (int i = 0; i < step_columns; ++i) row[i] = S(from[i]);
    if (args.draws) stream = stream_of(args.seeds, sample, uint32_t(step) + 1);
  }

  S row[step_columns];
  Stream stream{};
  S factor = 1;  // of the guided output
  S limit = 0;   // of x0, which is then divided by it
};

// m, guided. With `rescaled` false, without the sample's factor.
template <class V>
const Scalar<V>* read_output(const DiffusionStep& args, const Sample<V>& sample, const Place& place,
                             Buffers<Scalar<V>>& buffers, bool rescaled = true) {
  using S = Scalar<V>;
  const S* m = read<V>(args.m, place, buffers.m);
  if (!args.unconditional.data) return m;
  const S* u = read<V>(args.unconditional, place, buffers.unconditional);
  const V guidance = splat<V>(S(args.guidance)), factor = splat<V>(rescaled ? sample.factor : S(1));
  for_each_vector<V>(0, place.count, [&](int64_t i, auto span) {
    span.store(buffers.m + i, factor * guided(span.load(m + i), span.load(u + i), guidance));
  });
  return buffers.m;
}

// x0, to `out`; not limited if its limit is not known yet.
template <class V>
void predict(const DiffusionStep& args, const Sample<V>& sample, const Place& place,
             const Scalar<V>* x, const Scalar<V>* m, Scalar<V>* out) {
  using S = Scalar<V>;
  const V by_x = splat<V>(sample.row[step_x0_x]), by_m = splat<V>(sample.row[step_x0_x + 1]);
  const auto value = [&](int64_t i, auto span) {
    return predicted(span.load(x + i), span.load(m + i), by_x, by_m);
  };
  if (args.threshold >= 0 && sample.limit > 0) {
    const V limit = splat<V>(sample.limit);
    for_each_vector<V>(0, place.count, [&](int64_t i, auto span) {
      span.store(out + i, clamp_to(value(i, span), limit) / limit);
    });
  } else if (args.threshold < 0 && std::isfinite(args.clip)) {
    const V limit = splat<V>(S(args.clip));
    for_each_vector<V>(0, place.count, [&](int64_t i, auto span) {
      span.store(out + i, clamp_to(value(i, span), limit));
    });
  } else {
    for_each_vector<V>(0, place.count,
                       [&](int64_t i, auto span) { span.store(out + i, value(i, span)); });
  }
}

// The noise, times the spread of a learned variance.
template <class V>
const Scalar<V>* read_noise(const DiffusionStep& args, const Sample<V>& sample, const Place& place,
                            Buffers<Scalar<V>>& buffers) {
  using S = Scalar<V>;
  const S* noise = buffers.noise;
  const int64_t walked = place.at.row * args.shape.inner + place.first;
  if (args.noise.data) {
    noise = read<V>(args.noise, place, buffers.noise);
  } else if (args.channels == 1) {
    draw_normal<V>(sample.stream, uint64_t(walked), buffers.noise, place.count);
  } else {
    if (place.first >= buffers.walked_first + walked_part) {
      draw_walked<V>(sample.stream, args.channels, args.elements / args.channels, walked,
                     buffers.walked, std::min(walked_part, args.shape.inner - place.first));
      buffers.walked_first = place.first;
    }
    noise = buffers.walked + (place.first - buffers.walked_first);
  }
  if (!args.variance.data) return noise;
  const S* variance = read<V>(args.variance, place, buffers.variance);
  const V low = splat<V>(sample.row[step_log_var_min]);
  const V high = splat<V>(sample.row[step_log_var_min + 1]);
  for_each_vector<V>(0, place.count, [&](int64_t i, auto span) {
    const V spread = noise_spread(span.load(variance + i), low, high);
    span.store(buffers.noise + i, spread * span.load(noise + i));
  });
  return buffers.noise;
}

template <class V>
void step_chunk(const DiffusionStep& args, const Sample<V>& sample, const Place& place,
                Buffers<Scalar<V>>& buffers) {
  using S = Scalar<V>;
  const auto wanted = [&](int term) {
    return sample.row[step_result + term] != 0 ||
           (args.kept.data && sample.row[step_kept + term] != 0);
  };
  const bool with_x0 = args.x0.data || wanted(term_x0);
  const S* values[step_terms] = {};
  if (with_x0 || wanted(term_x)) values[term_x] = read<V>(args.x, place, buffers.x);
  if (with_x0 || wanted(term_m)) values[term_m] = read_output(args, sample, place, buffers);
  if (with_x0) {
    S* x0 = target(args.x0, place, buffers.x0);
    predict(args, sample, place, values[term_x], values[term_m], x0);
    values[term_x0] = x0;
  }
  for (int h = 0; h < 4; ++h) {
    const RowOperand& history = args.history[h];
    if (history.data && wanted(term_history + h)) {
      values[term_history + h] = read<V>(history, place, buffers.history[h]);
    }
  }
  if ((args.noise.data || args.draws) && wanted(term_noise)) {
    values[term_noise] = read_noise(args, sample, place, buffers);
  }

  // Terms whose coefficient is 0 are left out.
  const auto sum = [&](int columns, const RowOperand& operand) {
    Term<S> terms[step_terms];
    int count = 0;
    for (const int t : order) {
      const S coefficient = sample.row[columns + t];
      if (coefficient != 0 && values[t]) terms[count++] = {coefficient, values[t]};
    }
    S* out = target(operand, place, buffers.out);
    sum_terms<V>(terms, count, place.count, out);
    finish<V>(operand, place, out);
  };
  // The result may overwrite what it is computed from, so it is the last.
  if (args.x0.data) finish<V>(args.x0, place, values[term_x0]);
  if (args.kept.data) sum(step_kept, args.kept);
  sum(step_result, args.result);
}

// ---------------------------------------------------------------------------------------------
// All in one loop, where it holds everything in registers
// ---------------------------------------------------------------------------------------------

// What a row of the table asks for, as a loop over operands of one type.
template <class V>
class Plan {
  using S = Scalar<V>;
  static constexpr bool is_double = std::is_same<S, double>::value;

 public:
  static constexpr int most = 5;  // terms in memory

  Plan(const DiffusionStep& args, const Sample<V>& sample)
      : args_(args), by_x_(sample.row[step_x0_x]), by_m_(sample.row[step_x0_x + 1]) {
    // Of operands in float and fewer bits it may be one that is not read that is a double.
    possible_ = !args.of_samples() && (args.result.dtype == DType::float64) == is_double;
    predicts_ = args.x0.data;
    for (const int t : order) {
      const S to_result = sample.row[step_result + t];
      const S to_kept = args.kept.data ? sample.row[step_kept + t] : to_result;
      const RowOperand* operand = operand_of(t);
      if (operand && !operand->data && !(t == term_noise && args.draws)) continue;
      if (t == term_x0 && (predicts_ || to_result != 0 || to_kept != 0)) {
        predicts_ = true;
        possible_ = possible_ && to_result != 0 && to_kept != 0;
        x0_to_result_ = to_result;
        x0_to_kept_ = to_kept;
      } else if (t == term_noise && (!args.noise.data || args.variance.data)) {
        needs_noise_ = to_result != 0 || to_kept != 0;
        possible_ = possible_ && (!needs_noise_ || (to_result != 0 && to_kept != 0));
        noise_to_result_ = to_result;
        noise_to_kept_ = to_kept;
      } else if (to_result != 0 || to_kept != 0) {
        // The loop has one list of terms, of what is as it is in memory.
        possible_ = possible_ && to_result != 0 && to_kept != 0 && count_ < most &&
                    !(t == term_m && args.unconditional.data);
        if (!possible_) return;
        terms_[count_] = {operand, to_result, to_kept};
        take(*operand);
        ++count_;
      }
    }
    if (predicts_) {
      take(args.x);
      take(args.m);
      if (args.unconditional.data) take(args.unconditional);
    }
    take(args.result);
    if (args.x0.data) take(args.x0);
    if (args.kept.data) take(args.kept);
    possible_ = possible_ && count_ > 0;
  }

  bool possible() const { return possible_; }
  // Noise that is not in memory as the loop wants it: run() is given it.
  bool needs_noise() const { return needs_noise_; }

  void run(const Place& place, const S* noise = nullptr) const {
    with_row<S>(args_.result, place.at, [&](auto* row) {
      using T = std::remove_pointer_t<decltype(row)>;
      if constexpr (std::is_same<T, double>::value == is_double) {
        predicts_ ? run_terms<T, true, 1>(place, noise) : run_terms<T, false, 1>(place, noise);
      }
    });
  }

 private:
  struct Listed {
    const RowOperand* operand;
    S to_result, to_kept;
  };

  const RowOperand* operand_of(int term) const {
    return term == term_x       ? &args_.x
           : term == term_m     ? &args_.m
           : term == term_x0    ? nullptr
           : term == term_noise ? &args_.noise
                                : &args_.history[term - term_history];
  }

  void take(const RowOperand& operand) {
    possible_ = possible_ && operand.inner_stride == 1 && operand.dtype == args_.result.dtype;
  }

  template <class T, bool predicts, int count>
  void run_terms(const Place& place, const S* noise) const {
    if (count == count_) return loop<T, predicts, count>(place, noise);
    if constexpr (count < most) run_terms<T, predicts, count + 1>(place, noise);
  }

  template <class T, bool predicts, int count>
  __attribute__((noinline)) void loop(const Place& place, const S* noise) const {
    const auto row = [&](const RowOperand& operand) {
      return operand.data ? row_of<T>(operand, place.at) : nullptr;
    };
    const T* values[count];
    V to_result[count], to_kept[count];
    for (int t = 0; t < count; ++t) {
      values[t] = row(*terms_[t].operand);
      to_result[t] = splat<V>(terms_[t].to_result);
      to_kept[t] = splat<V>(terms_[t].to_kept);
    }
    const T *x = row(args_.x), *m = row(args_.m), *unconditional = row(args_.unconditional);
    T *result = row(args_.result), *x0_out = row(args_.x0), *kept_out = row(args_.kept);
    const V by_x = splat<V>(by_x_), by_m = splat<V>(by_m_);
    const V x0_to_result = splat<V>(x0_to_result_), x0_to_kept = splat<V>(x0_to_kept_);
    const V noise_to_result = splat<V>(noise_to_result_), noise_to_kept = splat<V>(noise_to_kept_);
    const V guidance = splat<V>(S(args_.guidance)), limit = splat<V>(S(args_.clip));
    const bool limited = std::isfinite(args_.clip);
    for_each_vector<V>(place.first, place.count, [&](int64_t i, auto span) {
      V x0{}, z{}, v[count];
      if constexpr (predicts) {
        V output = span.load(m + i);
        if (unconditional) output = guided(output, span.load(unconditional + i), guidance);
        x0 = predicted(span.load(x + i), output, by_x, by_m);
        if (limited) x0 = clamp_to(x0, limit);
      }
      GMFAST_UNROLL
      for (int t = 0; t < count; ++t) v[t] = span.load(values[t] + i);
      if (noise) z = span.load(noise + (i - place.first));
      const auto sum = [&](V of_x0, const V(&by)[count], V of_noise) {
        V total = predicts ? fma(by[0], v[0], of_x0 * x0) : by[0] * v[0];
        GMFAST_UNROLL
        for (int t = 1; t < count; ++t) total = fma(by[t], v[t], total);
        return noise ? fma(of_noise, z, total) : total;
      };
      // The result may overwrite what it is computed from, so it is the last.
      if (x0_out) span.store(x0_out + i, x0);
      if (kept_out) span.store(kept_out + i, sum(x0_to_kept, to_kept, noise_to_kept));
      span.store(result + i, sum(x0_to_result, to_result, noise_to_result));
    });
  }

  const DiffusionStep& args_;
  bool possible_, predicts_, needs_noise_ = false;
  int count_ = 0;
  S by_x_, by_m_, x0_to_result_ = 0, x0_to_kept_ = 0, noise_to_result_ = 0, noise_to_kept_ = 0;
  Listed terms_[most];
};

// ---------------------------------------------------------------------------------------------
// What is known of whole samples
// ---------------------------------------------------------------------------------------------

template <class Body>
void for_each_chunk(const RowShape& shape, int64_t sample, const Body& body) {
  for (int64_t row = 0; row < shape.rows; ++row) {
    for (int64_t first = 0; first < shape.inner; first += chunk) {
      body(Place{{sample, row}, first, std::min(chunk, shape.inner - first)});
    }
  }
}

// Of a sample: sum of squared distances from the mean.
template <class V>
class Scatter {
 public:
  void add(const Scalar<V>* values, int64_t count) {
    if (count_ == 0) shift_ = values[0];  // near the mean, so that little cancels
    count_ += count;
    const V shift = splat<V>(shift_);
    add_vectors(0, count, sums_, [&](int64_t i, auto span, V(&terms)[2]) {
      const V distance = span.load(values + i) - shift;
      terms[0] = distance;
      terms[1] = distance * distance;
    });
  }
  double total() const {
    const double sum = sums_[0].total();
    return std::max(0.0, sums_[1].total() - sum * sum / double(count_));
  }

 private:
  Scalar<V> shift_ = 0;
  int64_t count_ = 0;
  DoubleSum<V> sums_[2];
};

template <class V>
double rescaling_of(const DiffusionStep& args, int64_t index, const Sample<V>& sample,
                    Buffers<Scalar<V>>& buffers) {
  Scatter<V> of_output, of_guided;
  for_each_chunk(args.shape, index, [&](const Place& place) {
    of_output.add(read<V>(args.m, place, buffers.m), place.count);
    of_guided.add(read_output(args, sample, place, buffers, false), place.count);
  });
  return rescaling(args.rescale, of_output.total(), of_guided.total());
}

// The numbers of given ranks among absolute values, found by the leading bits: of what has those of
// the wanted number little is left to be ordered.
template <class S>
class Selection {
  static constexpr bool single = std::is_same<S, float>::value;
  using U = std::conditional_t<single, uint32_t, uint64_t>;
  static constexpr int shift = single ? 20 : 51, bins = single ? 2048 : 4096;

 public:
  // Sorts values into bins; they stay where they are.
  Selection(const S* values, int64_t count) : values_(values), count_(count), counts_(bins) {
    std::fill_n(counts_.get(), bins, 0);
    for (int64_t i = 0; i < count; ++i) ++counts_.get()[bin_of(values[i])];
  }

  double quantile(double q, S* scratch) const {
    const QuantilePlace place(q, count_);
    int64_t below = 0;
    int bin = next_bin(0);
    while (below + counts_.get()[bin] <= place.rank) {
      below += counts_.get()[bin];
      bin = next_bin(bin + 1);
    }
    int64_t found = collect(bin, scratch);
    S* low = scratch + (place.rank - below);
    std::nth_element(scratch, low, scratch + found, less);
    const S value = *low;
    if (place.weight == 0) return value;
    S* after = low + 1;
    if (after == scratch + found) {
      found = collect(next_bin(bin + 1), scratch);
      after = scratch;
    }
    return place.between(value, *std::min_element(after, scratch + found, less));
  }

 private:
  // As integers, whose order knows no NaN.
  static bool less(S a, S b) { return bit_cast<U>(a) < bit_cast<U>(b); }
  static int bin_of(S value) { return int(bit_cast<U>(value) >> shift); }
  int next_bin(int bin) const {
    while (bin < bins - 1 && counts_.get()[bin] == 0) ++bin;
    return bin;
  }
  int64_t collect(int bin, S* out) const {
    int64_t found = 0;
    for (int64_t i = 0; i < count_; ++i) {
      out[found] = values_[i];
      found += bin_of(values_[i]) == bin;
    }
    return found;
  }

  const S* values_;
  int64_t count_;
  Scratch<int64_t> counts_;
};

template <class V>
double limit_of(const DiffusionStep& args, int64_t index, const Sample<V>& sample,
                Buffers<Scalar<V>>& buffers) {
  using S = Scalar<V>;
  if (args.elements == 0) return 1;
  // One more, because collecting writes behind the last that it keeps.
  Scratch<S> values(2 * args.elements + 2);
  S* next = values.get();
  for_each_chunk(args.shape, index, [&](const Place& place) {
    const S* x = read<V>(args.x, place, buffers.x);
    const S* m = read_output(args, sample, place, buffers);
    predict(args, sample, place, x, m, next);
    for (int64_t i = 0; i < place.count; ++i) next[i] = std::fabs(next[i]);
    next += place.count;
  });
  const Selection<S> selection(values.get(), args.elements);
  return threshold_limit(selection.quantile(args.threshold, next), args.threshold_max);
}

// ---------------------------------------------------------------------------------------------
// The step
// ---------------------------------------------------------------------------------------------

// Brings the elements at `place` nearer while others are computed.
template <class S>
void prefetch(const DiffusionStep& args, const Place& place) {
  const auto bring = [&](const RowOperand& operand, auto for_writing) {
    if (!operand.data || operand.inner_stride != 1) return;
    with_row<S>(operand, place.at, [&](auto* row) {
      const char* from = reinterpret_cast<const char*>(row + place.first);
      for (int64_t byte = 0; byte < place.count * int64_t(sizeof(*row)); byte += 64) {
        prefetch_line<decltype(for_writing)::value>(from + byte);
      }
    });
  };
  for (const RowOperand* operand :
       {&args.x, &args.m, &args.unconditional, &args.noise, &args.variance, &args.history[0],
        &args.history[1], &args.history[2], &args.history[3]}) {
    bring(*operand, std::false_type{});
  }
  for (const RowOperand* operand : {&args.result, &args.x0, &args.kept}) {
    bring(*operand, std::true_type{});
  }
}

template <class S>
void step(const DiffusionStep& args) {
  using V = Native<S>;
  const bool of_samples = args.of_samples();
  Scratch<S> known(of_samples ? 2 * args.shape.batch : 0);
  if (of_samples) {
    parallel_for(args.shape.batch, 16384 / (args.elements + 1) + 1,
                 [&](int64_t begin, int64_t end) {
                   Buffers<S> buffers;
                   for (int64_t i = begin; i < end; ++i) {
                     Sample<V> sample(args, i);
                     if (args.rescale != 0)
                       sample.factor = S(rescaling_of(args, i, sample, buffers));
                     if (args.threshold >= 0) sample.limit = S(limit_of(args, i, sample, buffers));
                     known.get()[2 * i] = sample.factor;
                     known.get()[2 * i + 1] = sample.limit;
                   }
                 });
  }
  const bool far =
      worth_prefetching(args.shape.batch * args.shape.rows * args.shape.inner * sizeof(S));
  if (args.shape.batch == 0) return;
  const bool one_row = args.steps_stride == 0;
  const Plan<V> of_all(args, Sample<V>(args, 0));
  // A copy: no store of a row can change it.
  const RowShape pieces{args.shape.batch, args.shape.rows, args.shape.inner};
  for_each_piece(pieces, [&](int64_t index, int64_t row, int64_t first, int64_t count) {
    const Place piece{{index, row}, first, count};
    if (one_row && of_all.possible() && !of_all.needs_noise()) return of_all.run(piece);
    Sample<V> sample(args, index);
    const Plan<V> plan = one_row ? of_all : Plan<V>(args, sample);
    if (plan.possible() && !plan.needs_noise()) return plan.run(piece);
    if (of_samples) {
      sample.factor = known.get()[2 * index];
      sample.limit = known.get()[2 * index + 1];
    }
    Buffers<S> buffers;
    for (const int64_t end = first + count; first < end; first += chunk) {
      const int64_t next = first + chunk, rest = args.shape.inner - next;
      if (far && rest > 0) prefetch<S>(args, {{index, row}, next, std::min(chunk, rest)});
      const Place place{{index, row}, first, std::min(chunk, end - first)};
      if (plan.possible()) {
        plan.run(place, read_noise(args, sample, place, buffers));
      } else {
        step_chunk(args, sample, place, buffers);
      }
    }
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(diffusion_step, DiffusionStep) {
  args.compute == DType::float64 ? step<double>(args) : step<float>(args);
}

}  // namespace gmfast
