// Matrix products C = A B whose operands are gathered, element by element, where a convolution
// finds them. A problem is a type that says where:
//
//   struct Problem {
//     Operand a, b;
//     int64_t groups, rows, columns;  // so many products, of C's size each
//     bool along_rows;  // a column of C, not a row, is the more adjacent in memory
//     // Depths that these elements of C need.
//     GMFAST_DEVICE Depths depths(int64_t first_row, int row_count, int64_t first_column,
//                                 int column_count) const;
//     GMFAST_DEVICE Position a_row(int64_t group, int64_t row) const;
//     GMFAST_DEVICE Position b_column(int64_t group, int64_t column) const;
//     GMFAST_DEVICE void at_depth(int64_t depth, Position& a, Position& b) const;
//     GMFAST_DEVICE Position c_row(int64_t group, int64_t row) const;
//     GMFAST_DEVICE Position c_column(int64_t group, int64_t column) const;
//     template <class T, class S>
//     GMFAST_DEVICE void store_sum(const Position& row, const Position& column, S sum) const;
//   };
//
// float and double multiply by FMA; Half and BFloat16 on tensor cores, accumulated in float. The
// order of every sum depends on the sizes alone.
#pragma once

#include "../common/tensor.h"
#include "launch.h"
#include "mma.h"

namespace gmfast {

// ---------------------------------------------------------------------------------------------
// Where an element is
// ---------------------------------------------------------------------------------------------

// A row or column of C and a depth have a Position each, whose sum is that of an element: how far
// from the operand's first in memory, and a place (row, column) that must lie within the operand's
// window; an element outside it is not read and counts as 0. Coordinates wrap: those of one
// Position may be negative.
struct alignas(16) Position {
  int64_t offset;
  uint32_t row, column;
};

GMFAST_DEVICE Position operator+(const Position& a, const Position& b) {
  return {a.offset + b.offset, a.row + b.row, a.column + b.column};
}

// So that the sum of two coordinates does not come back into the window by wrapping.
constexpr int64_t max_window = 1 << 29;

// Outside every window, with whatever it is added to. `everywhere_one` alike, but counts as 1.
constexpr uint32_t nowhere_row = 1u << 30, everywhere_one_row = nowhere_row + 1;
GMFAST_DEVICE Position nowhere() { return {0, nowhere_row, 0}; }
GMFAST_DEVICE Position everywhere_one() { return {0, everywhere_one_row, 0}; }

// Matrix A by rows or B by columns; `lines` below means either.
struct Operand {
  const void* data = nullptr;
  uint32_t height = 1, width = 1;  // of the window
  // Neighbouring threads take neighbouring depths of a line, or neighbouring lines.
  bool along_depth = false;
  // Where `regular`, the pack_elements<T> depths from a multiple of so many on lie `stride`
  // elements apart, in one row of the window and `advance` columns (0 or 1) apart, and no window is
  // narrower than they; where `packed`, moreover side by side and aligned.
  bool regular = false, packed = false;
  uint32_t advance = 0;
  int64_t stride = 0;
};

// From a multiple of 16 on.
struct Depths {
  int64_t begin, end;
};

// ---------------------------------------------------------------------------------------------
// Tiles
// ---------------------------------------------------------------------------------------------

// How a block shares the work. `teams` each take every teams-th tile of the depth for all of the
// block's part of C, and are added in their order. A warp of a team has a tile of 32 rows of C.
// A multiprocessor must have registers for `blocks`.
template <class T, int warp_columns_, int warps_down_, int warps_across_, int teams_, int blocks_>
struct Tiling {
  static constexpr int depth = 64 / int(sizeof(T));
  static constexpr int warp_rows = 32, warp_columns = warp_columns_;
  static constexpr int warps_across = warps_across_, teams = teams_, blocks = blocks_;
  static constexpr int team_threads = warps_down_ * warps_across_ * warp_size;
  static constexpr int threads = teams * team_threads;
  static constexpr int rows = warps_down_ * warp_rows, columns = warps_across_ * warp_columns;
};

// `lines` by `depth` numbers in shared memory, such that the threads of a warp meet all banks: for
// FMA a depth after the other, for tensor cores a line after the other.
template <class T, int lines, int depth>
struct Panel {
  static constexpr bool by_line = sizeof(T) == 2;
  static constexpr int pitch = (by_line ? depth : lines) + pack_elements<T>;
  alignas(16) T elements[(by_line ? lines : depth) * pitch];

  GMFAST_DEVICE void put(int line, int first_depth, const Pack<T, pack_elements<T>>& values) {
    if constexpr (by_line) {
      store_pack(elements + line * pitch + first_depth, values);
    } else {
      GMFAST_UNROLL
      for (int i = 0; i < pack_elements<T>; ++i) {
        elements[(first_depth + i) * pitch + line] = values.elements[i];
      }
    }
  }
};

// A warp's tile of C by FMA. Of 4 by 8 threads each has 8 rows and an eighth of the columns, in
// packs.
template <class T, class Tiling>
class FmaTile {
 public:
  using Sum = T;

