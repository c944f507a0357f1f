#include <cstdint>

#include "../args/diffusion_step.h"
#include "../common/noise.h"
#include "../math/diffusion_step.h"
#include "rows.h"

namespace gmfast {
namespace {

constexpr int step_threads = 256;
constexpr int whole_sample_threads = 512;

// A sample's row of the table, in shared memory, and what is known of the whole sample.
template <class S>
struct Sample {
  int64_t index;
  const S* row;
  Stream stream;
  bool draws;
  S factor, limit;  // of the guided output; of x0, which is then divided by it. 0: not known yet
};

// All threads of the block must call.
template <class S>
GMFAST_DEVICE Sample<S> read_sample(const DiffusionStep& args, int64_t index) {
  __shared__ S row[step_columns];
  int64_t step = args.steps ? args.steps[index * args.steps_stride] : args.step;
  step = step < 0 ? 0 : step < args.table_rows ? step : args.table_rows - 1;
  if (thread_index() < step_columns) {
    row[thread_index()] = S(args.table[step * args.table_stride + thread_index()]);
  }
  __syncthreads();
  Sample<S> sample{index, row, {}, args.draws, S(1), S(0)};
  sample.draws = args.draws && (row[step_result + term_noise] != 0 ||
                                (args.kept.data && row[step_kept + term_noise] != 0));
  if (sample.draws) sample.stream = stream_of(args.seeds, index, uint32_t(step) + 1);
  return sample;
}

// Makes the index anew at each use: kept, it would cost a register too many.
template <class S>
GMFAST_DEVICE Stream stream_of(const DiffusionStep& args, const Sample<S>& sample) {
  return {sample.stream.seed, index_in_noise(args.seeds, sample.index), sample.stream.draw};
}

// W elements at once, of which the first is a sample's `element` in the order of the walk.
template <class S, int W>
GMFAST_DEVICE void read(const RowOperand& operand, const RowElement& at, S (&values)[W]) {
  with_type<S>(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* from = static_cast<const T*>(operand.data) + offset_of(operand, at);
    if constexpr (W == 1) {
      values[0] = load_element<S>(from);
    } else {
      const Pack<T, W> pack = load_pack<W>(from);
      GMFAST_UNROLL
      for (int i = 0; i < W; ++i) values[i] = pack.template get<S>(i);
    }
  });
}

template <class S, int W>
GMFAST_DEVICE void write(const RowOperand& operand, const RowElement& at, const S (&values)[W]) {
  with_type<S>(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* to = static_cast<T*>(operand.data) + offset_of(operand, at);
    if constexpr (W == 1) {
      store_element(to, values[0]);
    } else {
      Pack<T, W> pack;
      GMFAST_UNROLL
      for (int i = 0; i < W; ++i) pack.template set<S>(i, values[i]);
      store_pack(to, pack);
    }
  });
}

// m, guided.
template <class S, int W>
GMFAST_DEVICE void read_output(const DiffusionStep& args, const Sample<S>& sample,
                               const RowElement& at, S (&m)[W]) {
  read(args.m, at, m);
  if (!args.unconditional.data) return;
  S unconditional[W];
  read(args.unconditional, at, unconditional);
  GMFAST_UNROLL
  for (int i = 0; i < W; ++i) {
    m[i] = sample.factor * guided(m[i], unconditional[i], S(args.guidance));
  }
}

template <class S>
GMFAST_DEVICE S predict(const DiffusionStep& args, const Sample<S>& sample, S x, S m) {
  const S x0 = fma(sample.row[step_x0_x + 1], m, sample.row[step_x0_x] * x);
  if (args.threshold < 0) return clamp_to(x0, S(args.clip));
  return sample.limit > 0 ? clamp_to(x0, sample.limit) / sample.limit : x0;
}

