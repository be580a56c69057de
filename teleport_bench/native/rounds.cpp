// The gradients of all rows of a round, their scores on a whole data set, and the loop over the
// recorded calls of many rounds.

#include "network.hpp"
#include "parallel.hpp"

#include <chrono>
#include <vector>

using namespace teleport;

namespace {

// Rows that share their random choices follow each other in `order`; `member` names these choices.
struct Rows {
    int64_t n;
    const int64_t *order, *member;
    const float* x;
    int64_t x_stride;
    float* grad;
    int64_t grad_stride;
    int64_t threads;
};

Run run = run_in_pool;  // until the kernel library lends its own: one pool for both

// Calls visit(row, its member, whether that is another one than before) for a piece of the rows.
template <class Visit> void each_row(const Rows& rows, int64_t first, int64_t last, Visit visit) {
    for (int64_t i = first, before = -1; i < last; ++i) {
        const int64_t row = rows.order[i], member = rows.member[row];
        visit(row, member, member != before);
        before = member;
    }
}

int64_t slices(int64_t samples) { return (samples + V - 1) / V; }

int64_t training_space(const Network& net, int64_t features, int64_t batch) {
    return Worker(net, true, nullptr).size + slices(batch) * features;
}

constexpr int64_t TOGETHER = 4;  // slices that a row is evaluated on while its parameters are near

int64_t scoring_space(const Network& net, int64_t features) {
    return Worker(net, false, nullptr).size + TOGETHER * features;
}

constexpr int64_t COLUMNS = 1024;  // of a sum at a time: in the first-level cache

// sum <- c x, or sum + c x, the product rounded before it is added, as torch does it.
#ifndef __clang__  // which fuses nothing across statements
[[gnu::optimize("fp-contract=off")]]
#endif
void add_term(bool first, float c, const float* __restrict x, float* __restrict sum, int64_t n) {
    if (first)
        for (int64_t i = 0; i < n; ++i) sum[i] = c * x[i];
    else
        for (int64_t i = 0; i < n; ++i) {
            const float product = c * x[i];
            sum[i] = sum[i] + product;
        }
}

}  // namespace

