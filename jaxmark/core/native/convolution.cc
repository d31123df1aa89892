// Convolutions with kernels of 3 voxels a side, stride 1 and zeros around, and the gradient of their
// kernel. What is summed stays in registers. XLA calls this through its foreign function interface
// and lends its threads. Arrays are contiguous float32, channels last.
//
// Along X it is Winograd's F(4, 3) (Lavin and Gray, CVPR 2016): six products make four planes, where
// the definition takes twelve. `direct` is the definition, for single channels and few planes.
//
// Input is copied to a tile in the cache, with zeros around and channels in chunks of CHUNK, so that
// the inner loops' loads are at constant distances. V vectors of L floats are channels of the output.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Size = std::int64_t;

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 28;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kLanes = 8, kRegisters = 12;
#else
#error "needs AVX2 and FMA"
#endif

// Taps, products and planes of F(4, 3): y = OUTPUT ((TAPS k) * (INPUT x)), as in conv.py.
constexpr int kTaps = 3, kProducts = 6, kPlanes = 4;
constexpr float kTapsOf[kProducts][kTaps] = {
    {1 / 4.f, 0, 0},
    {-1 / 6.f, -1 / 6.f, -1 / 6.f},
    {-1 / 6.f, 1 / 6.f, -1 / 6.f},
    {1 / 24.f, 1 / 12.f, 1 / 6.f},
    {1 / 24.f, -1 / 12.f, 1 / 6.f},
    {0, 0, 1},
};

// How work is cut depends on the shape alone, so that results do not depend on the threads.
constexpr Size kTileFloats = 1 << 17;  // half of a cache of 1 MB
constexpr Size kUnits = 48;            // of a call, about
constexpr Size kVoxelsOfSum = 512;     // at least, of a partial sum of the gradient
constexpr Size kSums = 16;             // of these, at most

struct Shape {
  Size batch, nx, ny, nz, c_in, c_out, ky;

  Size plane() const { return ny * nz; }
  Size voxels() const { return batch * nx * plane(); }
};

Size divided(Size n, Size by) { return (n + by - 1) / by; }

template <int L>
struct Lanes {
  typedef float Type __attribute__((vector_size(4 * L)));
  typedef float Anywhere __attribute__((vector_size(4 * L), aligned(4), may_alias));
};

template <int L>
inline typename Lanes<L>::Type load(const float* p) {
  return *reinterpret_cast<const typename Lanes<L>::Anywhere*>(p);
}

template <int L>
inline void store(float* p, typename Lanes<L>::Type v) {
  *reinterpret_cast<typename Lanes<L>::Anywhere*>(p) = v;
}

// Memory that is not cleared, aligned to a cache line.
struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float, Free>;

Floats floats(Size count) {
  void* memory = std::aligned_alloc(64, divided(4 * count + 1, 64) * 64);
  if (!memory) throw std::bad_alloc();
  return Floats(static_cast<float*>(memory));
}

// Work that is shared with the pool's threads. The caller takes part, and waits for those who have
// begun something; a thread that comes late finds nothing left.
class Shared {
 public:
  static void run(ffi::ThreadPool& pool, Size count, std::function<void(Size)> work) {
    auto shared = std::make_shared<Shared>();
    shared->count_ = count;
    shared->work_ = std::move(work);
    const Size helpers = std::min<Size>(pool.num_threads(), count) - 1;
    for (Size i = 0; i < helpers; ++i) pool.Schedule([shared] { shared->take(); });
    shared->take();
    std::unique_lock<std::mutex> lock(shared->mutex_);
    shared->all_done_.wait(lock, [&] { return shared->done_ == count; });
  }

 private:
  void take() {
    Size done = 0;
    for (Size i; (i = next_.fetch_add(1)) < count_; ++done) work_(i);
    if (!done) return;
    std::lock_guard<std::mutex> lock(mutex_);
    done_ += done;
    if (done_ == count_) all_done_.notify_all();
  }

  std::atomic<Size> next_{0};
  Size count_ = 0, done_ = 0;
  std::function<void(Size)> work_;
  std::mutex mutex_;
  std::condition_variable all_done_;
};

// A unit of work: planes and rows of one case of the batch.
struct Unit {
  Size number, x_first, x_last, y_first, y_last;
};

