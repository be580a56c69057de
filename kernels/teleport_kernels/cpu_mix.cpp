// Local step + teleport + gossip over column tiles, one pass over memory:
//
//   y[b]           = x[source[b]] - lr[b] * u(grad[b], momentum[b], x[source[b]])
//   out[target[a]] = sum_j weights[a, j] * y[j]
//
// A tile is a range of columns of a part, which is one block of the matrix or several small ones. It
// is narrow enough that the y of all its rows stay in the cache of a core, so that each input is read
// from memory once and each output written once, whatever the degree of the graph. y is copied there
// even without a step: rows lie far apart in memory, often at multiples of the page, where they would
// displace each other in the cache. Every product and every sum is rounded on its own, neighbours in
// ascending order: the results are those of reference.py bit for bit (compile with
// -ffp-contract=off).

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "mixing.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Between operations of torch its threads are the ones to use: they look for work for a while, and
// others would have to share the cores with them.
inline void run_in_openmp(int64_t most, int64_t n, teleport::Pool::Body body, void* context) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(int(most)) schedule(static)
    for (int64_t i = 0; i < n; ++i) body(context, i, omp_get_thread_num());
#else
    teleport::run_in_pool(most, n, body, context);
#endif
}

constexpr int64_t AHEAD = 8;    // rows that are fetched before they are needed
constexpr int64_t LONG = 1024;  // bytes of a row in a tile from which the machine does it better

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
#define TK_INLINE __attribute__((always_inline)) inline
template <class A> struct Wide {
    typedef A Vector __attribute__((vector_size(TK_BYTES), may_alias));
    static constexpr int64_t size = TK_BYTES / sizeof(A);
};
using Floats = Wide<float>::Vector;
using Words = Wide<uint32_t>::Vector;
typedef uint16_t Halves __attribute__((vector_size(TK_BYTES / 2), may_alias));

// A register of bfloat16 or float16 values to float32, and back by rounding to nearest even.
struct BF16 {
    uint16_t bits;
};
inline Floats widened(BF16, const Halves h) {
    return (Floats)(__builtin_convertvector(h, Words) << 16);
}
inline Halves narrowed(BF16, const Floats v) {
    const Words bits = (Words)v, nan = (Words)(v != v);  // a NaN stays one
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#if defined(__AVX512F__)
    return (Halves)_mm512_cvtepi32_epi16((__m512i)(nan ? Words{} + 0x7fc0 : rounded));
#else
    return __builtin_convertvector(nan ? Words{} + 0x7fc0 : rounded, Halves);
#endif
}
#ifdef TK_HALF
inline Floats widened(_Float16, const Halves h) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps((__m128i)h);
#else
    typedef _Float16 Values __attribute__((vector_size(TK_BYTES / 2)));
    return __builtin_convertvector((Values)h, Floats);
#endif
}
inline Halves narrowed(_Float16, const Floats v) {
#if defined(__AVX512F__)
    return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    typedef _Float16 Values __attribute__((vector_size(TK_BYTES / 2)));
    return (Halves)__builtin_convertvector(v, Values);
#endif
}
#endif

// Copy of n values, inline: rows of a fleet are too short for the call of a function.
template <class T> inline void copy(T* __restrict to, const T* __restrict from, const int64_t n) {
    constexpr int64_t V = TK_BYTES / sizeof(T);
    if (n < V) {
        std::memcpy(to, from, n * sizeof(T));
        return;
    }
    for (int64_t c = 0; c < n - V; c += V) std::memcpy(to + c, from + c, TK_BYTES);
    std::memcpy(to + n - V, from + n - V, TK_BYTES);
}

// n values, at most a register of them, in the accumulation type; and back.
template <class A, class T> inline typename Wide<A>::Vector load(const T* from, int64_t n) {
    if constexpr (sizeof(T) == sizeof(A)) {
        typename Wide<A>::Vector v = {};
        std::memcpy(&v, from, n * sizeof(T));
        return v;
    } else {
        Halves h = {};
        std::memcpy(&h, from, n * sizeof(T));
        return widened(T(), h);
    }
}
template <class T, class Vector> inline void store(T* to, const Vector v, int64_t n) {
    if constexpr (sizeof(T) == sizeof(v[0])) {
        std::memcpy(to, &v, n * sizeof(T));
    } else {
        const Halves h = narrowed(T(), v);
        std::memcpy(to, &h, n * sizeof(T));
    }
}

