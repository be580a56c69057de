// Forward and backward passes of small networks, one row of parameters at a time.
//
// The samples of a batch are the lanes of a vector register: an activation is [feature][lane], with
// as many slices of a batch as it takes. Then no layer shuffles, convolutions need no copies of
// their input, and a row's parameters and activations stay in a core's cache from the first layer
// to the gradient. Rows do not depend on each other: a row's result has the same bits alone, in any
// fleet and on any number of threads.

#pragma once

#include "vector.hpp"

#include <algorithm>
#include <vector>

namespace teleport {

enum Kind : int64_t { LINEAR, CONV, RELU, POOL, NORM, FLATTEN, PICK, MEAN, ADD };

// One layer; an activation is channels x height x width features. PICK takes every size-th place.
// ADD adds to its input what another layer, a convolution, had as its own: every size-th place of
// it, to the channels in the middle.
struct Layer {
    int64_t kind;
    int64_t channels, height, width;              // of its input; ADD: of the other's
    int64_t filters, out_height, out_width;       // of its output
    int64_t size, padding;                        // of kernel or window; NORM: groups
    int64_t other;                                // ADD: which layer
    int64_t offset;                               // of its parameters in the row

    int64_t inputs() const { return channels * height * width; }
    int64_t outputs() const { return filters * out_height * out_width; }
    int64_t padded() const { return width + 2 * padding; }
};

struct Network {
    int64_t n_layers;
    const Layer* layers;
    int64_t n_params, classes;
};

// ---- linear -----------------------------------------------------------------------------------
// A is (inputs, outputs), as the row has it.

ONCE void linear(const Layer& l, const float* A, const Vector* x, Vector* y) {
    const int64_t I = l.inputs(), O = l.outputs();
    const float* bias = A + I * O;
    in_tiles<TILE>(O, [&](int64_t o, auto tile) {
        constexpr int N = tile.value;
        Vector s[N];
        for (int n = 0; n < N; ++n) s[n] = splat(bias[o + n]);
        for (int64_t i = 0; i < I; ++i) {
            const Vector v = x[i];
            const float* a = A + i * O + o;
            for (int n = 0; n < N; ++n) s[n] += a[n] * v;
        }
        for (int n = 0; n < N; ++n) y[o + n] = s[n];
    });
}

ONCE void linear_input(const Layer& l, const float* A, const Vector* dy, Vector* dx) {
    const int64_t I = l.inputs(), O = l.outputs();
    in_tiles<TILE>(I, [&](int64_t i, auto tile) {
        constexpr int N = tile.value;
        Vector s[N] = {};
        const float* a = A + i * O;
        for (int64_t o = 0; o < O; ++o) {
            const Vector v = dy[o];
            for (int n = 0; n < N; ++n) s[n] += a[n * O + o] * v;
        }
        for (int n = 0; n < N; ++n) dx[i + n] = s[n];
    });
}

// Here the outputs are the lanes, and the sum is over samples: dy transposed, (V, outputs).
ONCE void linear_weights(const Layer& l, const Vector* x, const Vector* dy, float* dA, bool more,
                           Vector* turned) {
    const int64_t I = l.inputs(), O = l.outputs(), columns = (O + V - 1) / V;
    for (int64_t j = 0; j < columns; ++j) {
        Vector block[V];
        for (int64_t n = 0; n < V; ++n) block[n] = j * V + n < O ? dy[j * V + n] : Vector{};
        transpose(block);
        for (int64_t n = 0; n < V; ++n) turned[n * columns + j] = block[n];
    }
    const float* const samples = (const float*)x;
    const auto store = [&](float* to, Vector s, int64_t j) {
        const int64_t n = std::min<int64_t>(V, O - j * V);
        put(to + j * V, more ? s + get(to + j * V, n) : s, n);
    };
    in_tiles<4>(columns, [&](int64_t j, auto wide) {
        constexpr int N = wide.value;
        in_tiles<WIDE_TILE / N>(I, [&](int64_t i, auto tall) {
            constexpr int R = tall.value;
            Vector s[R][N] = {};
            for (int64_t b = 0; b < V; ++b) {
                Vector d[N];
                for (int n = 0; n < N; ++n) d[n] = turned[b * columns + j + n];
                for (int r = 0; r < R; ++r)
                    for (int n = 0; n < N; ++n) s[r][n] += samples[(i + r) * V + b] * d[n];
            }
            for (int r = 0; r < R; ++r)
                for (int n = 0; n < N; ++n) store(dA + (i + r) * O, s[r][n], j + n);
        });
    });
    for (int64_t j = 0; j < columns; ++j) {
        Vector s = turned[j];
        for (int64_t b = 1; b < V; ++b) s += turned[b * columns + j];
        store(dA + I * O, s, j);
    }
}

// ---- convolution ------------------------------------------------------------------------------

// The rows of an activation with zeros left and right.
inline void pad(const Vector* x, int64_t rows, int64_t width, int64_t padding, Vector* to) {
    const int64_t whole = width + 2 * padding;
    for (int64_t r = 0; r < rows; ++r, to += whole, x += width) {
        std::fill(to, to + padding, Vector{});
        std::copy(x, x + width, to + padding);
        std::fill(to + padding + width, to + whole, Vector{});
    }
}

// y[o][p] = bias[o] + sum over inputs i and kernel places of w[o, i, ky, kx] x[i][p + (ky, kx)].
// Also the derivative by the input, which is a convolution with the kernel turned round: then the
// strides of w swap roles and `turn` is -1. x has its rows padded; rows above and below are skipped.
struct Convolution {
    int64_t inputs, height, padded;        // of x
    int64_t outputs, out_height, out_width;  // of y
    int64_t size, above;                   // kernel; rows of padding above
    int64_t by_output, by_input, turn;     // strides of w