extern "C" {

struct Gradient {
    Rows rows;
    const Network* net;
    const Images* set;
    const int32_t* ids;  // (members, batch); with views (members, 2, batch), the samples first
    int64_t batch, views;
    Vector* memory;  // (threads, teleport_space)
};

int64_t teleport_space(const Network* net, int64_t features, int64_t batch) {
    return std::max(training_space(*net, features, batch), scoring_space(*net, features)) *
           int64_t(sizeof(Vector));
}

void teleport_gradient(const Gradient* a) {
    const Network& net = *a->net;
    const Images& set = *a->set;
    const int64_t features = set.features(), n = slices(a->batch);
    const int64_t space = training_space(net, features, a->batch);
    in_pieces(run, a->rows.threads, a->rows.n, [&](int64_t thread, int64_t first, int64_t last) {
        Vector* const input = a->memory + thread * space;
        Worker worker(net, true, input + n * features);
        std::vector<int32_t> labels(n * V);
        std::vector<uint8_t> views(a->views ? V * features : 0);
        each_row(a->rows, first, last, [&](int64_t row, int64_t member, bool fresh) {
            const int32_t* const ids = a->ids + member * (a->views ? 2 : 1) * a->batch;
            const float* const x = a->rows.x + row * a->rows.x_stride;
            for (int64_t s = 0; s < n; ++s) {
                const int64_t count = std::min<int64_t>(V, a->batch - s * V);
                Vector* const samples = input + s * features;
                if (fresh) {
                    const uint8_t* sample[V];
                    for (int64_t b = 0; b < count; ++b) {
                        sample[b] = set.pixels + ids[s * V + b] * features;
                        if (!a->views) continue;
                        uint8_t* const to = &views[b * features];
                        view(set, sample[b], ids[a->batch + s * V + b], to);
                        sample[b] = to;
                    }
                    fetch(set, sample, count, samples);
                    for (int64_t b = 0; b < V; ++b)
                        labels[s * V + b] = set.labels[ids[s * V + std::min(b, count - 1)]];
                }
                Vector weight;
                for (int64_t b = 0; b < V; ++b) weight[b] = b < count ? 1.0f / a->batch : 0.0f;
                const Vector* const logits = worker.forward(x, samples);
                Vector* const d = worker.first_delta();
                cross_entropy_back(logits, net.classes, &labels[s * V], weight, d);
                worker.backward(x, samples, d, a->rows.grad + row * a->rows.grad_stride, s > 0);
            }
        });
    });
}

struct Score {
    int64_t rows;
    const float* x;
    int64_t x_stride;
    const Network* net;
    const Images* set;
    int64_t samples;
    double *loss, *right;  // (rows): sums over the samples
    int64_t threads;
    Vector* memory;
};

// Sums over samples are taken slice by slice in order, so that threads do not change them.
void teleport_score(const Score* a) {
    const Network& net = *a->net;
    const Images& set = *a->set;
    const int64_t features = set.features(), n = slices(a->samples);
    const int64_t space = scoring_space(net, features);
    std::vector<double> loss(n * a->rows), right(n * a->rows);
    const int64_t groups = (n + TOGETHER - 1) / TOGETHER;
    in_pieces(run, a->threads, groups, [&](int64_t thread, int64_t begin, int64_t end) {
        Vector* const input = a->memory + thread * space;
        Worker worker(net, false, input + TOGETHER * features);
        std::vector<Vector> spare(net.classes);
        for (int64_t group = begin; group < end; ++group) {
            const int64_t first = group * TOGETHER, last = std::min(first + TOGETHER, n);
            for (int64_t s = first; s < last; ++s) {
                const int64_t count = std::min<int64_t>(V, a->samples - s * V);
                const uint8_t* sample[V];
                for (int64_t b = 0; b < count; ++b)
                    sample[b] = set.pixels + (s * V + b) * features;
                fetch(set, sample, count, input + (s - first) * features);
            }
            for (int64_t row = 0; row < a->rows; ++row)
                for (int64_t s = first; s < last; ++s) {
                    const Vector* const logits = worker.forward(
                        a->x + row * a->x_stride, input + (s - first) * features);
                    Vector most;
                    const Vector total = softmax(logits, net.classes, most, spare.data());
                    double& l = loss[s * a->rows + row];
                    double& r = right[s * a->rows + row];
                    const int64_t count = std::min<int64_t>(V, a->samples - s * V);
                    for (int64_t b = 0; b < count; ++b) {
                        const int64_t label = set.labels[s * V + b];
                        const float own = logits[label][b];
                        l += std::log(total[b]) + (most[b] - own);
                        bool found = own == most[b];  // the first of equal logits is the answer
                        for (int64_t c = 0; c < label; ++c) found &= logits[c][b] < own;
                        r += found;
                    }
                }
        }
    });
    for (int64_t row = 0; row < a->rows; ++row) {
        a->loss[row] = a->right[row] = 0;
        for (int64_t s = 0; s < n; ++s) {
            a->loss[row] += loss[s * a->rows + row];
            a->right[row] += right[s * a->rows + row];
        }
    }
}

// H x - linear + noise, with H a number (pitch 0) or symmetric with lines of `pitch` values.
struct Quadratic {
    Rows rows;
    int64_t dim, pitch;
    const float *hessian, *linear, *noise;
    const int64_t* node;  // (members)
};

void teleport_quadratic(const Quadratic* a) {
    const int64_t d = a->dim;
    in_pieces(run, a->rows.threads, a->rows.n, [&](int64_t, int64_t first, int64_t last) {
        each_row(a->rows, first, last, [&](int64_t row, int64_t member, bool) {
            const float* __restrict const x = a->rows.x + row * a->rows.x_stride;
            float* __restrict const g = a->rows.grad + row * a->rows.grad_stride;
            const float* const linear = a->linear + a->node[member] * d;
            const float* const noise = a->noise + member * d;
            if (!a->pitch) {
                const float h = a->hessian[a->node[member]];
                for (int64_t i = 0; i < d; ++i) g[i] = (h * x[i] - linear[i]) + noise[i];
                return;
            }
            const Vector* const lines = (const Vector*)(a->hessian + a->node[member] * d * a->pitch);
            const int64_t stride = a->pitch / V, columns = (d + V - 1) / V;
            in_tiles<4>(columns, [&](int64_t j, auto wide) {
                constexpr int N = wide.value;
                Vector s[N] = {};
                for (int64_t i = 0; i < d; ++i)
                    for (int n = 0; n < N; ++n) s[n] += x[i] * lines[i * stride + j + n];
                for (int n = 0; n < N; ++n) {
                    const int64_t at = (j + n) * V, count = std::min<int64_t>(V, d - at);
                    put(g + at, (s[n] - get(linear + at, count)) + get(noise + at, count), count);
                }
            });
        });
    });
}

// A term c x of a sum; c = factor lr^power, with power -1, 0 or 1 and lr of the row.
struct Term {
    const float* x;
    int64_t x_stride;
    float factor;
    int32_t power;
    float coefficient(float lr) const {
        return !power ? factor : power > 0 ? factor * lr : lr == 0 ? 0 : factor / lr;
    }
};

struct Sum {
    int64_t rows, width, n_terms;
    const Term* terms;
    const float* lr;  // (rows)
    float* out;
    int64_t out_stride, threads;
};

void teleport_combine(const Sum* a) {
    const int64_t runs = (a->width + COLUMNS - 1) / COLUMNS;
    in_pieces(run, a->threads, a->rows * runs, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
            const int64_t row = i / runs, from = i % runs * COLUMNS;
            const int64_t n = std::min(COLUMNS, a->width - from);
            float sum[COLUMNS];
            for (int64_t j = 0; j < a->n_terms; ++j) {
                const Term& term = a->terms[j];
                const float c = term.coefficient(a->lr[row]);
                add_term(j == 0, c, term.x + row * term.x_stride + from, sum, n);
            }
            std::memcpy(a->out + row * a->out_stride + from, sum, n * sizeof(float));
        }
    });
}

void teleport_use(Run other) { run = other; }

struct Copy {
    int64_t rows, width;
    const float* from;
    float* to;
    int64_t threads;
};

void teleport_copy(const Copy* a) {
    in_pieces(run, a->threads, a->rows, [&](int64_t, int64_t first, int64_t last) {
        const int64_t at = first * a->width, n = (last - first) * a->width;
        std::memcpy(a->to + at, a->from + at, n * sizeof(float));
    });
}

// A recorded call, and the phase that its time counts to.
struct Call {
    void (*run)(const void*);
    const void* arguments;
    int64_t phase;
};

// copies: what comes before, in no phase. seconds: by phase, added to. ends: of each call, seconds
// from the first one's begin; or null.
void teleport_replay(const Copy* copies, int64_t n_copies, const Call* calls, int64_t n,
                     double* seconds, double* ends) {
    for (int64_t i = 0; i < n_copies; ++i) teleport_copy(copies + i);
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    auto began = start;
    const auto between = [](Clock::time_point from, Clock::time_point to) {
        return std::chrono::duration<double>(to - from).count();
    };
    for (int64_t i = 0; i < n; ++i) {
        calls[i].run(calls[i].arguments);
        const auto now = Clock::now();
        seconds[calls[i].phase] += between(began, now);
        if (ends) ends[i] = between(start, now);
        began = now;
    }
}
}
