// 3x3 convolutions by Winograd's F(4x4, 3x3) for XLA on a CPU.
//
// The output is cut into tiles of 4x4. A tile is a polynomial product, taken at the points 0, a, -a, b, -b, infinity
// along each axis: 36 products for 144. Per product k this is a matrix product over all tiles,
//
//   convolution         y  = At M At',   M_k  = V_k U_k,        V = Bt x Bt', U = G w G'
//   its gradient to w   dw = G' dU G,    dU_k = V_k' Z_k,       Z = A dy A'
//
// (Lavin & Gray, 2016, arXiv:1509.09308; the second line is the adjoint of the first). The gradient to x is the
// convolution with the kernel turned around. Tiles are taken kTiles at a time, so that what lies between the steps
// stays in the cache; XLA's own threads share each step.
//
// Layouts, float32: x, y [n, H, W, channels]; w [3, 3, C, D]; V [36][tile][C]; U, dU [36][panel][C][width];
// M, Z [36][panel][tile][width], where a panel is `width` of the D channels.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// Floats of a register, and rows of the block of a product that is kept in registers: two vectors a row.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRows = 12;
#else
constexpr int kLanes = 4, kRows = 6;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

constexpr int kPoints = 36;
constexpr int64_t kTiles = 96;  // a multiple of kRows
// Longest sum that is added up in one register: its parts are added up apart, which halves the rounding error.
constexpr int64_t kDepth = 64;

// Points that are powers of sqrt(2) round least: with the usual 1 and 2 the error is twice as large.
constexpr double s2 = 1.4142135623730951;
constexpr float a = s2 / 2, b = s2, a2 = 0.5, b2 = 2, a3 = s2 / 4, b3 = 2 * s2;
// Denominators of the interpolation: the product of the distances to the other points.
constexpr float n0 = 1, na = 2 * a2 * (a2 - b2), nb = 2 * b2 * (b2 - a2);

template <int S>
inline void Pairs(Vec even_a, Vec odd_a, Vec even_b, Vec odd_b, Vec* out) {
  out[S] = even_a + odd_a;
  out[2 * S] = even_a - odd_a;
  out[3 * S] = even_b + odd_b;
  out[4 * S] = even_b - odd_b;
}

// One axis of each transform, kIn numbers to kOut; both lie S apart. Points of two signs share their even and odd parts.

struct InputTransform {  // Bt
  static constexpr int kIn = 6, kOut = 6;
  template <int S>
  static void Run(const Vec* in, Vec* out) {
    const Vec even_a = in[4 * S] - b2 * in[2 * S], odd_a = a * (in[3 * S] - b2 * in[S]);
    const Vec even_b = in[4 * S] - a2 * in[2 * S], odd_b = b * (in[3 * S] - a2 * in[S]);
    out[0] = n0 * in[0] - (a2 + b2) * in[2 * S] + in[4 * S];
    Pairs<S>(even_a, odd_a, even_b, odd_b, out);
    out[5 * S] = n0 * in[S] - (a2 + b2) * in[3 * S] + in[5 * S];
  }
};

struct OutputTransform {  // At
  static constexpr int kIn = 6, kOut = 4;
  template <int S>
  static void Run(const Vec* in, Vec* out) {
    const Vec even_a = in[S] + in[2 * S], odd_a = in[S] - in[2 * S];
    const Vec even_b = in[3 * S] + in[4 * S], odd_b = in[3 * S] - in[4 * S];
    out[0] = in[0] + even_a + even_b;
    out[S] = a * odd_a + b * odd_b;
    out[2 * S] = a2 * even_a + b2 * even_b;
    out[3 * S] = a3 * odd_a + b3 * odd_b + in[5 * S];
  }
};

struct OutputAdjoint {  // A
  static constexpr int kIn = 4, kOut = 6;
  template <int S>
  static void Run(const Vec* in, Vec* out) {
    const Vec even_a = in[0] + a2 * in[2 * S], odd_a = a * in[S] + a3 * in[3 * S];
    const Vec even_b = in[0] + b2 * in[2 * S], odd_b = b * in[S] + b3 * in[3 * S];
    out[0] = in[0];
    Pairs<S>(even_a, odd_a, even_b, odd_b, out);
    out[5 * S] = in[3 * S];
  }
};

