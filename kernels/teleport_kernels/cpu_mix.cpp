// Local step + teleport + gossip over column tiles, one pass over memory:
//
//   y[b]           = x[source[b]] - lr[b] * u(grad[b], momentum[b], x[source[b]])
//   out[target[a]] = sum_j weights[a, j] * y[j]
//
// A tile is a range of columns narrow enough that the y of all rows of one tile stay in the cache of
// a core, so that each input is read from memory once and each output written once, whatever the
// degree of the graph. y is copied there even without a step: rows lie far apart in memory, often at
// multiples of the page, where they would displace each other in the cache. Every product and every
// sum is rounded on its own, neighbours in ascending order: the results are those of reference.py
// bit for bit (compile with -ffp-contract=off).

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t AHEAD = 16;  // rows

struct BF16 {
    uint16_t bits;
};

inline float load(const BF16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline float load(const float v) { return v; }
inline double load(const double v) { return v; }

inline void store(BF16& to, const float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    // round to nearest even; a NaN stays one
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t(v != v ? 0x7fc0 : rounded);
}
inline void store(float& to, const float v) { to = v; }
inline void store(double& to, const double v) { to = v; }

#ifdef TK_HALF
inline float load(const _Float16 v) { return float(v); }
inline void store(_Float16& to, const float v) { to = _Float16(v); }
#endif

template <class T, class A> inline void widen(A* __restrict to, const T* __restrict from, int64_t n) {
    for (int64_t c = 0; c < n; ++c) to[c] = load(from[c]);
}
template <class T, class A>
inline void narrow(T* __restrict to, const A* __restrict from, const int64_t n) {
    for (int64_t c = 0; c < n; ++c) store(to[c], from[c]);
}

// One vector register, and a store of it that goes past the cache.
#if defined(__AVX512F__)
#define TK_BYTES 64
#define TK_STREAM(to, v) _mm512_stream_si512((__m512i*)(to), (__m512i)(v))
#elif defined(__AVX__)
#define TK_BYTES 32
#define TK_STREAM(to, v) _mm256_stream_si256((__m256i*)(to), (__m256i)(v))
#elif defined(__SSE2__)
#define TK_BYTES 16
#define TK_STREAM(to, v) _mm_stream_si128((__m128i*)(to), (__m128i)(v))
#else
#define TK_BYTES 16
#define TK_STREAM(to, v) (*(to) = (v))
#endif
template <class A> struct Wide {
    typedef A Vector __attribute__((vector_size(TK_BYTES), may_alias));
    static constexpr int64_t size = TK_BYTES / sizeof(A);
};

// Elements of `to` before the first one that a register may be streamed to.
template <class T> inline int64_t unaligned(const T* to, const int64_t n) {
    const int64_t head = int64_t(-uintptr_t(to) % TK_BYTES / sizeof(T));
    return head < n ? head : n;
}

// Copy past the cache: the destination is neither read first nor kept.
template <class T> inline void stream(T* __restrict to, const T* __restrict from, const int64_t n) {
    using Vector = typename Wide<int32_t>::Vector;
    constexpr int64_t V = TK_BYTES / sizeof(T);
    int64_t c = unaligned(to, n);
    std::memcpy(to, from, c * sizeof(T));
    for (; c + V <= n; c += V) {
        Vector v;
        std::memcpy(&v, from + c, TK_BYTES);
        TK_STREAM((Vector*)(to + c), v);
    }
    std::memcpy(to + c, from + c, (n - c) * sizeof(T));
}

// Memory of one thread that begins where a register may.
template <class A> struct Buffer {
    A* const data;
    explicit Buffer(int64_t n) : data((A*)::operator new(n * sizeof(A), LINE)) {}
    ~Buffer() { ::operator delete(data, LINE); }
    Buffer(const Buffer&) = delete;
    static constexpr std::align_val_t LINE{64};
};

template <class T, class A> struct Pass {
    int64_t k, width;
    const int64_t *indptr, *indices;
    int64_t n_runs;
    const int64_t* runs;
    const A* weights;
    const T* x;
    int64_t x_stride;
    const int64_t* source;
    const T* grad;
    int64_t grad_stride;
    T* momentum;
    int64_t momentum_stride;
    const A* lr;
    A beta, decay;
    bool nesterov;
    T* out;
    int64_t out_stride;
    const int64_t* target;

    // y of one row and tile, in the accumulation type.
    void descend(A* __restrict y, int64_t b, int64_t from, int64_t n) const {
        const T* __restrict xr = x + (source ? source[b] : b) * x_stride + from;
        if (!grad) {
            widen(y, xr, n);
            return;
        }
        const T* __restrict g = grad + b * grad_stride + from;
        const A step = lr[b];
        if (!momentum) {
            if (decay == 0) {
                for (int64_t c = 0; c < n; ++c) y[c] = load(xr[c]) - step * load(g[c]);
            } else {
                for (int64_t c = 0; c < n; ++c) {
                    const A v = load(xr[c]);
                    y[c] = v - step * (load(g[c]) + decay * v);
                }
            }
            return;
        }
        T* __restrict mr = momentum + b * momentum_stride + from;
        const bool look_ahead = nesterov;
        const A keep = beta, shrink = decay;
        for (int64_t c = 0; c < n; ++c) {
            const A v = load(xr[c]);
            A d = load(g[c]);
            if (shrink != 0) d = d + shrink * v;
            const A m = keep * load(mr[c]) + d;
            store(mr[c], m);
            y[c] = v - step * (look_ahead ? d + keep * m : m);
        }
    }

    // One output row over one tile, in whole registers: up to 63 columns more than asked for. They
    // go to the row itself where it takes whole registers, else (and what is left of it) to line;
    // the column from which the result is in line is returned.
    int64_t gather(T* to, T* line, const A* y, int64_t pitch, int64_t i, int64_t n,
                   bool past) const {
        using Vector = typename Wide<A>::Vector;
        constexpr int64_t V = Wide<A>::size;
        constexpr bool same_type = sizeof(T) == sizeof(A);
        const bool direct = same_type && to && uintptr_t(to) % TK_BYTES == 0;
        const int64_t whole = direct ? n / (4 * V) * (4 * V) : 0;
        const int64_t first = indptr[i], last = indptr[i + 1];
        for (int64_t c = 0; c < n; c += 4 * V) {
            Vector s[4] = {};
            for (int64_t e = first; e < last; ++e) {
                const Vector* r = (const Vector*)(y + indices[e] * pitch + c);
                const A w = weights[e];
                if (e == first)
                    for (int v = 0; v < 4; ++v) s[v] = w * r[v];
                else
                    for (int v = 0; v < 4; ++v) s[v] = s[v] + w * r[v];
            }
            if (c >= whole)
                narrow(line + c, (const A*)s, 4 * V);
            else if (past)
                for (int v = 0; v < 4; ++v) TK_STREAM((Vector*)(to + c) + v, s[v]);
            else
                for (int v = 0; v < 4; ++v) ((Vector*)(to + c))[v] = s[v];
        }
        return whole;
    }

    // The inputs of one row and tile: short runs of memory are not fetched ahead by themselves.
    void prefetch(int64_t b, int64_t from, int64_t n) const {
        const auto fetch = [&](const T* p) {
            for (int64_t c = 0; c < n; c += 64 / sizeof(T)) __builtin_prefetch(p + from + c);
        };
        fetch(x + (source ? source[b] : b) * x_stride);
        if (grad) fetch(grad + b * grad_stride);
        if (momentum) fetch(momentum + b * momentum_stride);
    }

    // tile: a multiple of 64 columns.
    void run(int64_t tile, int threads, bool past) const {
        const int64_t tiles = (width + tile - 1) / tile;
#pragma omp parallel num_threads(threads)
        {
            const Buffer<A> y(k * tile);
            const Buffer<T> line(tile);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t from = t * tile, n = width - from < tile ? width - from : tile;
                for (int64_t b = 0; b < k; ++b) {
                    if (b + AHEAD < k) prefetch(b + AHEAD, from, n);
                    descend(y.data + b * tile, b, from, n);
                }
                for (int64_t r = 0; r < n_runs; ++r) {
                    const auto row = [&](int64_t i) {
                        return out + (target ? target[i] : i) * out_stride + from;
                    };
                    const int64_t first = runs[r], last = runs[r + 1];
                    T* alone = last == first + 1 ? row(first) : nullptr;
                    const int64_t c = gather(alone, line.data, y.data, tile, first, n, past);
                    for (int64_t i = first; i < last; ++i) {
                        if (past)
                            stream(row(i) + c, line.data + c, n - c);
                        else
                            std::memcpy(row(i) + c, line.data + c, (n - c) * sizeof(T));
                    }
                }
            }
#ifdef __SSE2__
            if (past) _mm_sfence();
#endif
        }
    }
};