    template <int N, int P>
    void tile(const Vector* x, const float* w, const float* bias, Vector* y, int64_t o, int64_t r,
              int64_t c) const {
        Vector s[N][P];
        for (int n = 0; n < N; ++n)
            for (int p = 0; p < P; ++p) s[n][p] = splat(bias ? bias[o + n] : 0.0f);
        const int64_t first = std::max<int64_t>(0, above - r);
        const int64_t last = std::min(size, height + above - r);
        for (int64_t i = 0; i < inputs; ++i)
            for (int64_t ky = first; ky < last; ++ky) {
                const Vector* line = x + (i * height + r + ky - above) * padded + c;
                const float* a = w + o * by_output + i * by_input + turn * ky * size;
                for (int64_t kx = 0; kx < size; ++kx, a += turn) {
                    Vector v[P];
                    for (int p = 0; p < P; ++p) v[p] = line[kx + p];
                    for (int n = 0; n < N; ++n)
                        for (int p = 0; p < P; ++p) s[n][p] += a[n * by_output] * v[p];
                }
            }
        for (int n = 0; n < N; ++n)
            for (int p = 0; p < P; ++p)
                y[((o + n) * out_height + r) * out_width + c + p] = s[n][p];
    }

    ONCE void run(const Vector* x, const float* w, const float* bias, Vector* y) const {
        in_tiles<8>(out_width, [&](int64_t c, auto wide) {
            constexpr int P = std::min<int>(wide.value, TILE / 2);
            in_tiles<TILE / P>(outputs, [&](int64_t o, auto many) {
                for (int64_t r = 0; r < out_height; ++r)
                    for (int q = 0; q < wide.value; q += P)
                        tile<many.value, P>(x, w, bias, y, o, r, c + q);
            });
        });
    }
};

inline void convolution(const Layer& l, const float* w, const Vector* x, Vector* y,
                        Vector* spare) {
    const int64_t K = l.size;
    if (l.padding) pad(x, l.channels * l.height, l.width, l.padding, spare);
    Convolution{l.channels, l.height,     l.padded(),  l.filters,          l.out_height,
                l.out_width, K,           l.padding,   l.channels * K * K, K * K,
                1}
        .run(l.padding ? spare : x, w, w + l.filters * l.channels * K * K, y);
}

inline void convolution_input(const Layer& l, const float* w, const Vector* dy, Vector* dx,
                              Vector* spare) {
    const int64_t K = l.size, margin = K - 1 - l.padding;
    pad(dy, l.filters * l.out_height, l.out_width, margin, spare);
    Convolution{l.filters, l.out_height, l.out_width + 2 * margin, l.channels, l.height,
                l.width,   K,            margin,                   K * K,      l.channels * K * K,
                -1}
        .run(spare, w + K * K - 1, nullptr, dx);
}

ONCE void convolution_weights(const Layer& l, const Vector* x, const Vector* dy, float* dw,
                                bool more, Vector* spare) {
    const int64_t K = l.size, C = l.channels, H = l.height, W = l.padded();
    const int64_t places = l.out_height * l.out_width;
    if (l.padding) pad(x, C * H, l.width, l.padding, spare);
    const Vector* const in = l.padding ? spare : x;
    const auto store = [&](float* to, Vector s) { *to = more ? *to + sum(s) : sum(s); };
    const auto strip = [&](auto wide) {  // kernel columns at once
        constexpr int N = wide.value;
        return [&](int64_t kx) {
            in_tiles<WIDE_TILE / N>(l.filters, [&](int64_t f, auto many) {
                constexpr int M = many.value;
                for (int64_t c = 0; c < C; ++c)
                    for (int64_t ky = 0; ky < K; ++ky) {
                        Vector s[M][N] = {};
                        const int64_t first = std::max<int64_t>(0, l.padding - ky);
                        const int64_t last = std::min(l.out_height, H + l.padding - ky);
                        for (int64_t r = first; r < last; ++r) {
                            const Vector* line = in + (c * H + r + ky - l.padding) * W + kx;
                            const Vector* d = dy + f * places + r * l.out_width;
                            for (int64_t p = 0; p < l.out_width; ++p) {
                                Vector v[N];
                                for (int n = 0; n < N; ++n) v[n] = line[p + n];
                                for (int m = 0; m < M; ++m)
                                    for (int n = 0; n < N; ++n)
                                        s[m][n] += d[m * places + p] * v[n];
                            }
                        }
                        for (int m = 0; m < M; ++m)
                            for (int n = 0; n < N; ++n)
                                store(dw + (((f + m) * C + c) * K + ky) * K + kx + n, s[m][n]);
                    }
            });
        };
    };
    int64_t kx = 0;
    for (; kx + 5 <= K; kx += 5) strip(Size<5>())(kx);
    for (; kx + 3 <= K; kx += 3) strip(Size<3>())(kx);
    for (; kx < K; ++kx) strip(Size<1>())(kx);
    for (int64_t f = 0; f < l.filters; ++f) {
        Vector s = {};
        for (int64_t p = 0; p < places; ++p) s += dy[f * places + p];
        store(dw + l.filters * C * K * K + f, s);
    }
}

// ---- the rest ---------------------------------------------------------------------------------

// Comparisons are written so that a NaN stays one.

inline void relu(int64_t n, const Vector* x, Vector* y) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] < 0 ? Vector{} : x[i];
}