// How a volume is cut into units, whose `tile_planes` planes of rows fit the cache.
class Cut {
 public:
  Cut(const Shape& s, Size tile_planes, Size multiple) : s_(s) {
    const Size row = (s.nz + kTaps - 1) * s.c_in;
    rows_ = std::clamp<Size>(kTileFloats / (tile_planes * row) - (s.ky - 1), 1, s.ny);
    y_parts_ = divided(s.ny, rows_);
    rows_ = divided(s.ny, y_parts_);
    const Size wanted = divided(kUnits, s.batch * y_parts_);
    planes_ = divided(divided(s.nx, std::min(wanted, s.nx)), multiple) * multiple;
    x_parts_ = divided(s.nx, planes_);
  }

  Size units() const { return s_.batch * x_parts_ * y_parts_; }
  Size rows() const { return rows_; }

  Unit unit(Size i) const {
    const Size y = i % y_parts_ * rows_, x = i / y_parts_ % x_parts_ * planes_;
    return {i / y_parts_ / x_parts_, x, std::min(x + planes_, s_.nx), y, std::min(y + rows_, s_.ny)};
  }

 private:
  Shape s_;
  Size rows_, y_parts_, planes_, x_parts_;
};

// Planes of a part of a volume, zeros around it: [plane][chunk][row][z][CHUNK].
template <int CHUNK>
class Tile {
 public:
  // Of `chunks` chunks of the input's channels from `first_channel` on.
  Tile(const Shape& s, Size rows, Size planes, Size chunks, Size first_channel)
      : s_(s),
        chunks_(chunks),
        first_channel_(first_channel),
        rows_(rows + s.ky - 1),
        row_((s.nz + kTaps - 1) * CHUNK),
        memory_(floats(planes * chunks * rows_ * row_)),
        zeros_(s.nz * s.c_in) {
    // The voxels before and after each row, which nothing else writes.
    for (Size i = 0; i < planes * chunks_ * rows_; ++i) {
      std::memset(memory_.get() + i * row_, 0, 4 * CHUNK);
      std::memset(memory_.get() + (i + 1) * row_ - CHUNK, 0, 4 * CHUNK);
    }
  }

  float* plane(Size number) const { return memory_.get() + number * chunks_ * rows_ * row_; }
  Size row() const { return row_; }
  Size chunk() const { return rows_ * row_; }

  // Plane x of a case becomes plane `to`.
  void copy(const float* x_of_case, Size x, Size y_first, Size to) {
    for_rows<1>(x_of_case, x, y_first, [&](Size at, const float* const* from) {
      float* row = plane(to) + at;
      if (CHUNK == s_.c_in) {
        std::memcpy(row, from[0], 4 * s_.nz * CHUNK);
        return;
      }
      for (Size z = 0; z < s_.nz; ++z)
        std::memcpy(row + z * CHUNK, from[0] + z * s_.c_in, 4 * CHUNK);
    });
  }

  // Six planes of a case from x on become six sums of them: INPUT x.
  void transform(const float* x_of_case, Size x, Size y_first) {
    for_rows<kProducts>(x_of_case, x, y_first, [&](Size at, const float* const* from) {
      for (Size z = 0; z < s_.nz; ++z) {
        typename Lanes<CHUNK>::Type a[kProducts];
#pragma GCC unroll 6
        for (int i = 0; i < kProducts; ++i) a[i] = load<CHUNK>(from[i] + z * s_.c_in);
        const auto p = a[4] - 4 * a[2], q = a[3] - 4 * a[1];
        const auto r = a[4] - a[2], t = 2 * (a[3] - a[1]);
        float* to = plane(0) + at + z * CHUNK;
        const Size next = plane(1) - plane(0);
        store<CHUNK>(to, 4 * a[0] - 5 * a[2] + a[4]);
        store<CHUNK>(to + next, p + q);
        store<CHUNK>(to + 2 * next, p - q);
        store<CHUNK>(to + 3 * next, r + t);
        store<CHUNK>(to + 4 * next, r - t);
        store<CHUNK>(to + 5 * next, 4 * a[1] - 5 * a[3] + a[5]);
      }
    });
  }