struct KernelTransform {  // G
  static constexpr int kIn = 3, kOut = 6;
  template <int S>
  static void Run(const Vec* in, Vec* out) {
    const Vec even_a = (in[0] + a2 * in[2 * S]) * (1 / na), odd_a = in[S] * (a / na);
    const Vec even_b = (in[0] + b2 * in[2 * S]) * (1 / nb), odd_b = in[S] * (b / nb);
    out[0] = in[0] * (1 / n0);
    Pairs<S>(even_a, odd_a, even_b, odd_b, out);
    out[5 * S] = in[2 * S];
  }
};

struct KernelAdjoint {  // G'
  static constexpr int kIn = 6, kOut = 3;
  template <int S>
  static void Run(const Vec* in, Vec* out) {
    const Vec even_a = (in[S] + in[2 * S]) * (1 / na), odd_a = (in[S] - in[2 * S]) * (a / na);
    const Vec even_b = (in[3 * S] + in[4 * S]) * (1 / nb), odd_b = (in[3 * S] - in[4 * S]) * (b / nb);
    out[0] = in[0] * (1 / n0) + even_a + even_b;
    out[S] = odd_a + odd_b;
    out[2 * S] = a2 * even_a + b2 * even_b + in[5 * S];
  }
};

// Both axes: kIn x kIn to kOut x kOut.
template <typename T>
inline void Transform(const Vec* in, Vec* out) {
  Vec half[T::kOut * T::kIn];
  // Down the columns of `in` and `half` alike; a row of them is kIn long.
  for (int j = 0; j < T::kIn; ++j) T::template Run<T::kIn>(in + j, half + j);
  for (int i = 0; i < T::kOut; ++i) T::template Run<1>(half + i * T::kIn, out + i * T::kOut);
}

// In one copy for all threads: where a compiler makes two, it may fuse products and sums in one and not in the other, and
// the bits of a result would depend on which thread came first.
template <typename Body>
[[gnu::noinline]] void Run(const Body& body, int64_t i) {
  body(i);
}

// Runs body(0), ..., body(n - 1), shared with the threads of the pool that have time. What a late thread finds done
// it leaves alone: nothing waits for a thread that is busy elsewhere.
template <typename Body>
void Parallel(ffi::ThreadPool& pool, int64_t n, const Body& body) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  auto work = [state, n, &body] {
    for (int64_t i; (i = state->next.fetch_add(1)) < n;) {
      Run(body, i);
      state->done.fetch_add(1);
    }
  };
  const int64_t helpers = std::min(pool.num_threads(), n) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));
  work();
  while (state->done.load() < n) std::this_thread::yield();
}

struct Image {
  int64_t n, height, width, channels;
  int64_t rows() const { return (height + 3) / 4; }
  int64_t columns() const { return (width + 3) / 4; }
  int64_t tiles() const { return n * rows() * columns(); }

  // Offsets of the N x N pixels from (4 row - Edge, 4 column - Edge) on, -1 outside of the image.
  template <int N, int Edge>
  void Pixels(int64_t tile, int64_t* offset) const {
    const int64_t top = tile / columns() % rows() * 4 - Edge, left = tile % columns() * 4 - Edge;
    const int64_t image = tile / (rows() * columns());
    for (int64_t i = 0; i < N * N; ++i) {
      const int64_t y = top + i / N, x = left + i % N;
      const bool inside = y >= 0 && y < height && x >= 0 && x < width;
      offset[i] = inside ? ((image * height + y) * width + x) * channels : -1;
    }
  }
};

inline Vec Load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
inline void Store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }

// Factors of the 36 products of one tile, for all channels: T of its pixels, from Edge before it on.
template <typename T, int Edge, typename To>
void TransformTile(const float* x, const Image& image, int64_t tile, const To& to) {
  constexpr int kPixels = T::kIn * T::kIn;
  int64_t offset[kPixels];
  image.Pixels<T::kIn, Edge>(tile, offset);
  for (int64_t c = 0; c < image.channels; c += kLanes) {
    Vec pixels[kPixels], points[kPoints];
    for (int i = 0; i < kPixels; ++i) pixels[i] = offset[i] < 0 ? Vec{} : Load(x + offset[i] + c);
    Transform<T>(pixels, points);
    for (int k = 0; k < kPoints; ++k) Store(to(k, c), points[k]);
  }
}