inline void relu_input(int64_t n, const Vector* y, Vector* dy) {
    for (int64_t i = 0; i < n; ++i) dy[i] = y[i] <= 0 ? Vector{} : dy[i];
}

// Calls visit(output, first of its window) for every window.
template <class Visit> inline void windows(const Layer& l, Visit visit) {
    for (int64_t c = 0, o = 0; c < l.channels; ++c)
        for (int64_t r = 0; r < l.out_height; ++r)
            for (int64_t q = 0; q < l.out_width; ++q, ++o)
                visit(o, (c * l.height + r * l.size) * l.width + q * l.size);
}

inline void pool(const Layer& l, const Vector* x, Vector* y) {
    windows(l, [&](int64_t o, int64_t from) {
        Vector best = x[from];
        for (int64_t a = 0; a < l.size; ++a)
            for (int64_t b = 0; b < l.size; ++b) {
                const Vector v = x[from + a * l.width + b];
                best = (v > best) | (v != v) ? v : best;
            }
        y[o] = best;
    });
}

// The gradient goes to the first of equal values, as in torch.
inline void pool_input(const Layer& l, const Vector* x, const Vector* y, const Vector* dy,
                       Vector* dx) {
    std::fill(dx, dx + l.inputs(), Vector{});
    windows(l, [&](int64_t o, int64_t from) {
        Vector left = dy[o];
        for (int64_t a = 0; a < l.size; ++a)
            for (int64_t b = 0; b < l.size; ++b) {
                const int64_t i = from + a * l.width + b;
                const auto here = x[i] == y[o];
                dx[i] = here ? left : Vector{};
                left = here ? Vector{} : left;
            }
    });
}