// Any number of values in the accumulation type.
template <class T, class A> inline void widen(A* to, const T* from, int64_t n) {
    constexpr int64_t V = Wide<A>::size;
    if constexpr (sizeof(T) == sizeof(A)) return copy(to, from, n);
    int64_t c = 0;
    for (; c + V <= n; c += V) store(to + c, load<A>(from + c, V), V);
    if (c < n) store(to + c, load<A>(from + c, n - c), n - c);
}

// n values in the accumulation type: where they lie, or widened into the buffer.
template <class T, class A> inline const A* wide(const T* from, A* buffer, int64_t n) {
    if constexpr (sizeof(T) == sizeof(A)) {
        return from;
    } else {
        widen(buffer, from, n);
        return buffer;
    }
}

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

// Memory of this thread that begins where a register may; the next call has the same again, since new
// memory costs more than what a small tile does with it.
inline char* scratch(size_t bytes) {
    constexpr std::align_val_t line{64};
    static thread_local struct Kept {
        char* data = nullptr;
        size_t bytes = 0;
        ~Kept() { ::operator delete(data, line); }
    } kept;
    if (kept.bytes < bytes) {
        ::operator delete(kept.data, line);
        kept.data = (char*)::operator new(bytes, line);
        kept.bytes = bytes;
    }
    return kept.data;
}