 private:
  // Calls `each(place of a row in a plane, that row in N planes of the case)` for all rows.
  template <int N, typename Each>
  void for_rows(const float* x_of_case, Size x, Size y_first, const Each& each) const {
    for (Size chunk = 0; chunk < chunks_; ++chunk)
      for (Size row = 0; row < rows_; ++row) {
        const Size y = y_first - s_.ky / 2 + row;
        const float* from[N];
        for (int i = 0; i < N; ++i) {
          const bool inside = y >= 0 && y < s_.ny && x + i >= 0 && x + i < s_.nx;
          const Size at = ((x + i) * s_.ny + y) * s_.nz * s_.c_in;
          from[i] = (inside ? x_of_case + at : zeros_.data()) + first_channel_ + chunk * CHUNK;
        }
        each((chunk * rows_ + row) * row_ + CHUNK, from);
      }
  }

  Shape s_;
  Size chunks_, first_channel_, rows_, row_;
  Floats memory_;
  std::vector<float> zeros_;
};

// ------------------------------------------------------------------------------------- the value

// Of T voxels along Z, sums over planes, rows and j of tile[t * CHUNK + j] * weight, where j goes
// through the taps along Z and the channels of a chunk. Weights lie in the order of their use.
template <int CHUNK, int V, int L, int T>
void voxels(const float* const* planes, Size count, Size ky, Size row, Size chunk, Size chunks,
            const float* w, float* y, Size y_step) {
  typename Lanes<L>::Type sum[T][V] = {};
  for (Size c = 0; c < chunks; ++c)
    for (Size dx = 0; dx < count; ++dx)
      for (Size dy = 0; dy < ky; ++dy) {
        const float* p = planes[dx] + c * chunk + dy * row;
        for (Size j = 0; j < kTaps * CHUNK; ++j, ++p, w += V * L) {
          typename Lanes<L>::Type weight[V];
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) weight[v] = load<L>(w + v * L);
#pragma GCC unroll 32
          for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[t][v] += p[t * CHUNK] * weight[v];
        }
      }
#pragma GCC unroll 32
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<L>(y + t * y_step + v * L, sum[t][v]);
}

using Voxels = void (*)(const float* const*, Size, Size, Size, Size, Size, const float*, float*,
                        Size);

struct Form {
  Voxels run;
  Size voxels;
};

// For rows of n voxels the form with the least work, where a call costs as much as two more voxels
// would. The last call of a row may overlap the one before.
template <int CHUNK, int V, int L, int... T>
Form best_form(Size n) {
  Form best{nullptr, 0};
  Size least = 0;
  const auto consider = [&](Voxels run, Size t) {
    const Size work = divided(n, t) * (t + 2);
    if (t > n || (best.run && work >= least)) return;
    least = work;
    best = Form{run, t};
  };
  (([&] {
     if constexpr (T * V <= kRegisters) consider(&voxels<CHUNK, V, L, T>, T);
   }()),
   ...);
  return best;
}

template <int CHUNK, int V, int L>
class Value {
 public:
  Value(const Shape& s, const float* x, const float* kernel, float* y)
      : s_(s),
        x_(x),
        kernel_(kernel),
        y_(y),
        chunks_(s.c_in / CHUNK),
        form_(best_form<CHUNK, V, L, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28>(s.nz)) {}

  void direct(ffi::ThreadPool& pool) {
    const Size part = kTaps * s_.ky * kTaps * CHUNK * kWidth;
    Floats weights = floats(blocks() * chunks_ * part);
    Shared::run(pool, blocks(), [&](Size block) {
      for (Size chunk = 0; chunk < chunks_; ++chunk)
        for (Size dx = 0; dx < kTaps; ++dx)
          pack(block, chunk, [&](Size t) { return t == dx ? 1.f : 0.f; },
               weights.get() + (block * chunks_ + chunk) * part + dx * part / kTaps);
    });
    const Cut cut(s_, kTaps, 1);
    Shared::run(pool, cut.units() * blocks(), [&](Size task) {
      const Unit u = cut.unit(task / blocks());
      const Size block = task % blocks();
      const float* x = x_ + u.number * s_.nx * s_.plane() * s_.c_in;
      Tile<CHUNK> tile(s_, cut.rows(), kTaps, chunks_, 0);
      // Plane x is at x + 1, counted round.
      for (Size i = u.x_first - 1; i <= u.x_first; ++i) tile.copy(x, i, u.y_first, (i + 1) % kTaps);
      for (Size i = u.x_first; i < u.x_last; ++i) {
        tile.copy(x, i + 1, u.y_first, (i + 2) % kTaps);
        const float* planes[kTaps];
        for (Size dx = 0; dx < kTaps; ++dx) planes[dx] = tile.plane((i + dx) % kTaps);
        for (Size row = u.y_first; row < u.y_last; ++row)
          one_row(tile, planes, kTaps, row - u.y_first, weights.get() + block * chunks_ * part,
                  output(u.number, i, row, block), s_.c_out);
      }
    });
  }