inline void pick(const Layer& l, const Vector* x, Vector* y) {
    windows(l, [&](int64_t o, int64_t from) { y[o] = x[from]; });
}

inline void pick_input(const Layer& l, const Vector* dy, Vector* dx) {
    std::fill(dx, dx + l.inputs(), Vector{});
    windows(l, [&](int64_t o, int64_t from) { dx[from] = dy[o]; });
}

inline void mean(const Layer& l, const Vector* x, Vector* y) {
    const int64_t places = l.height * l.width;
    for (int64_t c = 0; c < l.channels; ++c) {
        Vector s = {};
        for (int64_t p = 0; p < places; ++p) s += x[c * places + p];
        y[c] = s / float(places);
    }
}

inline void mean_input(const Layer& l, const Vector* dy, Vector* dx) {
    const int64_t places = l.height * l.width;
    for (int64_t c = 0; c < l.channels; ++c)
        std::fill(dx + c * places, dx + (c + 1) * places, dy[c] / float(places));
}

// Where the channels of the other layer's input begin in the sum.
inline int64_t middle(const Layer& l) {
    return (l.filters - l.channels) / 2 * l.out_height * l.out_width;
}

inline void add(const Layer& l, const Vector* x, const Vector* other, Vector* y) {
    if (x != y) std::copy(x, x + l.outputs(), y);
    Vector* const to = y + middle(l);
    windows(l, [&](int64_t o, int64_t from) { to[o] += other[from]; });
}

inline void add_other(const Layer& l, const Vector* dy, Vector* dother) {
    const Vector* const d = dy + middle(l);
    windows(l, [&](int64_t o, int64_t from) { dother[from] += d[o]; });
}

constexpr float EPSILON = 1e-5f;

// stats: mean and 1 / standard deviation of each group.
inline void norm(const Layer& l, const float* scale, const Vector* x, Vector* y, Vector* stats) {
    const int64_t each = l.channels / l.size, places = l.height * l.width, n = each * places;
    const float* shift = scale + l.channels;
    for (int64_t g = 0; g < l.size; ++g) {
        const Vector* v = x + g * n;
        Vector total = {}, square = {};
        for (int64_t i = 0; i < n; ++i) total += v[i];
        const Vector mean = total / float(n);
        for (int64_t i = 0; i < n; ++i) square += (v[i] - mean) * (v[i] - mean);
        const Vector rate = 1.0f / root(square / float(n) + EPSILON);
        stats[2 * g] = mean, stats[2 * g + 1] = rate;
        for (int64_t c = g * each; c < (g + 1) * each; ++c) {
            const Vector a = scale[c] * rate, b = shift[c] - mean * a;
            for (int64_t i = c * places; i < (c + 1) * places; ++i) y[i] = x[i] * a + b;
        }
    }
}

// dy becomes dx.
inline void norm_back(const Layer& l, const float* scale, const Vector* x, const Vector* stats,
                      Vector* dy, float* dscale, bool more) {
    const int64_t each = l.channels / l.size, places = l.height * l.width;
    const float n = float(each * places);
    const auto store = [&](float* to, Vector s) { *to = more ? *to + sum(s) : sum(s); };
    for (int64_t g = 0; g < l.size; ++g) {
        const Vector mean = stats[2 * g], rate = stats[2 * g + 1];
        Vector total = {}, along = {};
        for (int64_t c = g * each; c < (g + 1) * each; ++c) {
            Vector t = {}, a = {};
            for (int64_t i = c * places; i < (c + 1) * places; ++i) {
                t += dy[i];
                a += dy[i] * (x[i] - mean);
            }
            a *= rate;
            store(dscale + c, a);
            store(dscale + l.channels + c, t);
            total += scale[c] * t;
            along += scale[c] * a;
        }
        const Vector slope = -rate * rate * along / n, shift = -rate * total / n;
        for (int64_t c = g * each; c < (g + 1) * each; ++c)
            for (int64_t i = c * places; i < (c + 1) * places; ++i)
                dy[i] = scale[c] * rate * dy[i] + (x[i] - mean) * slope + shift;
    }
}