  template <class A, class B>
  GMFAST_DEVICE void multiply(const A& a, int first_row, const B& b, int first_column) {
    GMFAST_UNROLL
    for (int k = 0; k < Tiling::depth; ++k) {
      T left[rows], right[columns];
      read(a.elements + k * A::pitch + first_row + thread_row() * pack, 4 * pack, left);
      read(b.elements + k * B::pitch + first_column + thread_column() * pack, 8 * pack, right);
      GMFAST_UNROLL
      for (int i = 0; i < rows; ++i) {
        GMFAST_UNROLL
        for (int j = 0; j < columns; ++j) sums_[i][j] = fma(left[i], right[j], sums_[i][j]);
      }
    }
  }

  // body(row, column, sum) for each that this thread has.
  template <class Body>
  GMFAST_DEVICE void for_each(const Body& body) const {
    GMFAST_UNROLL
    for (int i = 0; i < rows; ++i) {
      GMFAST_UNROLL
      for (int j = 0; j < columns; ++j) {
        body((i / pack * 4 + thread_row()) * pack + i % pack,
             (j / pack * 8 + thread_column()) * pack + j % pack, sums_[i][j]);
      }
    }
  }

 private:
  static constexpr int rows = Tiling::warp_rows / 4, columns = Tiling::warp_columns / 8;
  static constexpr int pack = pack_elements<T>;

  GMFAST_DEVICE static int thread_row() { return thread_index() % warp_size / 8; }
  GMFAST_DEVICE static int thread_column() { return thread_index() % 8; }

  template <int count>
  GMFAST_DEVICE static void read(const T* from, int step, T (&values)[count]) {
    GMFAST_UNROLL
    for (int i = 0; i < count; i += pack) {
      const Pack<T, pack> loaded = load_pack<pack>(from + i / pack * step);
      GMFAST_UNROLL
      for (int e = 0; e < pack; ++e) values[i + e] = loaded.elements[e];
    }
  }

  T sums_[rows][columns] = {};
};

// The same on tensor cores: mma.h says what a thread has.
template <class T, class Tiling>
class MmaTile {
 public:
  using Sum = float;

  template <class A, class B>
  GMFAST_DEVICE void multiply(const A& a, int first_row, const B& b, int first_column) {
    GMFAST_UNROLL
    for (int k = 0; k < Tiling::depth; k += 16) {
      uint32_t left[rows][4], right[columns][2];
      const T* from_a = a.elements + (first_row + line()) * A::pitch + k + 2 * pair();
      GMFAST_UNROLL
      for (int i = 0; i < rows; ++i) {
        GMFAST_UNROLL
        for (int r = 0; r < 4; ++r) {
          left[i][r] = word(from_a + (16 * i + r % 2 * 8) * A::pitch + r / 2 * 8);
        }
      }
      const T* from_b = b.elements + (first_column + line()) * B::pitch + k + 2 * pair();
      GMFAST_UNROLL
      for (int j = 0; j < columns; ++j) {
        GMFAST_UNROLL
        for (int r = 0; r < 2; ++r) right[j][r] = word(from_b + 8 * j * B::pitch + r * 8);
      }
      warp_multiply<T>(sums_, left, right);
    }
  }

  template <class Body>
  GMFAST_DEVICE void for_each(const Body& body) const {
    GMFAST_UNROLL
    for (int i = 0; i < rows; ++i) {
      GMFAST_UNROLL
      for (int j = 0; j < columns; ++j) {
        GMFAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          body(16 * i + line() + e / 2 * 8, 8 * j + 2 * pair() + e % 2, sums_[i][j][e]);
        }
      }
    }
  }

 private:
  static constexpr int rows = Tiling::warp_rows / 16, columns = Tiling::warp_columns / 8;

  GMFAST_DEVICE static int line() { return thread_index() % warp_size / 4; }
  GMFAST_DEVICE static int pair() { return thread_index() % 4; }
  GMFAST_DEVICE static uint32_t word(const T* p) { return bit_cast<uint32_t>(load_pack<2>(p)); }

  float sums_[rows][columns][4] = {};
};

// ---------------------------------------------------------------------------------------------
// From memory to a panel, by way of registers
// ---------------------------------------------------------------------------------------------

// Neighbouring depths of a line on their way. 16 bits take a register each, so that a load is
// waited for only when combine() packs them; a whole pack takes the first half of the registers.
template <class T>
class Group {
 public:
  static constexpr int count = pack_elements<T>;