  void winograd(ffi::ThreadPool& pool) {
    const Size part = s_.ky * kTaps * CHUNK * kWidth;
    // [block][product][chunk][dy][dz][channel][kWidth]
    Floats weights = floats(blocks() * kProducts * chunks_ * part);
    Shared::run(pool, blocks() * kProducts, [&](Size i) {
      for (Size chunk = 0; chunk < chunks_; ++chunk)
        pack(i / kProducts, chunk, [&](Size t) { return kTapsOf[i % kProducts][t]; },
             weights.get() + (i * chunks_ + chunk) * part);
    });
    const Cut cut(s_, kProducts, kPlanes);
    Shared::run(pool, cut.units() * blocks(), [&](Size task) {
      const Unit u = cut.unit(task / blocks());
      const Size block = task % blocks(), width = s_.nz * kWidth;
      const float* x = x_ + u.number * s_.nx * s_.plane() * s_.c_in;
      Tile<CHUNK> tile(s_, cut.rows(), kProducts, chunks_, 0);
      Floats products = floats(kProducts * width);
      for (Size i = u.x_first; i < u.x_last; i += kPlanes) {
        tile.transform(x, i - 1, u.y_first);
        for (Size row = u.y_first; row < u.y_last; ++row) {
          for (Size k = 0; k < kProducts; ++k) {
            const float* plane = tile.plane(k);
            one_row(tile, &plane, 1, row - u.y_first,
                    weights.get() + (block * kProducts + k) * chunks_ * part,
                    products.get() + k * width, kWidth);
          }
          float* to[kPlanes];
          for (Size p = 0; p < kPlanes; ++p) to[p] = output(u.number, i + p, row, block);
          four_rows(products.get(), width, to, std::min<Size>(kPlanes, s_.nx - i));
        }
      }
    });
  }

 private:
  static constexpr Size kWidth = V * L;

  Size blocks() const { return s_.c_out / kWidth; }

  float* output(Size number, Size x, Size y, Size block) const {
    return y_ + ((number * s_.nx + x) * s_.ny + y) * s_.nz * s_.c_out + block * kWidth;
  }

  // Taps along X weighed by `weight(tap)`, of a block and a chunk: [dy][dz][channel][kWidth].
  template <typename Weight>
  void pack(Size block, Size chunk, const Weight& weight, float* to) const {
    for (Size tap = 0; tap < s_.ky * kTaps; ++tap)
      for (Size c = 0; c < CHUNK; ++c, to += kWidth)
        for (int v = 0; v < V; ++v) {
          typename Lanes<L>::Type sum = {};
          for (Size dx = 0; dx < kTaps; ++dx) {
            const Size at = (dx * s_.ky * kTaps + tap) * s_.c_in + chunk * CHUNK + c;
            sum += weight(dx) * load<L>(kernel_ + at * s_.c_out + block * kWidth + v * L);
          }
          store<L>(to + v * L, sum);
        }
  }

  void one_row(const Tile<CHUNK>& tile, const float* const* planes, Size count, Size row,
               const float* weights, float* y, Size y_step) const {
    for (Size z = 0; z < s_.nz; z += form_.voxels) {
      const Size begin = std::min(z, s_.nz - form_.voxels);
      const float* from[kTaps];
      for (Size i = 0; i < count; ++i) from[i] = planes[i] + row * tile.row() + begin * CHUNK;
      form_.run(from, count, s_.ky, tile.row(), tile.chunk(), chunks_, weights,
                y + begin * y_step, y_step);
    }
  }