// The step of W elements. `drawn`: their noise, where the sample draws some.
template <class S, int W>
GMFAST_DEVICE void step_elements(const DiffusionStep& args, const Sample<S>& sample,
                                 const RowElement& at, const S (&drawn)[W]) {
  const S* of_result = sample.row + step_result;
  const S* of_kept = sample.row + step_kept;
  const bool keeps = args.kept.data;
  const auto wanted = [&](int term) {
    return of_result[term] != 0 || (keeps && of_kept[term] != 0);
  };
  S result[W], kept[W];
  GMFAST_UNROLL
  for (int i = 0; i < W; ++i) result[i] = kept[i] = 0;
  // Terms whose coefficient is 0 are left out.
  const auto add = [&](int term, const S(&values)[W]) {
    const S by = of_result[term], keep_by = keeps ? of_kept[term] : S(0);
    GMFAST_UNROLL
    for (int i = 0; i < W; ++i) {
      if (by != 0) result[i] = fma(by, values[i], result[i]);
      if (keep_by != 0) kept[i] = fma(keep_by, values[i], kept[i]);
    }
  };

  const bool with_x0 = args.x0.data || wanted(term_x0);
  S x[W], m[W];
  GMFAST_UNROLL
  for (int i = 0; i < W; ++i) x[i] = m[i] = 0;
  if (with_x0 || wanted(term_x)) read(args.x, at, x);
  if (with_x0 || wanted(term_m)) read_output(args, sample, at, m);
  add(term_x, x);
  add(term_m, m);
  if (with_x0) {
    GMFAST_UNROLL
    for (int i = 0; i < W; ++i) x[i] = predict(args, sample, x[i], m[i]);
    add(term_x0, x);
    if (args.x0.data) write(args.x0, at, x);
  }
  GMFAST_UNROLL
  for (int h = 0; h < 4; ++h) {
    if (!args.history[h].data || !wanted(term_history + h)) continue;
    S history[W];
    read(args.history[h], at, history);
    add(term_history + h, history);
  }
  if ((sample.draws || args.noise.data) && wanted(term_noise)) {
    S noise[W];
    GMFAST_UNROLL
    for (int i = 0; i < W; ++i) noise[i] = drawn[i];
    if (args.noise.data) read(args.noise, at, noise);
    if (args.variance.data) {
      const S low = sample.row[step_log_var_min], high = sample.row[step_log_var_min + 1];
      S variance[W];
      read(args.variance, at, variance);
      GMFAST_UNROLL
      for (int i = 0; i < W; ++i) noise[i] *= noise_spread(variance[i], low, high);
    }
    add(term_noise, noise);
  }
  if (keeps) write(args.kept, at, kept);
  write(args.result, at, result);
}

// A thread's part of a sample: W neighbouring elements of every 16 in a tile of noise, so that of
// the blocks of noise it draws it uses all.
template <class S, int W>
constexpr int parts_of_tile = 16 / W;

template <class S>
GMFAST_HD int64_t tiles_of(int64_t elements) {
  return (elements + noise_tile<S> - 1) / noise_tile<S>;
}

template <class S, int W>
GMFAST_DEVICE void step_part(const DiffusionStep& args, const Sample<S>& sample, int64_t part) {
  constexpr int slots = numbers_per_block<S>;
  const int64_t tile = part / parts_of_tile<S, W>;
  const int column = int(part % parts_of_tile<S, W>) * W;
  const int64_t first = tile * noise_tile<S> + column;
  if (first >= args.elements) return;
  S noise[slots][W];
  GMFAST_UNROLL
  for (int i = 0; i < W; ++i) {
    Numbers<S> numbers{};
    if (sample.draws && args.channels == 1) {
      numbers = normals<S>(stream_of(args, sample), uint64_t(tile * 16 + column + i));
    }
    GMFAST_UNROLL
    for (int slot = 0; slot < slots; ++slot) noise[slot][i] = numbers.value[slot];
  }
  GMFAST_UNROLL
  for (int slot = 0; slot < slots; ++slot) {
    const int64_t element = first + slot * 16;
    if (element >= args.elements) return;
    if constexpr (W == 1) {
      if (sample.draws && args.channels > 1) {
        // Noise counts a channel's pixels one after another, and the walk a pixel's channels.
        const int64_t pixel = element / args.channels, channel = element - pixel * args.channels;
        noise[slot][0] = normal_at<S>(stream_of(args, sample),
                                      uint64_t(channel * (args.elements / args.channels) + pixel));
      }
    }
    step_elements<S, W>(args, sample, element_of(args.shape, sample.index, element), noise[slot]);
  }
}