  GMFAST_DEVICE void set(int i, T value) {
    if constexpr (sizeof(T) == 2) {
      words_[i] = value.bits;
    } else {
      words_[i] = value;
    }
  }
  GMFAST_DEVICE void combine() {
    if constexpr (sizeof(T) == 2) {
      GMFAST_UNROLL
      for (int i = 0; i < count / 2; ++i) words_[i] = words_[2 * i] | words_[2 * i + 1] << 16;
    }
  }
  GMFAST_DEVICE void set_pack(const Pack<T, count>& pack) {
    const auto words = bit_cast<Pack<Word, pack_elements<Word>>>(pack);
    GMFAST_UNROLL
    for (int i = 0; i < pack_elements<Word>; ++i) words_[i] = words.elements[i];
  }
  GMFAST_DEVICE Pack<T, count> pack() const {
    Pack<Word, pack_elements<Word>> words;
    GMFAST_UNROLL
    for (int i = 0; i < pack_elements<Word>; ++i) words.elements[i] = words_[i];
    return bit_cast<Pack<T, count>>(words);
  }

 private:
  using Word = std::conditional_t<sizeof(T) == 2, uint32_t, T>;
  Word words_[count];
};

// A thread's share of a tile of an operand.
template <class T, int lines, int depth, int threads>
class Share {
 public:
  // The lines' and the depths' positions lie in shared memory.
  GMFAST_DEVICE void fetch(const Operand& operand, int thread, const Position* line_positions,
                           const Position* depth_positions) {
    GMFAST_UNROLL
    for (int g = 0; g < groups; ++g) {
      fetch(operand, line_positions[line_of(operand, thread, g)],
            depth_positions + depth_of(operand, thread, g), groups_[g]);
    }
  }

  GMFAST_DEVICE void put(const Operand& operand, int thread, Panel<T, lines, depth>& panel) {
    GMFAST_UNROLL
    for (int g = 0; g < groups; ++g) {
      if (!operand.packed) groups_[g].combine();
      panel.put(line_of(operand, thread, g), depth_of(operand, thread, g), groups_[g].pack());
    }
  }

 private:
  static constexpr int pack = pack_elements<T>, line_groups = depth / pack;
  static constexpr int groups = lines * line_groups / threads;
  static_assert(groups * threads == lines * line_groups, "equal shares");

  GMFAST_DEVICE static int line_of(const Operand& operand, int thread, int group) {
    const int index = thread + group * threads;
    return operand.along_depth ? index / line_groups : index % lines;
  }
  GMFAST_DEVICE static int depth_of(const Operand& operand, int thread, int group) {
    const int index = thread + group * threads;
    return (operand.along_depth ? index % line_groups : index / lines) * pack;
  }

  GMFAST_DEVICE static void fetch(const Operand& operand, const Position& line,
                                  const Position* depths, Group<T>& group) {
    const T* data = static_cast<const T*>(operand.data);
    T padding;
    store(&padding, Compute<T>(line.row == everywhere_one_row));
    GMFAST_UNROLL
    for (int i = 0; i < pack; ++i) group.set(i, padding);

    const Position first = line + depths[0];
    const uint32_t last_column = first.column + (pack - 1) * operand.advance;
    const bool first_inside = first.column < operand.width;
    const bool last_inside = last_column < operand.width;
    if (operand.regular && first_inside == last_inside) {
      const bool inside = first_inside && first.row < operand.height;
      if (operand.packed) {
        group.combine();
        if (inside) group.set_pack(load_pack<pack>(data + first.offset));
      } else if (inside) {
        GMFAST_UNROLL
        for (int i = 0; i < pack; ++i) group.set(i, data[first.offset + i * operand.stride]);
      }
    } else {
      GMFAST_UNROLL
      for (int i = 0; i < pack; ++i) {
        const Position p = line + depths[i];
        if (p.row < operand.height && p.column < operand.width) group.set(i, data[p.offset]);
      }
      if (operand.packed) group.combine();
    }
  }

  Group<T> groups_[groups];
};

// ---------------------------------------------------------------------------------------------
// The kernel
// ---------------------------------------------------------------------------------------------

template <class T, class Tiling>
struct GemmShared {
  static constexpr int depth = Tiling::depth, pitch = Tiling::columns + 1;
  struct Team {
    Panel<T, Tiling::rows, depth> a;
    Panel<T, Tiling::columns, depth> b;
    Position a_depths[2][depth], b_depths[2][depth];  // of this tile and the next
  };

  Position rows[Tiling::rows], columns[Tiling::columns];
  union {
    Team teams[Tiling::teams];
    Compute<T> sums[Tiling::rows * pitch];  // once the teams are through
  };
};