// v[0] <- the sum of n values, by halving: v[c] + v[c + half], again and again.
template <class A> inline A halved(A* v, int64_t n) {
    while (n > 1) {
        const int64_t half = (n + 1) / 2;
        for (int64_t c = 0; c < n - half; ++c) v[c] = v[c] + v[c + half];
        n = half;
    }
    return v[0];
}

// Mean row of every group and the squared distances to it, summed over the rows of each column, then
// over columns: blocks by halving, and the blocks' sums by halving. A tile is a number of blocks.
template <class T, class A>
void consensus(int64_t groups, int64_t width, const int64_t* starts, const T* x, int64_t stride,
               A* mean, A* distance, int64_t block, int64_t tile, int threads) {
    const int64_t tiles = (width + tile - 1) / tile, blocks = (width + block - 1) / block;
    std::vector<A> partial(groups * blocks);
#pragma omp parallel num_threads(threads)
    {
        std::vector<A> squares(tile);
#pragma omp for schedule(static) collapse(2)
        for (int64_t g = 0; g < groups; ++g) {
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t first = starts[g], last = starts[g + 1];
                const int64_t from = t * tile, n = width - from < tile ? width - from : tile;
                const T* const rows = x + from;
                A* __restrict m = mean + g * width + from;
                A* __restrict s = squares.data();
                for (int64_t c = 0; c < n; ++c) m[c] = load(rows[first * stride + c]);
                for (int64_t i = first + 1; i < last; ++i) {
                    const T* __restrict r = rows + i * stride;
                    for (int64_t c = 0; c < n; ++c) m[c] = m[c] + load(r[c]);
                }
                const A size = A(last - first);
                for (int64_t c = 0; c < n; ++c) m[c] = m[c] / size;
                std::memset(s, 0, tile * sizeof(A));  // also beyond the last column
                for (int64_t i = first; i < last; ++i) {
                    const T* __restrict r = rows + i * stride;
                    for (int64_t c = 0; c < n; ++c) {
                        const A d = load(r[c]) - m[c];
                        s[c] = s[c] + d * d;
                    }
                }
                for (int64_t c = 0; c < n; c += block)
                    partial[g * blocks + (from + c) / block] = halved(s + c, block);
            }
        }
    }
    for (int64_t g = 0; g < groups; ++g) distance[g] = halved(&partial[g * blocks], blocks);
}

}  // namespace