template <class S, int W>
__global__ void __launch_bounds__(step_threads)
    step_kernel(DiffusionStep args, int64_t blocks_of_sample) {
  const int64_t index = block_index() / blocks_of_sample;
  const Sample<S> sample = read_sample<S>(args, index);
  step_part<S, W>(args, sample,
                  (block_index() - index * blocks_of_sample) * step_threads + thread_index());
}

// ---------------------------------------------------------------------------------------------
// What is known of whole samples: a block takes one, and makes its step as well
// ---------------------------------------------------------------------------------------------

// Calls body(element) for those of the sample that are the thread's.
template <class Body>
GMFAST_DEVICE void for_each_element(const DiffusionStep& args, const Body& body) {
  for (int64_t i = thread_index(); i < args.elements; i += whole_sample_threads) body(i);
}

template <class S>
GMFAST_DEVICE double rescaling_of(const DiffusionStep& args, const Sample<S>& sample) {
  const auto outputs = [&](int64_t element, S* output, S* with_guidance) {
    const RowElement at = element_of(args.shape, sample.index, element);
    S m[1], unguided[1];
    read(args.m, at, unguided);
    read_output(args, sample, at, m);
    *output = unguided[0];
    *with_guidance = m[0];
  };
  S shift, guided_shift;  // near the means, so that little cancels
  outputs(0, &shift, &guided_shift);
  double sums[4] = {0, 0, 0, 0};
  for_each_element(args, [&](int64_t element) {
    S output, with_guidance;
    outputs(element, &output, &with_guidance);
    const double a = double(output) - double(shift);
    const double b = double(with_guidance) - double(guided_shift);
    sums[0] += a;
    sums[1] += a * a;
    sums[2] += b;
    sums[3] += b * b;
  });
  GMFAST_UNROLL
  for (int i = 0; i < 4; ++i) sums[i] = block_sum<whole_sample_threads>(sums[i]);
  const double n = double(args.elements);
  return rescaling(args.rescale, sums[1] - sums[0] * sums[0] / n, sums[3] - sums[2] * sums[2] / n);
}

// The quantile of |x0|, digit by digit of its bits: the number of each digit among what has the
// digits before is counted, x0 computed anew each time.
template <class S>
GMFAST_DEVICE double quantile_of(const DiffusionStep& args, const Sample<S>& sample) {
  using U = std::conditional_t<is_single<S>, uint32_t, uint64_t>;
  constexpr int digit_bits = 11, bins = 1 << digit_bits;
  constexpr int bins_of_thread = bins / whole_sample_threads;
  __shared__ unsigned counts[bins];
  __shared__ unsigned of_threads[whole_sample_threads], of_groups[32];
  __shared__ U least[whole_sample_threads];
  __shared__ int found;
  __shared__ int64_t found_below;
  const auto key_of = [&](int64_t element) {
    const RowElement at = element_of(args.shape, sample.index, element);
    S x[1], m[1];
    read(args.x, at, x);
    read_output(args, sample, at, m);
    return bit_cast<U>(abs(predict(args, sample, x[0], m[0])));
  };

  const QuantilePlace place(args.threshold, args.elements);
  int64_t rank = place.rank;  // among what has the digits found
  U digits = 0;
  int64_t same = 0;  // numbers with the last digits found
  for (int shift = 8 * int(sizeof(U)) - 1; shift > 0;) {
    const int bits = shift < digit_bits ? shift : digit_bits;
    const int before = shift;
    shift -= bits;
    GMFAST_UNROLL
    for (int i = 0; i < bins_of_thread; ++i) counts[thread_index() * bins_of_thread + i] = 0;
    __syncthreads();
    for_each_element(args, [&](int64_t element) {
      const U key = key_of(element);
      if (key >> before == digits) {
        atomicAdd(&counts[unsigned(key >> shift) & ((1u << bits) - 1)], 1u);
      }
    });
    __syncthreads();
    // The bin with the rank: sums of threads' bins, of groups of threads, then down again.
    unsigned sum = 0;
    GMFAST_UNROLL
    for (int i = 0; i < bins_of_thread; ++i) sum += counts[thread_index() * bins_of_thread + i];
    of_threads[thread_index()] = sum;
    __syncthreads();
    constexpr int group = whole_sample_threads / 32;
    if (thread_index() < 32) {
      unsigned total = 0;
      for (int i = 0; i < group; ++i) total += of_threads[thread_index() * group + i];
      of_groups[thread_index()] = total;
    }
    __syncthreads();
    if (thread_index() == 0) {
      int64_t below = 0;
      int g = 0;
      while (g < 31 && below + of_groups[g] <= rank) below += of_groups[g++];
      int t = g * group;
      while (t < g * group + group - 1 && below + of_threads[t] <= rank) below += of_threads[t++];
      int bin = t * bins_of_thread;
      const int last = bin + bins_of_thread - 1;
      while (bin < last && below + counts[bin] <= rank) below += counts[bin++];
      found = bin;
      found_below = below;
    }
    __syncthreads();
    digits = digits << bits | U(found);
    rank -= found_below;
    same = counts[found];
    __syncthreads();  // before counts and found are written again
  }
  const double low = double(bit_cast<S>(digits));
  if (place.weight == 0 || rank + 1 < same) return low;

  // The next number is the least of the larger ones.
  U next = ~U(0);
  for_each_element(args, [&](int64_t element) {
    const U key = key_of(element);
    if (key > digits && key < next) next = key;
  });
  least[thread_index()] = next;
  __syncthreads();
  for (int half = whole_sample_threads / 2; half > 0; half /= 2) {
    if (thread_index() < half && least[thread_index() + half] < least[thread_index()]) {
      least[thread_index()] = least[thread_index() + half];
    }
    __syncthreads();
  }
  next = least[0];
  return next == ~U(0) ? low : place.between(low, double(bit_cast<S>(next)));
}