// Block b takes a tile of C, tiles of the same columns one after the other: they share B. While a
// tile of depths is multiplied, the next is on its way from memory to registers.
template <class Problem, class T, class Tiling>
__global__ void __launch_bounds__(Tiling::threads, Tiling::blocks) gemm_kernel(Problem problem) {
  using S = Compute<T>;
  using Tile = std::conditional_t<sizeof(T) == 2, MmaTile<T, Tiling>, FmaTile<T, Tiling>>;
  constexpr int rows = Tiling::rows, columns = Tiling::columns, depth = Tiling::depth;
  using Shared = GemmShared<T, Tiling>;
  Shared& shared = *dynamic_shared<Shared>();

  const int64_t row_tiles = (problem.rows + rows - 1) / rows;
  const int64_t column_tiles = (problem.columns + columns - 1) / columns;
  const int64_t first_row = block_index() % row_tiles * rows;
  const int64_t first_column = block_index() / row_tiles % column_tiles * columns;
  const int64_t group = block_index() / row_tiles / column_tiles;
  const int team_index = thread_index() / Tiling::team_threads;
  const int thread = thread_index() % Tiling::team_threads, warp = thread / warp_size;
  const int warp_row = warp / Tiling::warps_across * Tiling::warp_rows;
  const int warp_column = warp % Tiling::warps_across * Tiling::warp_columns;
  typename Shared::Team& team = shared.teams[team_index];

  const auto fill_lines = [&](const auto& row_position, const auto& column_position) {
    for (int i = thread_index(); i < rows + columns; i += Tiling::threads) {
      if (i < rows) {
        const int64_t row = first_row + i;
        shared.rows[i] = row < problem.rows ? row_position(row) : nowhere();
      } else {
        const int64_t column = first_column + i - rows;
        shared.columns[i - rows] = column < problem.columns ? column_position(column) : nowhere();
      }
    }
  };
  const Depths range = problem.depths(first_row, rows, first_column, columns);
  const auto fill_depths = [&](int64_t tile) {
    const int64_t first = range.begin + (tile * Tiling::teams + team_index) * depth;
    for (int i = thread; i < depth; i += Tiling::team_threads) {
      Position a = nowhere(), b = nowhere();
      if (first + i < range.end) problem.at_depth(first + i, a, b);
      team.a_depths[tile % 2][i] = a;
      team.b_depths[tile % 2][i] = b;
    }
  };

  Tile sums;
  Share<T, rows, depth, Tiling::team_threads> a;
  Share<T, columns, depth, Tiling::team_threads> b;
  const int64_t step = Tiling::teams * depth;
  const int64_t tiles = range.begin < range.end ? (range.end - range.begin + step - 1) / step : 0;
  fill_lines([&](int64_t row) { return problem.a_row(group, row); },
             [&](int64_t column) { return problem.b_column(group, column); });
  fill_depths(0);
  for (int64_t tile = 0; tile <= tiles; ++tile) {
    __syncthreads();  // the panels hold tile - 1, the positions are those of `tile`
    if (tile < tiles) {
      a.fetch(problem.a, thread, shared.rows, team.a_depths[tile % 2]);
      b.fetch(problem.b, thread, shared.columns, team.b_depths[tile % 2]);
      fill_depths(tile + 1);
    }
    if (tile > 0) sums.multiply(team.a, warp_row, team.b, warp_column);
    __syncthreads();
    if (tile < tiles) {
      a.put(problem.a, thread, team.a);
      b.put(problem.b, thread, team.b);
    }
  }

  fill_lines([&](int64_t row) { return problem.c_row(group, row); },
             [&](int64_t column) { return problem.c_column(group, column); });
  for (int t = 0; t < Tiling::teams; ++t) {
    if (t == team_index) {
      sums.for_each([&](int row, int column, S sum) {
        S& total = shared.sums[(warp_row + row) * Shared::pitch + warp_column + column];
        total = t == 0 ? sum : total + sum;
      });
    }
    __syncthreads();
  }
  for (int i = thread_index(); i < rows * columns; i += Tiling::threads) {
    const int row = problem.along_rows ? i % rows : i / columns;
    const int column = problem.along_rows ? i / rows : i % columns;
    if (shared.rows[row].row == nowhere_row || shared.columns[column].row == nowhere_row) continue;
    problem.template store_sum<T>(shared.rows[row], shared.columns[column],
                                  shared.sums[row * Shared::pitch + column]);
  }
}

template <class T, class Tiling, class Problem>
void launch_gemm(const Problem& problem, void* stream) {
  const int64_t blocks = problem.groups * ceil_div(problem.rows, Tiling::rows) *
                         ceil_div(problem.columns, Tiling::columns);
  launch(gemm_kernel<Problem, T, Tiling>, blocks, Tiling::threads, sizeof(GemmShared<T, Tiling>),
         stream, problem);
}

}  // namespace gmfast