  // OUTPUT m of six rows of products: rows of four planes, of which `count` are wanted.
  void four_rows(const float* products, Size width, float* const* to, Size count) const {
    for (Size z = 0; z < s_.nz; ++z)
      for (int v = 0; v < V; ++v) {
        const float* from = products + z * kWidth + v * L;
        typename Lanes<L>::Type m[kProducts];
#pragma GCC unroll 6
        for (int i = 0; i < kProducts; ++i) m[i] = load<L>(from + i * width);
        const auto a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
        const Size at = z * s_.c_out + v * L;
        store<L>(to[0] + at, m[0] + a + c);
        if (count > 1) store<L>(to[1] + at, b + 2 * d);
        if (count > 2) store<L>(to[2] + at, a + 4 * c);
        if (count > 3) store<L>(to[3] + at, b + 8 * d + m[5]);
      }
  }

  Shape s_;
  const float *x_, *kernel_;
  float* y_;
  Size chunks_;
  Form form_;
};

// --------------------------------------------------------------------- the gradient of the kernel

// J places (tap along Z, channel) by V * L output channels: sum[j] += tile[z * CHUNK + j] * dy[z],
// over rows and Z.
template <int CHUNK, int V, int L, int J>
void places(const float* tile, Size row, const float* dy, Size dy_row, Size dy_step, Size rows,
            Size nz, float* to) {
  typename Lanes<L>::Type sum[J][V];
#pragma GCC unroll 32
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[j][v] = load<L>(to + (j * V + v) * L);
  for (Size y = 0; y < rows; ++y) {
    const float *p = tile + y * row, *d = dy + y * dy_row;
    for (Size z = 0; z < nz; ++z, p += CHUNK, d += dy_step) {
      typename Lanes<L>::Type change[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) change[v] = load<L>(d + v * L);
#pragma GCC unroll 32
      for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[j][v] += p[j] * change[v];
    }
  }
#pragma GCC unroll 32
  for (int j = 0; j < J; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store<L>(to + (j * V + v) * L, sum[j][v]);
}

// The largest part of `all` places, by halves, that the registers hold.
constexpr int held(int all, int vectors) {
  return all * vectors <= kRegisters || all % 2 ? all : held(all / 2, vectors);
}

template <int CHUNK, int V, int L>
class Gradient {
 public:
  Gradient(const Shape& s, const float* x, const float* dy, float* dk)
      : s_(s), x_(x), dy_(dy), dk_(dk), chunks_(s.c_in / CHUNK) {
    const Size by_voxels = std::min(kSums, s.voxels() / kVoxelsOfSum);
    sums_ = std::clamp<Size>(by_voxels, 1, divided(2 * kSums, chunks_));
  }

  void direct(ffi::ThreadPool& pool) {
    const Cut cut(s_, kTaps, 1);
    run(pool, cut, kTaps, [&](const Unit& u, Tile<CHUNK>& tile, float*, float* sums) {
      const float* x = x_ + u.number * s_.nx * s_.plane() * s_.c_in;
      for (Size i = u.x_first - 1; i <= u.x_first; ++i) tile.copy(x, i, u.y_first, (i + 1) % kTaps);
      for (Size i = u.x_first; i < u.x_last; ++i) {
        tile.copy(x, i + 1, u.y_first, (i + 2) % kTaps);
        for (Size dx = 0; dx < kTaps; ++dx)
          one_plane(tile, tile.plane((i + dx) % kTaps), change(u.number, i, u.y_first),
                    u.y_last - u.y_first, sums + dx * plane_size());
      }
    });
    end(pool, kTaps, [](Size product, Size t) { return product == t ? 1.f : 0.f; });
  }

  void winograd(ffi::ThreadPool& pool) {
    const Cut cut(s_, kProducts, kPlanes);
    run(pool, cut, kProducts, [&](const Unit& u, Tile<CHUNK>& tile, float* changes, float* sums) {
      const float* x = x_ + u.number * s_.nx * s_.plane() * s_.c_in;
      const Size rows = u.y_last - u.y_first, plane = rows * s_.nz * s_.c_out;
      for (Size i = u.x_first; i < u.x_last; i += kPlanes) {
        tile.transform(x, i - 1, u.y_first);
        transform(u, i, plane, changes);
        for (Size k = 0; k < kProducts; ++k)
          one_plane(tile, tile.plane(k), changes + k * plane, rows, sums + k * plane_size());
      }
    });
    end(pool, kProducts, [](Size product, Size t) { return kTapsOf[product][t]; });
  }

 private:
  static constexpr Size kWidth = V * L;
  static constexpr int kPlaces = held(kTaps * CHUNK, V);

  // Floats of one product and chunk: [dy][block][dz][channel][kWidth].
  Size plane_size() const { return s_.ky * kTaps * CHUNK * s_.c_out; }

  const float* change(Size number, Size x, Size y) const {
    return dy_ + ((number * s_.nx + x) * s_.ny + y) * s_.nz * s_.c_out;
  }

  // Calls `add(unit, tile, memory for changed dy, sums)`: each chunk of channels, and each part of
  // the units, has sums of its own.
  template <typename Add>
  void run(ffi::ThreadPool& pool, const Cut& cut, Size products, const Add& add) {
    const Size size = products * plane_size();
    sums_ = std::min(sums_, cut.units());
    partial_ = floats(sums_ * chunks_ * size);
    Shared::run(pool, sums_ * chunks_, [&](Size task) {
      float* sums = partial_.get() + task * size;
      std::memset(sums, 0, 4 * size);
      const Size part = task / chunks_;
      Tile<CHUNK> tile(s_, cut.rows(), products, 1, task % chunks_ * CHUNK);
      Floats changes = floats(products * cut.rows() * s_.nz * s_.c_out);
      const Size last = (part + 1) * cut.units() / sums_;
      for (Size i = part * cut.units() / sums_; i < last; ++i)
        add(cut.unit(i), tile, changes.get(), sums);
    });
  }

  void one_plane(const Tile<CHUNK>& tile, const float* x, const float* dy, Size rows,
                 float* to) const {
    for (Size ty = 0; ty < s_.ky; ++ty)
      for (Size block = 0; block < s_.c_out / kWidth; ++block)
        for (Size j = 0; j < kTaps * CHUNK; j += kPlaces, to += kPlaces * kWidth)
          places<CHUNK, V, L, kPlaces>(x + ty * tile.row() + j, tile.row(), dy + block * kWidth,
                                       s_.nz * s_.c_out, s_.c_out, rows, s_.nz, to);
  }

  // Four planes of dy from x on become six: those of OUTPUT's transpose.
  void transform(const Unit& u, Size x, Size plane, float* to) const {
    const std::vector<float> zeros(x + kPlanes > s_.nx ? plane : 0);
    const float* from[kPlanes];
    for (Size i = 0; i < kPlanes; ++i)
      from[i] = x + i < s_.nx ? change(u.number, x + i, u.y_first) : zeros.data();
    for (Size at = 0; at < plane; at += L) {
      typename Lanes<L>::Type d[kPlanes];
#pragma GCC unroll 4
      for (int i = 0; i < kPlanes; ++i) d[i] = load<L>(from[i] + at);
      const auto a = d[0] + d[2], b = d[1] + d[3], c = d[0] + 4 * d[2], e = 2 * d[1] + 8 * d[3];
      store<L>(to + at, d[0]);
      store<L>(to + at + plane, a + b);
      store<L>(to + at + 2 * plane, a - b);
      store<L>(to + at + 3 * plane, c + e);
      store<L>(to + at + 4 * plane, c - e);
      store<L>(to + at + 5 * plane, d[3]);
    }
  }

  // dk[t] = sum over products of weight(product, t) * their sums.
  template <typename Weight>
  void end(ffi::ThreadPool& pool, Size products, const Weight& weight) {
    const Size blocks = s_.c_out / kWidth, size = products * plane_size();
    Shared::run(pool, chunks_ * s_.ky * blocks, [&](Size task) {
      const Size block = task % blocks, ty = task / blocks % s_.ky, chunk = task / blocks / s_.ky;
      const float* own = partial_.get() + chunk * size +
                         (ty * blocks + block) * kTaps * CHUNK * kWidth;
      for (Size j = 0; j < kTaps * CHUNK; ++j)
        for (int v = 0; v < V; ++v) {
          typename Lanes<L>::Type total[kTaps] = {};
          for (Size k = 0; k < products; ++k) {
            typename Lanes<L>::Type sum = {};
            for (Size i = 0; i < sums_; ++i)
              sum += load<L>(own + i * chunks_ * size + k * plane_size() + j * kWidth + v * L);
            for (Size t = 0; t < kTaps; ++t) total[t] += weight(k, t) * sum;
          }
          for (Size t = 0; t < kTaps; ++t) {
            const Size tap = (t * s_.ky + ty) * kTaps + j / CHUNK;
            const Size at = tap * s_.c_in + chunk * CHUNK + j % CHUNK;
            store<L>(dk_ + at * s_.c_out + block * kWidth + v * L, total[t]);
          }
        }
    });
  }

  Shape s_;
  const float *x_, *dy_;
  float* dk_;
  Size chunks_, sums_;
  Floats partial_;
};

// --------------------------------------------------------------------------------- what is called

template <int N>
using Number = std::integral_constant<int, N>;

// Calls `form(chunk of input channels, vectors, lanes)` with what suits these channels.
template <typename Form>
bool by_channels(const Shape& s, const Form& form) {
  const auto with = [&](auto vectors, auto lanes) {
    if (s.c_in % 16 == 0) return form(Number<16>(), vectors, lanes), true;
    if (s.c_in % 8 == 0) return form(Number<8>(), vectors, lanes), true;
    if (s.c_in % 4 == 0) return form(Number<4>(), vectors, lanes), true;
    if (s.c_in == 1) return form(Number<1>(), vectors, lanes), true;
    return false;
  };
  if (s.c_out % (2 * kLanes) == 0) return with(Number<2>(), Number<kLanes>());
  if (s.c_out % kLanes == 0) return with(Number<1>(), Number<kLanes>());
  if (s.c_out % 8 == 0) return with(Number<1>(), Number<8>());
  return false;
}

// Winograd's form where there are planes for it; false: no form at all.
template <template <int, int, int> class Work, typename... Arrays>
bool run(ffi::ThreadPool& pool, const Shape& s, Arrays... arrays) {
  return by_channels(s, [&](auto chunk, auto vectors, auto lanes) {
    Work<chunk(), vectors(), lanes()> work(s, arrays...);
    if constexpr (chunk() > 1) {
      if (s.nx >= kPlanes) return work.winograd(pool);
    }
    work.direct(pool);
  });
}

using Dimensions = ffi::AnyBuffer::Dimensions;
using Input = ffi::Buffer<ffi::F32>;
using Output = ffi::Result<Input>;

// Of a volume (B, X, Y, Z, C_in) and a kernel (3, 1 or 3, 3, C_in, C_out).
bool shape_of(Dimensions x, Dimensions kernel, Shape* s) {
  if (x.size() != 5 || kernel.size() != 5) return false;
  *s = Shape{x[0], x[1], x[2], x[3], x[4], kernel[4], kernel[1]};
  return kernel[0] == 3 && (s->ky == 1 || s->ky == 3) && kernel[2] == 3 && kernel[3] == s->c_in &&
         s->voxels() > 0;
}

ffi::Error ended(bool known) {
  return known ? ffi::Error::Success() : ffi::Error::InvalidArgument("jaxmark: no such form");
}

ffi::Error Convolve(ffi::ThreadPool pool, Input x, Input kernel, Output y) {
  Shape s;
  return ended(shape_of(x.dimensions(), kernel.dimensions(), &s) &&
               run<Value>(pool, s, x.typed_data(), kernel.typed_data(), y->typed_data()));
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Input x, Input dy, Output dk) {
  Shape s;
  return ended(shape_of(x.dimensions(), dk->dimensions(), &s) &&
               run<Gradient>(pool, s, x.typed_data(), dy.typed_data(), dk->typed_data()));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxmark_convolve, Convolve,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Input>().Arg<Input>().Ret<Input>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxmark_convolve_gradient, KernelGradient,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Input>().Arg<Input>().Ret<Input>());