template <class S>
__global__ void __launch_bounds__(whole_sample_threads) whole_sample_kernel(DiffusionStep args) {
  Sample<S> sample = read_sample<S>(args, block_index());
  if (args.rescale != 0) sample.factor = S(rescaling_of(args, sample));
  if (args.threshold >= 0) {
    sample.limit = S(threshold_limit(quantile_of(args, sample), args.threshold_max));
  }
  __syncthreads();  // the result may be written over what others still read
  const int64_t parts = tiles_of<S>(args.elements) * parts_of_tile<S, 1>;
  for (int64_t part = thread_index(); part < parts; part += whole_sample_threads) {
    step_part<S, 1>(args, sample, part);
  }
}

// Whether W neighbouring elements of the operand always lie together, at an aligned address.
template <int W>
bool packs(const DiffusionStep& args, const RowOperand& operand) {
  if (!operand.data) return true;
  const int64_t size = element_size(operand.dtype);
  return operand.inner_stride == 1 && (args.shape.batch <= 1 || operand.batch_stride % W == 0) &&
         reinterpret_cast<uintptr_t>(operand.data) % uintptr_t(W * size) == 0;
}

template <class S>
void step(const DiffusionStep& args, void* stream) {
  if (args.elements == 0) return;
  if (args.of_samples()) {
    launch(whole_sample_kernel<S>, args.shape.batch, whole_sample_threads, 0, stream, args);
    return;
  }
  constexpr int W = 16 / int(sizeof(S));
  bool packed =
      args.shape.rows == 1 && args.elements % W == 0 && (args.channels == 1 || !args.draws);
  for (const RowOperand* operand :
       {&args.x, &args.m, &args.unconditional, &args.noise, &args.variance, &args.history[0],
        &args.history[1], &args.history[2], &args.history[3], &args.result, &args.x0, &args.kept}) {
    packed = packed && packs<W>(args, *operand);
  }
  const int64_t parts =
      tiles_of<S>(args.elements) * (packed ? parts_of_tile<S, W> : parts_of_tile<S, 1>);
  const int64_t blocks_of_sample = ceil_div(parts, step_threads);
  launch(packed ? step_kernel<S, W> : step_kernel<S, 1>, args.shape.batch * blocks_of_sample,
         step_threads, 0, stream, args, blocks_of_sample);
}

}  // namespace

void diffusion_step_cuda(const DiffusionStep& args, void* stream) {
  args.compute == DType::float64 ? step<double>(args, stream) : step<float>(args, stream);
}

}  // namespace gmfast