template <class T, class A> struct Pass {
    int64_t k, width;
    const int64_t *indptr, *indices;
    int64_t n_runs;
    const int64_t* runs;
    int64_t n_blocks;
    const int64_t* blocks;
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

    // y of one row and tile.
    void descend(A* y, int64_t b, int64_t from, int64_t n) const {
        const T* xr = x + (source ? source[b] : b) * x_stride + from;
        if (!grad) return widen(y, xr, n);
        const T* g = grad + b * grad_stride + from;
        T* m = momentum ? momentum + b * momentum_stride + from : nullptr;
        using Vector = typename Wide<A>::Vector;
        constexpr int64_t V = Wide<A>::size;
        const bool look_ahead = nesterov, shrinks = decay != 0;
        const A keep = beta, shrink = decay, eta = lr[b];
        const auto stepped = [&](int64_t c, int64_t count, Vector& after)
                                 __attribute__((always_inline)) -> Vector {
            const Vector v = load<A>(xr + c, count);
            Vector d = load<A>(g + c, count);
            if (shrinks) d = d + shrink * v;
            if (m) {
                after = keep * load<A>(m + c, count) + d;
                d = look_ahead ? d + keep * after : after;
            }
            return v - eta * d;
        };
        Vector after{}, last_after{};
        if (n < V) {
            store(y, stepped(0, n, after), n);
            if (m) store(m, after, n);
            return;
        }
        // The last register overlaps the one before: it is computed first, from what m was.
        const Vector last = stepped(n - V, V, last_after);
        for (int64_t c = 0; c < n - V; c += V) {
            store(y + c, stepped(c, V, after), V);
            if (m) store(m + c, after, V);
        }
        store(y + n - V, last, V);
        if (m) store(m + n - V, last_after, V);
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
                for (int v = 0; v < 4; ++v) store(line + c + v * V, s[v], V);
            else if (past)
                for (int v = 0; v < 4; ++v) TK_STREAM((Vector*)(to + c) + v, s[v]);
            else
                for (int v = 0; v < 4; ++v) ((Vector*)(to + c))[v] = s[v];
        }
        return whole;
    }

    // A row that is soon read, or written: short runs of memory are not fetched ahead by themselves.
    // Inline, since a function that only prefetches is without effect to GCC, which drops its calls.
    template <bool written = false> TK_INLINE static void fetch(const T* row, int64_t n) {
        if (n * sizeof(T) >= LONG) return;
        for (int64_t c = 0; c < n; c += 64 / sizeof(T)) __builtin_prefetch(row + c, written);
    }
    TK_INLINE void fetch_inputs(int64_t b, int64_t from, int64_t n) const {
        fetch(x + (source ? source[b] : b) * x_stride + from, n);
        if (grad) fetch(grad + b * grad_stride + from, n);
        if (momentum) fetch<true>(momentum + b * momentum_stride + from, n);
    }
    // Past the cache, only the lines at both ends that hold other values too: their stores wait.
    TK_INLINE static void fetch_output(const T* row, int64_t n, bool past) {
        if (!past) return fetch<true>(row, n);
        for (const T* end : {row, row + n})
            if (uintptr_t(end) % 64) __builtin_prefetch(end, true);
    }

    // Where the parts begin: blocks side by side while they have no more rows than that together.
    std::vector<int64_t> parts(int64_t rows) const {
        std::vector<int64_t> begins{0};
        for (int64_t b = 1; b < n_blocks; ++b)
            if (blocks[b + 1] - begins.back() > rows) begins.push_back(blocks[b]);
        begins.push_back(k);
        return begins;
    }

    // Rows begin .. end - 1, which are a part, and columns from .. from + n - 1.
    void mix(A* y, T* line, int64_t tile, int64_t begin, int64_t end, int64_t from, int64_t n,
             bool past) const {
        for (int64_t b = begin; b < end; ++b) {
            if (b + AHEAD < end) fetch_inputs(b + AHEAD, from, n);
            descend(y + (b - begin) * tile, b, from, n);
        }
        const auto row = [&](int64_t i) {
            return out + (target ? target[i] : i) * out_stride + from;
        };
        const int64_t* run = std::upper_bound(runs, runs + n_runs, begin);
        for (int64_t first = begin, last; first < end; first = last) {
            last = std::min(*run++, end);  // rows without entries are alike across blocks
            if (first + AHEAD < end) fetch_output(row(first + AHEAD), n, past);
            T* alone = last == first + 1 ? row(first) : nullptr;
            const int64_t c = gather(alone, line, y - begin * tile, tile, first, n, past);
            for (int64_t i = first; i < last; ++i) {
                if (past)
                    stream(row(i) + c, line + c, n - c);
                else
                    copy(row(i) + c, line + c, n - c);
            }
        }
    }

    // The same in two passes over whole rows, with the y of all rows in memory: what other cores hold
    // is only the y of neighbours, and nobody waits for rows that are none.
    int64_t pitch() const { return (width + 63) / 64 * 64 + 16; }  // no multiple of a page
    void step_row(A* y, int64_t b) const { descend(y + b * pitch(), b, 0, width); }
    void sum_row(const A* y, int64_t i) const {
        constexpr int64_t STRIP = 512;  // columns of a sum at a time
        alignas(64) T line[STRIP];
        for (int64_t from = 0; from < width; from += STRIP) {
            const int64_t n = std::min(STRIP, width - from);
            T* const to = out + i * out_stride + from;
            const int64_t c = gather(to, line, y + from, pitch(), i, n, false);
            copy(to + c, line + c, n - c);
        }
    }

    // tile: a multiple of 64 columns; rows: of a part at most, if no block has more.
    void run(int64_t tile, int64_t rows, int threads, bool past, teleport::Run how) const {
        const int64_t tiles = (width + tile - 1) / tile;
        const std::vector<int64_t> begins = parts(rows);
        const int64_t n_parts = int64_t(begins.size()) - 1;
        teleport::in_pieces(
            how, threads, n_parts * tiles,
            [&](int64_t, int64_t first, int64_t last) {
                A* const y = (A*)scratch((rows * sizeof(A) + sizeof(T)) * tile);
                T* const line = (T*)(y + rows * tile);
                for (int64_t i = first; i < last; ++i) {
                    const int64_t part = i / tiles, from = i % tiles * tile;
                    mix(y, line, tile, begins[part], begins[part + 1], from,
                        std::min(tile, width - from), past);
                }
#ifdef __SSE2__
                if (past) _mm_sfence();
#endif
            });
    }
};