// Where product k of row r (a tile or an input channel), output channel d, is kept.
struct Panels {
  float* data;
  int64_t rows, channels, width;
  // An odd number of cache lines, so that the 36 streams do not meet in the same sets of the cache.
  int64_t stride() const { return rows * channels + 16; }
  static int64_t Size(int64_t rows, int64_t channels) { return kPoints * (rows * channels + 16); }
  float* end() const { return data + Size(rows, channels); }
  float* At(int k, int64_t row, int64_t d) const {
    return data + k * stride() + (d / width * rows + row) * width + d % width;
  }
};

int64_t Width(int64_t channels) { return channels % (2 * kLanes) ? kLanes : 2 * kLanes; }

// The left factors of the products: product k, row r, term i is data[k * stride + r * row + i * term].
struct Left {
  const float* data;
  int64_t stride, row, term;
  Left At(int64_t k, int64_t r, int64_t i) const { return {data + k * stride + r * row + i * term, stride, row, term}; }
};

// out[r][:] (+)= sum_i left[r][i] right[i][:], for R rows of N vectors, in registers.
template <int R, int N>
inline void Block(Left left, const float* right, int64_t depth, float* out, bool add) {
  Vec sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) sum[r][j] = Vec{};
  for (int64_t i = 0; i < depth; ++i) {
    Vec across[N];
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) across[j] = Load(right + (i * N + j) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const float value = left.data[r * left.row + i * left.term];
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) sum[r][j] += value * across[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) {
      float* const to = out + (r * N + j) * kLanes;
      Store(to, add ? Load(to) + sum[r][j] : sum[r][j]);
    }
}

// A Block of `rows` <= R rows.
template <int R, int N>
void Rest(int64_t rows, Left left, const float* right, int64_t depth, float* out, bool add) {
  if constexpr (R > 0) {
    if (rows == R) return Block<R, N>(left, right, depth, out, add);
    Rest<R - 1, N>(rows, left, right, depth, out, add);
  }
}

template <int N>
void Product(int64_t rows, Left left, const float* right, int64_t depth, float* out, bool add) {
  for (int64_t r = 0; r < rows; r += kRows)
    Rest<kRows, N>(std::min<int64_t>(kRows, rows - r), left.At(0, r, 0), right, depth, out + r * N * kLanes, add);
}

// out (+)= left right for all 36 products: rows x depth times depth x channels.
void Products(ffi::ThreadPool& pool, Left left, const Panels& right, int64_t depth, const Panels& out, int64_t rows,
              bool add) {
  const int64_t panels = out.channels / out.width;
  const auto product = out.width == kLanes ? Product<1> : Product<2>;
  Parallel(pool, kPoints * panels, [&](int64_t task) {
    const int64_t k = task / panels, d = task % panels * out.width;
    for (int64_t i = 0; i < depth; i += kDepth)
      product(rows, left.At(k, 0, i), right.At(k, i, d), std::min(kDepth, depth - i), out.At(k, 0, d), add || i > 0);
  });
}

// Runs body(input channel, first of kLanes output channels) for a whole kernel, in the order of its panels in memory.
template <typename Body>
void ForKernel(ffi::ThreadPool& pool, const Panels& u, const Body& body) {
  constexpr int64_t kRun = 32;
  const int64_t runs = (u.rows + kRun - 1) / kRun;
  Parallel(pool, runs * (u.channels / u.width), [&](int64_t task) {
    const int64_t first = task % runs * kRun, panel = task / runs * u.width;
    for (int64_t i = first; i < std::min(first + kRun, u.rows); ++i)
      for (int64_t j = panel; j < panel + u.width; j += kLanes) body(i, j);
  });
}

// Memory to work in, which is kept for the next call: it is in the cache still, where a new buffer of XLA's is not.
// Calls at the same time have one each.
class Workspace {
 public:
  explicit Workspace(int64_t floats) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!kept_.empty()) {
        memory_ = std::move(kept_.back());
        kept_.pop_back();
      }
    }
    if (memory_.floats < floats) memory_ = {std::make_unique<Line[]>((floats + 15) / 16), floats};
  }
  ~Workspace() {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(std::move(memory_));
  }
  float* data() const { return memory_.lines[0].floats; }

 private:
  struct Line {
    alignas(64) float floats[16];
    Line() {}  // not cleared
  };
  struct Memory {
    std::unique_ptr<Line[]> lines;
    int64_t floats = 0;
  };
  inline static std::mutex mutex_;
  inline static std::vector<Memory> kept_;
  Memory memory_;
};

