// Local step + teleport + gossip over column tiles, one pass over memory:
//
//   y[b]           = x[source[b]] - lr[b] * u(grad[b], momentum[b], x[source[b]])
//   out[target[a]] = sum_j weights[a, j] * y[j]
//
// A tile is a range of columns narrow enough that the rows of one tile stay in the cache of a core,
// so that each input is read from memory once and each output written once, whatever the degree of
// the graph. Every product and every sum is rounded on its own, neighbours in ascending order: the
// results are those of reference.py bit for bit (compile with -ffp-contract=off).

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

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

// One vector register. `Near` is one that may lie anywhere in memory.
#if defined(__AVX512F__)
#define TK_BYTES 64
#elif defined(__AVX__)
#define TK_BYTES 32
#else
#define TK_BYTES 16
#endif
template <class A> struct Wide {
    typedef A Vector __attribute__((vector_size(TK_BYTES)));
    typedef A Near __attribute__((vector_size(TK_BYTES), aligned(alignof(A)), may_alias));
    static constexpr int64_t size = TK_BYTES / sizeof(A);
};

template <class T, class A> struct Pass {
    int64_t k, width;
    const int64_t *indptr, *indices, *leader;
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
            for (int64_t c = 0; c < n; ++c) y[c] = load(xr[c]);
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

    // One output row over one tile; rows[j] is where the tile of y[j] begins.
    void gather(T* o, const A* const* rows, int64_t i, int64_t n) const {
        using Vector = typename Wide<A>::Vector;
        using Near = typename Wide<A>::Near;
        constexpr int64_t V = Wide<A>::size;
        const int64_t first = indptr[i], last = indptr[i + 1];
        if (first == last) {
            for (int64_t c = 0; c < n; ++c) store(o[c], A(0));
            return;
        }
        int64_t c = 0;
        for (; c + 4 * V <= n; c += 4 * V) {
            const A* r = rows[indices[first]] + c;
            A w = weights[first];
            Vector s0 = w * *(const Near*)r, s1 = w * *(const Near*)(r + V),
                   s2 = w * *(const Near*)(r + 2 * V), s3 = w * *(const Near*)(r + 3 * V);
            for (int64_t e = first + 1; e < last; ++e) {
                r = rows[indices[e]] + c;
                w = weights[e];
                s0 = s0 + w * *(const Near*)r;
                s1 = s1 + w * *(const Near*)(r + V);
                s2 = s2 + w * *(const Near*)(r + 2 * V);
                s3 = s3 + w * *(const Near*)(r + 3 * V);
            }
            if constexpr (sizeof(T) == sizeof(A)) {
                *(Near*)(o + c) = s0;
                *(Near*)(o + c + V) = s1;
                *(Near*)(o + c + 2 * V) = s2;
                *(Near*)(o + c + 3 * V) = s3;
            } else {
                A sums[4 * V];
                *(Near*)sums = s0;
                *(Near*)(sums + V) = s1;
                *(Near*)(sums + 2 * V) = s2;
                *(Near*)(sums + 3 * V) = s3;
                for (int64_t v = 0; v < 4 * V; ++v) store(o[c + v], sums[v]);
            }
        }
        for (; c < n; ++c) {
            A sum = weights[first] * rows[indices[first]][c];
            for (int64_t e = first + 1; e < last; ++e) {
                const A term = weights[e] * rows[indices[e]][c];
                sum = sum + term;
            }
            store(o[c], sum);
        }
    }

    void run(int64_t tile, int threads) const {
        constexpr bool direct = sizeof(T) == sizeof(A);
        const bool copies = grad || !direct;
        const int64_t tiles = (width + tile - 1) / tile;
#pragma omp parallel num_threads(threads)
        {
            std::vector<A> buffer(copies ? k * tile : 0);
            std::vector<const A*> rows(k);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t from = t * tile, n = width - from < tile ? width - from : tile;
                for (int64_t b = 0; b < k; ++b) {
                    if (copies) {
                        rows[b] = buffer.data() + b * tile;
                        descend(buffer.data() + b * tile, b, from, n);
                    } else {
                        rows[b] = (const A*)(x + (source ? source[b] : b) * x_stride + from);
                    }
                }
                for (int64_t i = 0; i < k; ++i) {
                    T* o = out + (target ? target[i] : i) * out_stride + from;
                    // rows with the same neighbours and weights have the same result
                    const int64_t same = leader[i];
                    if (same == i)
                        gather(o, rows.data(), i, n);
                    else
                        std::memcpy(o, out + (target ? target[same] : same) * out_stride + from,
                                    n * sizeof(T));
                }
            }
        }
    }
};

}  // namespace

extern "C" {

struct Arguments {
    int64_t dtype;  // 0 float32, 1 float64, 2 bfloat16, 3 float16
    int64_t k, width;
    const int64_t *indptr, *indices, *leader;
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
    int64_t tile, threads;
};

// 0, or 1 for a dtype that this build has not.
int teleport_kernels_mix(const Arguments* a) {
#define TK_RUN(T, A)                                                                              \
    Pass<T, A>{a->k, a->width, a->indptr, a->indices, a->leader, (const A*)a->weights,            \
               (const T*)a->x, a->x_stride, a->source, (const T*)a->grad, a->grad_stride,         \
               (T*)a->momentum, a->momentum_stride, (const A*)a->lr, A(a->beta), A(a->decay),     \
               a->nesterov != 0, (T*)a->out, a->out_stride, a->target}                            \
        .run(a->tile, int(a->threads))
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
}