using teleport::Mix;

template <class T, class A> Pass<T, A> pass(const Mix* a) {
    return {a->k, a->width, a->indptr, a->indices, a->n_runs, a->runs, a->n_blocks, a->blocks,
            (const A*)a->weights, (const T*)a->x, a->x_stride, a->source, (const T*)a->grad,
            a->grad_stride, (T*)a->momentum, a->momentum_stride, (const A*)a->lr, A(a->beta),
            A(a->decay), a->nesterov != 0, (T*)a->out, a->out_stride, a->target};
}

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
               A* mean, A* distance, int64_t block, int64_t tile, int threads, teleport::Run how) {
    const int64_t tiles = (width + tile - 1) / tile, blocks = (width + block - 1) / block;
    std::vector<A> partial(groups * blocks);
    const auto range = [&](int64_t, int64_t begin, int64_t end) {
        std::vector<A> squares(tile), spare(tile);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t g = item / tiles, t = item % tiles;
            const int64_t first = starts[g], last = starts[g + 1];
            const int64_t from = t * tile, n = width - from < tile ? width - from : tile;
            A* __restrict m = mean + g * width + from;
            A* __restrict s = squares.data();
            widen(m, x + first * stride + from, n);
            for (int64_t i = first + 1; i < last; ++i) {
                const A* __restrict r = wide(x + i * stride + from, spare.data(), n);
                for (int64_t c = 0; c < n; ++c) m[c] = m[c] + r[c];
            }
            const A size = A(last - first);
            for (int64_t c = 0; c < n; ++c) m[c] = m[c] / size;
            std::memset(s, 0, tile * sizeof(A));  // also beyond the last column
            for (int64_t i = first; i < last; ++i) {
                const A* __restrict r = wide(x + i * stride + from, spare.data(), n);
                for (int64_t c = 0; c < n; ++c) {
                    const A d = r[c] - m[c];
                    s[c] = s[c] + d * d;
                }
            }
            for (int64_t c = 0; c < n; c += block)
                partial[g * blocks + (from + c) / block] = halved(s + c, block);
        }
    };
    teleport::in_pieces(how, threads, groups * tiles, range);
    for (int64_t g = 0; g < groups; ++g) distance[g] = halved(&partial[g * blocks], blocks);
}

}  // namespace

extern "C" {

// 0, or 1 for a dtype that this build has not.
int teleport_kernels_mix(const Mix* a) {
#define TK_RUN(T, A) \
    pass<T, A>(a).run(a->tile, a->rows, int(a->threads), a->past != 0, \
                      a->pool ? teleport::run_in_pool : run_in_openmp)
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

const teleport::Lent* teleport_kernels_lent() {
    static const teleport::Lent lent{
        teleport::run_in_pool,
        teleport_kernels_mix,
        [](const Mix* a) { return int64_t(a->k * pass<float, float>(a).pitch() * sizeof(float)); },
        [](const Mix* a, void* y, const int64_t* rows, int64_t n) {
            const auto p = pass<float, float>(a);
            for (int64_t i = 0; i < n; ++i) p.step_row((float*)y, rows[i]);
        },
        [](const Mix* a, const void* y, const int64_t* rows, int64_t n) {
            const auto p = pass<float, float>(a);
            for (int64_t i = 0; i < n; ++i) p.sum_row((const float*)y, rows[i]);
        },
    };
    return &lent;
}

int teleport_kernels_consensus(int64_t dtype, int64_t groups, int64_t width, const int64_t* starts,
                               const void* x, int64_t stride, void* mean, void* distance,
                               int64_t block, int64_t tile, int64_t threads, int64_t pool) {
#define TK_CONSENSUS(T, A)                                                                        \
    consensus<T, A>(groups, width, starts, (const T*)x, stride, (A*)mean, (A*)distance, block,    \
                    tile, int(threads), pool ? teleport::run_in_pool : run_in_openmp)
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