extern "C" {

struct Arguments {
    int64_t dtype;  // 0 float32, 1 float64, 2 bfloat16, 3 float16
    int64_t k, width;
    const int64_t *indptr, *indices;
    int64_t n_runs;
    const int64_t* runs;
    const void *weights, *x;
    int64_t x_stride;
    const int64_t* source;
    const void* grad;
    int64_t grad_stride;
    void* momentum;
    int64_t momentum_stride;
    const void* lr;
    double beta, decay;
    int64_t nesterov;
    void* out;
    int64_t out_stride;
    const int64_t* target;
    int64_t tile, threads, past;
};

// 0, or 1 for a dtype that this build has not.
int teleport_kernels_mix(const Arguments* a) {
#define TK_RUN(T, A)                                                                              \
    Pass<T, A>{a->k, a->width, a->indptr, a->indices, a->n_runs, a->runs, (const A*)a->weights,   \
               (const T*)a->x, a->x_stride, a->source, (const T*)a->grad, a->grad_stride,         \
               (T*)a->momentum, a->momentum_stride, (const A*)a->lr, A(a->beta), A(a->decay),     \
               a->nesterov != 0, (T*)a->out, a->out_stride, a->target}                            \
        .run(a->tile, int(a->threads), a->past != 0)
    switch (a->dtype) {
        case 0: TK_RUN(float, float); return 0;
        case 1: TK_RUN(double, double); return 0;
        case 2: TK_RUN(BF16, float); return 0;
#ifdef TK_HALF
        case 3: TK_RUN(_Float16, float); return 0;
#endif
        default: return 1;
    }
}

int teleport_kernels_consensus(int64_t dtype, int64_t groups, int64_t width, const int64_t* starts,
                               const void* x, int64_t stride, void* mean, void* distance,
                               int64_t block, int64_t tile, int64_t threads) {
#define TK_CONSENSUS(T, A)                                                                        \
    consensus<T, A>(groups, width, starts, (const T*)x, stride, (A*)mean, (A*)distance, block,    \
                    tile, int(threads))
    switch (dtype) {
        case 0: TK_CONSENSUS(float, float); return 0;
        case 1: TK_CONSENSUS(double, double); return 0;
        case 2: TK_CONSENSUS(BF16, float); return 0;
#ifdef TK_HALF
        case 3: TK_CONSENSUS(_Float16, float); return 0;
#endif
        default: return 1;
    }
}
}
