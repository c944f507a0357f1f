// Elementwise kernels over the halves of tensors (PairOperand). An operation is a type like this
// one:
//
//   struct Swap {
//     static constexpr int inputs = 2, outputs = 2;
//     template <class S>
//     GMFAST_DEVICE static void apply(const S (&in)[inputs], S (&out)[outputs]) { ... }
//   };
//
// Bound by memory. A thread moves two packs of 16 bytes of every side, neighbouring threads
// neighbouring packs, all loads before the first use: with two inputs and 1024 threads on a
// multiprocessor 64 KiB are in flight. Where a side is not aligned, or the lines are no multiple of
// a pack, the same kernel runs on four single elements.
#pragma once

#include "../common/rows.h"
#include "launch.h"
#include "types.h"

namespace gmfast {

// One half of an operand. Without data it reads as -0, which adds nothing to any number.
struct Side {
  char* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0;
};

inline Side side_of(const PairOperand& operand, int half) {
  const int64_t element = element_size(operand.dtype);
  char* data = static_cast<char*>(operand.data);
  return {data ? data + half * operand.half_stride * element : nullptr, operand.batch_stride,
          operand.row_stride};
}

// batch x rows lines of `length` packs. A thread's next pack is `threads` further: `step_lines`
// lines and `step` packs.
template <int count>
struct PairLines {
  int64_t lines, rows, length;
  int64_t step_lines, step;
  Side sides[count];  // inputs, then outputs
};

constexpr int pair_threads = 256;
template <int N>
constexpr int pair_unroll = N == 1 ? 4 : 2;

template <class Operation, class T, int N>
__global__ void __launch_bounds__(pair_threads)
    pairs_kernel(PairLines<Operation::inputs + Operation::outputs> args) {
  using S = Compute<T>;
  constexpr int inputs = Operation::inputs, outputs = Operation::outputs;
  constexpr int unroll = pair_unroll<N>;

  const int64_t first = block_index() * (pair_threads * unroll) + thread_index();
  int64_t line = first / args.length, position = first % args.length;
  int64_t sample[unroll], row[unroll], offset[unroll];
  bool inside[unroll];
  GMFAST_UNROLL
  for (int u = 0; u < unroll; ++u) {
    inside[u] = line < args.lines;
    sample[u] = args.rows == 1 ? line : line / args.rows;
    row[u] = args.rows == 1 ? 0 : line % args.rows;
    offset[u] = position * N;
    line += args.step_lines;
    position += args.step;
    if (position >= args.length) {
      position -= args.length;
      ++line;
    }
  }
  const auto address = [&](const Side& side, int u) {
    return reinterpret_cast<T*>(side.data) + sample[u] * side.batch_stride +
           row[u] * side.row_stride + offset[u];
  };

  Pack<T, N> in[unroll][inputs];
  GMFAST_UNROLL
  for (int u = 0; u < unroll; ++u) {
    GMFAST_UNROLL
    for (int s = 0; s < inputs; ++s) {
      if (args.sides[s].data && inside[u]) {
        in[u][s] = load_pack<N>(address(args.sides[s], u));
      } else {
        GMFAST_UNROLL
        for (int i = 0; i < N; ++i) in[u][s].set(i, S(-0.0));
      }
    }
  }
  GMFAST_UNROLL
  for (int u = 0; u < unroll; ++u) {
    if (!inside[u]) return;
    Pack<T, N> out[outputs];
    GMFAST_UNROLL
    for (int i = 0; i < N; ++i) {
      S from[inputs], to[outputs];
      GMFAST_UNROLL
      for (int s = 0; s < inputs; ++s) from[s] = in[u][s].template get<S>(i);
      Operation::apply(from, to);
      GMFAST_UNROLL
      for (int s = 0; s < outputs; ++s) out[s].set(i, to[s]);
    }
    GMFAST_UNROLL
    for (int s = 0; s < outputs; ++s) store_pack(address(args.sides[inputs + s], u), out[s]);
  }
}

// Whether every side can be walked in packs of N elements, 16 bytes.
template <int count>
bool all_packed(const RowShape& shape, const Side (&sides)[count], int64_t N) {
  bool packed = shape.inner % N == 0;
  for (const Side& side : sides) {
    packed = packed && reinterpret_cast<uintptr_t>(side.data) % 16 == 0 &&
             (shape.batch == 1 || side.batch_stride % N == 0) &&
             (shape.rows == 1 || side.row_stride % N == 0);
  }
  return packed;
}

template <class Operation, class T, int N, int count>
void launch_pairs(const RowShape& shape, const Side (&sides)[count], void* stream) {
  PairLines<count> args{};
  args.lines = shape.batch * shape.rows;
  args.rows = shape.rows;
  args.length = shape.inner / N;
  if (args.lines * args.length == 0) return;
  args.step_lines = pair_threads / args.length;
  args.step = pair_threads % args.length;
  bool one_stride = true;  // batch and rows are walked as one
  for (int s = 0; s < count; ++s) {
    args.sides[s] = sides[s];
    one_stride = one_stride && (!sides[s].data || shape.batch == 1 ||
                                sides[s].batch_stride == shape.rows * sides[s].row_stride);
  }
  if (one_stride && shape.rows > 1) {
    args.rows = 1;
    for (Side& side : args.sides) side.batch_stride = side.row_stride;
  }
  const int64_t blocks = ceil_div(args.lines * args.length, pair_threads * pair_unroll<N>);
  launch(pairs_kernel<Operation, T, N>, blocks, pair_threads, 0, stream, args);
}

// Applies the operation to sides of one dtype: its inputs, then its outputs.
template <class Operation>
void run_pairs(const RowShape& shape, DType dtype,
               const Side (&sides)[Operation::inputs + Operation::outputs], void* stream) {
  with_type<double>(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    constexpr int N = pack_elements<T>;
    if (all_packed(shape, sides, N)) {
      launch_pairs<Operation, T, N>(shape, sides, stream);
    } else {
      launch_pairs<Operation, T, 1>(shape, sides, stream);
    }
  });
}

}  // namespace gmfast