// ---- a row ------------------------------------------------------------------------------------

// Labelled images: (N, features) bytes, of which models see scale * byte + shift, (features) each.
struct Images {
    int64_t channels, height, width;
    const uint8_t* pixels;
    const int64_t* labels;
    const float *scale, *shift;

    int64_t features() const { return channels * height * width; }
};

constexpr int64_t MARGIN = 4, SIDE = 2 * MARGIN + 1;  // as in problems/augmentation.py

// A view of an image, as problems/augmentation.py counts them.
inline void view(const Images& set, const uint8_t* image, int64_t number, uint8_t* to) {
    const int64_t down = number / SIDE % SIDE - MARGIN, right = number % SIDE - MARGIN;
    const int64_t first = std::max<int64_t>(0, -right);
    const int64_t last = std::min(set.width, set.width - right);
    for (int64_t c = 0; c < set.channels; ++c)
        for (int64_t r = down; r < set.height + down; ++r, to += set.width) {
            std::fill(to, to + set.width, 0);
            if (r < 0 || r >= set.height || first >= last) continue;
            const uint8_t* const line = image + (c * set.height + r) * set.width + right;
            std::copy(line + first, line + last, to + first);
            if (number >= SIDE * SIDE) std::reverse(to, to + set.width);
        }
}

// n <= V samples as lanes; where there are fewer, the last one fills the rest of them.
ONCE void fetch(const Images& set, const uint8_t* (&sample)[V], int64_t n, Vector* to) {
    std::fill(sample + n, sample + V, sample[n - 1]);
    const int64_t features = set.features();
    int64_t i = 0;
    for (; i + V <= features; i += V) {
        Vector block[V];
        for (int64_t b = 0; b < V; ++b) block[b] = widened(sample[b] + i);
        transpose(block);
        for (int64_t p = 0; p < V; ++p)
            to[i + p] = block[p] * set.scale[i + p] + set.shift[i + p];
    }
    for (; i < features; ++i)
        for (int64_t b = 0; b < V; ++b)
            to[i][b] = float(sample[b][i]) * set.scale[i] + set.shift[i];
}

// What one thread needs to take slices of samples through a network.
class Worker {
    const Network& net;
    std::vector<Vector*> at;  // input of each layer, then the logits; null where it is the caller's
    std::vector<Vector*> stats;
    std::vector<const Layer*> added;  // by layer: the ADD that takes its input, or null
    Vector *spare, *delta[2], *held;  // held: a copy for ADD, of the input or of a gradient
    int64_t first_with_parameters = 0;

  public:
    int64_t size = 0;  // of its memory, in registers

    // training: the activations of all layers are kept.
    Worker(const Network& net, bool training, Vector* memory)
        : net(net), at(net.n_layers + 1), stats(net.n_layers), added(net.n_layers) {
        int64_t most = 0, scratch = 0, largest = 0;
        for (int64_t i = 0; i < net.n_layers; ++i) {
            const Layer& l = net.layers[i];
            most = std::max({most, l.inputs(), l.outputs()});
            if (l.kind == CONV)
                scratch = std::max({scratch, l.channels * l.height * l.padded(),
                                    l.filters * l.out_height * (l.width + l.size - 1)});
            if (l.kind == LINEAR) scratch = std::max(scratch, (l.outputs() + V - 1) / V * V);
            if (l.kind != ADD) continue;
            added[l.other] = &l;
            largest = std::max({largest, l.inputs(), l.outputs()});
        }
        const auto take = [&](int64_t n) { return memory + std::exchange(size, size + n); };
        spare = take(scratch);
        held = take(largest);
        for (Vector*& d : delta) d = take(most);
        bool flip = false;
        for (int64_t i = 0; i < net.n_layers; ++i) {
            const Layer& l = net.layers[i];
            if (l.kind == NORM) stats[i] = take(2 * l.size);
            at[i + 1] = in_place(i) ? at[i] : training ? take(l.outputs()) : delta[flip = !flip];
        }
        while (!has_parameters(first_with_parameters)) ++first_with_parameters;
    }