// What a call works on: U, and V and M of kTiles tiles; or dU, and V and Z.
struct Call {
  Image from, to;
  int64_t block;
  Workspace workspace;
  Panels kernel, left, right;

  Call(ffi::Span<const int64_t> x, ffi::Span<const int64_t> y)
      : from{x[0], x[1], x[2], x[3]},
        to{y[0], y[1], y[2], y[3]},
        block(std::min(kTiles, from.tiles())),
        workspace(Panels::Size(from.channels, to.channels) + Panels::Size(block, from.channels) +
                  Panels::Size(block, to.channels)),
        kernel{workspace.data(), from.channels, to.channels, Width(to.channels)},
        left{kernel.end(), block, from.channels, from.channels},
        right{left.end(), block, to.channels, Width(to.channels)} {}
};

ffi::Error Convolution(ffi::ThreadPool pool, bool turned, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> w,
                       ffi::ResultBuffer<ffi::F32> y) {
  const Call call(x.dimensions(), y->dimensions());
  const Panels &u = call.kernel, &v = call.left, &m = call.right;
  const int64_t c = call.from.channels, d = call.to.channels;

  const float* kernel = w.typed_data();
  ForKernel(pool, u, [&](int64_t i, int64_t j) {
    Vec taps[9], points[kPoints];
    for (int s = 0; s < 9; ++s) {
      if (turned) {
        for (int l = 0; l < kLanes; ++l) taps[s][l] = kernel[((8 - s) * d + j + l) * c + i];
      } else {
        taps[s] = Load(kernel + (s * c + i) * d + j);
      }
    }
    Transform<KernelTransform>(taps, points);
    for (int k = 0; k < kPoints; ++k) Store(u.At(k, i, j), points[k]);
  });

  for (int64_t start = 0; start < call.from.tiles(); start += call.block) {
    const int64_t count = std::min(call.block, call.from.tiles() - start);
    Parallel(pool, count, [&](int64_t t) {
      const auto to = [&](int k, int64_t i) { return v.At(k, t, i); };
      TransformTile<InputTransform, 1>(x.typed_data(), call.from, start + t, to);
    });
    Products(pool, {v.data, v.stride(), c, 1}, u, c, m, count, false);
    Parallel(pool, count, [&](int64_t t) {
      int64_t offset[16];
      call.to.Pixels<4, 0>(start + t, offset);
      for (int64_t j = 0; j < d; j += kLanes) {
        Vec points[kPoints], pixels[16];
        for (int k = 0; k < kPoints; ++k) points[k] = Load(m.At(k, t, j));
        Transform<OutputTransform>(points, pixels);
        for (int i = 0; i < 16; ++i)
          if (offset[i] >= 0) Store(y->typed_data() + offset[i] + j, pixels[i]);
      }
    });
  }
  return ffi::Error::Success();
}

ffi::Error KernelGradient(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> dy,
                          ffi::ResultBuffer<ffi::F32> dw) {
  const Call call(x.dimensions(), dy.dimensions());
  const Panels &du = call.kernel, &v = call.left, &z = call.right;
  const int64_t c = call.from.channels, d = call.to.channels;

  for (int64_t start = 0; start < call.from.tiles(); start += call.block) {
    const int64_t count = std::min(call.block, call.from.tiles() - start);
    Parallel(pool, count, [&](int64_t t) {
      const auto to_v = [&](int k, int64_t i) { return v.At(k, t, i); };
      const auto to_z = [&](int k, int64_t j) { return z.At(k, t, j); };
      TransformTile<InputTransform, 1>(x.typed_data(), call.from, start + t, to_v);
      TransformTile<OutputAdjoint, 0>(dy.typed_data(), call.to, start + t, to_z);
    });
    Products(pool, {v.data, v.stride(), 1, c}, z, count, du, c, start > 0);
  }

  float* kernel = dw->typed_data();
  ForKernel(pool, du, [&](int64_t i, int64_t j) {
    Vec points[kPoints], taps[9];
    for (int k = 0; k < kPoints; ++k) points[k] = Load(du.At(k, i, j));
    Transform<KernelAdjoint>(points, taps);
    for (int s = 0; s < 9; ++s) Store(kernel + (s * c + i) * d + j, taps[s]);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(WinogradConvolution, Convolution,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("turned")
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(WinogradKernelGradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