    // (classes) logits of one slice.
    const Vector* forward(const float* row, const Vector* input) {
        for (int64_t i = 0; i < net.n_layers; ++i) {
            const Layer& l = net.layers[i];
            const Vector* x = here(i, input);
            const float* p = row + l.offset;
            Vector* y = at[i + 1];
            if (added[i]) std::copy(x, x + l.inputs(), held);
            switch (l.kind) {
                case LINEAR: linear(l, p, x, y); break;
                case CONV: convolution(l, p, x, y, spare); break;
                case RELU: relu(l.outputs(), x, y); break;
                case POOL: pool(l, x, y); break;
                case NORM: norm(l, p, x, y, stats[i]); break;
                case PICK: pick(l, x, y); break;
                case MEAN: mean(l, x, y); break;
                case ADD: add(l, x, held, y); break;
                default: break;
            }
        }
        return here(net.n_layers, input);
    }

    // After forward: the gradient of the row, from that of the logits; added to what is there with
    // more. `d` is overwritten.
    void backward(const float* row, const Vector* input, Vector* d, float* grad, bool more) {
        for (int64_t i = net.n_layers - 1, flip = 0; i >= 0; --i) {
            const Layer& l = net.layers[i];
            const Vector *x = here(i, input), *y = here(i + 1, input);
            const float* p = row + l.offset;
            float* g = grad + l.offset;
            Vector* dx = delta[flip];
            const bool needed = i > first_with_parameters;
            switch (l.kind) {
                case LINEAR:
                    linear_weights(l, x, d, g, more, spare);
                    if (needed) linear_input(l, p, d, dx);
                    break;
                case CONV:
                    convolution_weights(l, x, d, g, more, spare);
                    if (needed) convolution_input(l, p, d, dx, spare);
                    break;
                case RELU: relu_input(l.outputs(), y, d); continue;
                case POOL: pool_input(l, x, y, d, dx); break;
                case NORM: norm_back(l, p, x, stats[i], d, g, more); continue;
                case PICK: pick_input(l, d, dx); break;
                case MEAN: mean_input(l, d, dx); break;
                case ADD: std::copy(d, d + l.outputs(), held); continue;
                default: continue;
            }
            if (!needed) return;
            if (added[i]) add_other(*added[i], held, dx);
            d = dx, flip = 1 - flip;
        }
    }

    Vector* first_delta() { return delta[1]; }

  private:
    bool has_parameters(int64_t i) const {
        const int64_t kind = net.layers[i].kind;
        return kind == LINEAR || kind == CONV || kind == NORM;
    }
    // Flatten changes nothing, and ReLU and ADD work on what most layers gave: on the way back these
    // do not ask for it.
    bool in_place(int64_t i) const {
        const int64_t kind = net.layers[i].kind;
        if (kind != RELU && kind != ADD) return kind == FLATTEN;
        while (i > 0 && net.layers[i - 1].kind == FLATTEN) --i;
        return i > 0 && net.layers[i - 1].kind != RELU && net.layers[i - 1].kind != POOL;
    }
    const Vector* here(int64_t i, const Vector* input) const { return at[i] ? at[i] : input; }
};

// Softmax of a slice: d = e^(logits - most), and the sum of it.
inline Vector softmax(const Vector* logits, int64_t classes, Vector& most, Vector* d) {
    most = logits[0];
    for (int64_t c = 1; c < classes; ++c) most = logits[c] > most ? logits[c] : most;
    Vector total = {};
    for (int64_t c = 0; c < classes; ++c) total += d[c] = exponential(logits[c] - most);
    return total;
}

// d = weight * the gradient of the cross-entropy by the logits.
inline void cross_entropy_back(const Vector* logits, int64_t classes, const int32_t* label,
                               Vector weight, Vector* d) {
    Vector most;
    const Vector share = weight / softmax(logits, classes, most, d);
    for (int64_t c = 0; c < classes; ++c) d[c] *= share;
    for (int64_t b = 0; b < V; ++b) d[label[b]][b] -= weight[b];
}

}  // namespace teleport
