// The gradients of all rows of a round, their scores on a whole data set, and the recorded calls of
// many rounds, made one after the other or as stages of rows.

#include "mixing.hpp"
#include "network.hpp"
#include "normals.hpp"
#include "parallel.hpp"
#include "stages.hpp"

#include <array>
#include <map>
#include <memory>
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

const Lent* lent = nullptr;  // by the kernel library: one pool of threads for both

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

// H x - linear + noise, with H a number (pitch 0) or symmetric with lines of `pitch` values.
struct Quadratic {
    Rows rows;
    int64_t dim, pitch;
    const float *hessian, *linear, *noise;
    const int64_t* node;  // (members)
};

// R rows of one member at a time: one row alone waits for each sum before the next term.
template <int R> ONCE void quadratic_block(const Quadratic* a, const int64_t* rows) {
    const int64_t d = a->dim, member = a->rows.member[rows[0]];
    const float *x[R], *const linear = a->linear + a->node[member] * d;
    const float* const noise = a->noise + member * d;
    float* g[R];
    for (int r = 0; r < R; ++r) {
        x[r] = a->rows.x + rows[r] * a->rows.x_stride;
        g[r] = a->rows.grad + rows[r] * a->rows.grad_stride;
    }
    const Vector* const lines = (const Vector*)(a->hessian + a->node[member] * d * a->pitch);
    const int64_t stride = a->pitch / V, columns = (d + V - 1) / V;
    in_tiles<4>(columns, [&](int64_t j, auto wide) {
        constexpr int N = wide.value;
        Vector s[R][N] = {};
        for (int64_t i = 0; i < d; ++i) {
            Vector line[N];
            for (int n = 0; n < N; ++n) line[n] = lines[i * stride + j + n];
            for (int r = 0; r < R; ++r)
                for (int n = 0; n < N; ++n) s[r][n] += x[r][i] * line[n];
        }
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) {
                const int64_t at = (j + n) * V, count = std::min<int64_t>(V, d - at);
                const Vector exact = s[r][n] - get(linear + at, count);
                put(g[r] + at, exact + get(noise + at, count), count);
            }
    });
}

ONCE void quadratic_rows(const Quadratic* a, const int64_t* rows, int64_t n_rows) {
    const auto member = [&](int64_t i) { return a->rows.member[rows[i]]; };
    if (a->pitch) {
        constexpr int R = VECTOR_BYTES == 64 ? 4 : 2;  // there are registers for 4 R sums
        for (int64_t i = 0; i < n_rows;)
            if (i + R <= n_rows && member(i) == member(i + R - 1))  // sorted by member
                quadratic_block<R>(a, rows + i), i += R;
            else
                quadratic_block<1>(a, rows + i++);
        return;
    }
    for (int64_t i = 0; i < n_rows; ++i) {
        const float* __restrict const x = a->rows.x + rows[i] * a->rows.x_stride;
        float* __restrict const g = a->rows.grad + rows[i] * a->rows.grad_stride;
        const float* const linear = a->linear + a->node[member(i)] * a->dim;
        const float* const noise = a->noise + member(i) * a->dim;
        const float h = a->hessian[a->node[member(i)]];
        for (int64_t c = 0; c < a->dim; ++c) g[c] = (h * x[c] - linear[c]) + noise[c];
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

ONCE static void gradient_rows(const Gradient* a, const int64_t* rows, int64_t n_rows,
                               int64_t thread) {
    const Network& net = *a->net;
    const Images& set = *a->set;
    const int64_t features = set.features(), n = slices(a->batch);
    const int64_t space = training_space(net, features, a->batch);
    Vector* const input = a->memory + thread * space;
    Worker worker(net, true, input + n * features);
    std::vector<int32_t> labels(n * V);
    std::vector<uint8_t> views(a->views ? V * features : 0);
    for (int64_t i = 0; i < n_rows; ++i) {
        const int64_t row = rows[i], member = a->rows.member[row];
        const bool fresh = i == 0 || member != a->rows.member[rows[i - 1]];
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
    }
}

void teleport_gradient(const Gradient* a) {
    const Rows& rows = a->rows;
    in_pieces(lent->run, rows.threads, rows.n, [&](int64_t thread, int64_t first, int64_t last) {
        gradient_rows(a, rows.order + first, last - first, thread);
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
    in_pieces(lent->run, a->threads, groups, [&](int64_t thread, int64_t begin, int64_t end) {
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

void teleport_quadratic(const Quadratic* a) {
    const Rows& rows = a->rows;
    in_pieces(lent->run, rows.threads, rows.n, [&](int64_t, int64_t first, int64_t last) {
        quadratic_rows(a, rows.order + first, last - first);
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

ONCE static void combine_part(const Sum* a, int64_t row, int64_t from) {
    const int64_t n = std::min(COLUMNS, a->width - from);
    float sum[COLUMNS];
    for (int64_t j = 0; j < a->n_terms; ++j) {
        const Term& term = a->terms[j];
        const float c = term.coefficient(a->lr[row]);
        add_term(j == 0, c, term.x + row * term.x_stride + from, sum, n);
    }
    std::memcpy(a->out + row * a->out_stride + from, sum, n * sizeof(float));
}

void teleport_combine(const Sum* a) {
    const int64_t parts = (a->width + COLUMNS - 1) / COLUMNS;
    in_pieces(lent->run, a->threads, a->rows * parts, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) combine_part(a, i / parts, i % parts * COLUMNS);
    });
}

// out <- n normals times scale of the stream with that key (2); false where this is not built.
bool teleport_normals([[maybe_unused]] const uint64_t* key, [[maybe_unused]] int64_t n,
                      [[maybe_unused]] float scale, [[maybe_unused]] float* out) {
#ifdef TELEPORT_NORMALS
    static const Ziggurat ziggurat;
    Philox words(key);
    ziggurat.fill(words, n, scale, out);
    return true;
#else
    return false;
#endif
}

void teleport_use(const Lent* other) { lent = other; }

struct Copy {
    int64_t rows, width;
    const float* from;
    float* to;
    int64_t threads;
};

void teleport_copy(const Copy* a) {
    in_pieces(lent->run, a->threads, a->rows, [&](int64_t, int64_t first, int64_t last) {
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

// The calls of a block of rounds, and the same as stages, unless they are better made call by call.
struct Tape {
    std::vector<Call> calls;
    std::unique_ptr<Groups> groups;  // or null: call by call
    std::vector<Stage> stages;
    std::vector<int64_t> begins;  // of each call's stages, and their end
    std::map<std::array<const int64_t*, 4>, Needs> needs;  // by two matrices
    int64_t shared = 0;  // bytes of one of the two buffers
    bool moves = false;  // whether matrices are others in every block

    void add(const Call& call, decltype(Stage::make) make, int which = 0,
             const Needs* needed = nullptr) {
        stages.push_back({make, call.arguments, call.phase, which, needed});
    }
};

// Whether sums over whole rows, whose y lie in memory, are no slower than over tiles, where they
// are at hand. Measured: where a thread's sums read what its core's cache holds, or where rows are
// few, and their neighbours too. Many equal rows are summed once in a tile, and blocks smaller than
// a thread's rows are tiles of their own.
static bool suits_stages(const Mix* m, int64_t threads) {
    constexpr int64_t NEAR = 2 * 1024 * 1024, FEW_ROWS = 16, FEW_NEIGHBOURS = 8;
    if (m->dtype || m->source || m->target || m->past || 3 * m->n_runs < m->k) return false;
    const int64_t entries = m->indptr[m->k], read = entries * (lent->space(m) / m->k);
    if (m->k <= FEW_ROWS * threads && entries <= FEW_NEIGHBOURS * m->k) return true;
    int64_t largest = 0;
    for (int64_t b = 0; b < m->n_blocks; ++b)
        largest = std::max(largest, m->blocks[b + 1] - m->blocks[b]);
    return largest > m->k / threads && read <= NEAR * threads;
}

// False where a call is none of those known here, has other rows, or suits no stages.
static bool add_stages(Tape* tape, int64_t rows, int64_t threads) {
    const Mix* before = nullptr;
    int which = 0;
    for (const Call& call : tape->calls) {
        const auto is = [&](auto* function) { return call.run == (void (*)(const void*))function; };
        tape->begins.push_back(int64_t(tape->stages.size()));
        if (is(teleport_gradient)) {
            if (((const Gradient*)call.arguments)->rows.n != rows) return false;
            tape->add(call, [](const void* a, char*, const int64_t* r, int64_t n, int64_t thread) {
                gradient_rows((const Gradient*)a, r, n, thread);
            });
        } else if (is(teleport_quadratic)) {
            if (((const Quadratic*)call.arguments)->rows.n != rows) return false;
            tape->add(call, [](const void* a, char*, const int64_t* r, int64_t n, int64_t) {
                quadratic_rows((const Quadratic*)a, r, n);
            });
        } else if (is(teleport_combine)) {
            if (((const Sum*)call.arguments)->rows != rows) return false;
            tape->add(call, [](const void* a, char*, const int64_t* r, int64_t n, int64_t) {
                const Sum* const sum = (const Sum*)a;
                for (int64_t i = 0; i < n; ++i)
                    for (int64_t c = 0; c < sum->width; c += COLUMNS) combine_part(sum, r[i], c);
            });
        } else if (is(lent->mix)) {
            const Mix* const mix = (const Mix*)call.arguments;
            if (mix->k != rows || !suits_stages(mix, threads)) return false;
            if (!before) before = mix;
            const auto [known, fresh] = tape->needs.try_emplace(
                {mix->indptr, mix->indices, before->indptr, before->indices});
            if (fresh) known->second = tape->groups->needs(*mix, *before);
            tape->add(call, [](const void* a, char* y, const int64_t* r, int64_t n, int64_t) {
                lent->step((const Mix*)a, y, r, n);
            }, which);
            tape->add(call, [](const void* a, char* y, const int64_t* r, int64_t n, int64_t) {
                lent->sum((const Mix*)a, y, r, n);
            }, which, &known->second);
            tape->shared = std::max(tape->shared, lent->space(mix));
            which = 1 - which;
            before = mix;
        } else {
            return false;
        }
    }
    tape->begins.push_back(int64_t(tape->stages.size()));
    return true;
}

// order: (rows) as in Rows.
Tape* teleport_tape(const Call* calls, int64_t n, const int64_t* order, int64_t rows,
                    int64_t threads) {
    Tape* const tape = new Tape{{calls, calls + n}, {}, {}, {}, {}};
    if (threads < 2 || rows < threads) return tape;
    tape->groups.reset(new Groups(order, rows, threads));
    if (!add_stages(tape, rows, threads)) tape->groups.reset();
    return tape;
}

void teleport_moves(Tape* tape) { tape->moves = true; }

// What the stages of the calls first .. last - 1 need of other groups, by matrices as they are now.
static void need_anew(Tape* tape, int64_t first, int64_t last) {
    const Mix* before = nullptr;
    for (int64_t i = 0; i < last; ++i) {
        if (tape->calls[i].run != (void (*)(const void*))lent->mix) continue;
        const Mix* const mix = (const Mix*)tape->calls[i].arguments;
        if (!before) before = mix;
        if (i >= first)
            tape->needs.at({mix->indptr, mix->indices, before->indptr, before->indices}) =
                tape->groups->needs(*mix, *before);
        before = mix;
    }
}

int teleport_staged(const Tape* tape) { return tape->groups != nullptr; }

void teleport_forget(Tape* tape) { delete tape; }

// The calls first .. last - 1. copies: what comes before, in no phase. seconds: by phase, added to.
// ends: of each call, seconds from the first one's begin, where they are to be made one by one; or
// null.
void teleport_replay(Tape* tape, const Copy* copies, int64_t n_copies, int64_t first, int64_t last,
                     double* seconds, double* ends) {
    for (int64_t i = 0; i < n_copies; ++i) teleport_copy(copies + i);
    if (tape->groups && !ends) {
        if (tape->moves) need_anew(tape, first, last);
        static thread_local std::vector<Vector> shared;  // new memory costs as much as some rounds
        shared.resize(std::max(shared.size(), size_t(2 * tape->shared) / sizeof(Vector)));
        const int64_t from = tape->begins[first];
        tape->groups->make(lent->run, tape->stages.data() + from, tape->begins[last] - from,
                           (char*)shared.data(), tape->shared, seconds);
        return;
    }
    const auto start = Clock::now();
    auto began = start;
    for (int64_t i = first; i < last; ++i) {
        const Call& call = tape->calls[i];
        call.run(call.arguments);
        const auto now = Clock::now();
        seconds[call.phase] += between(began, now);
        if (ends) ends[i - first] = between(start, now);
        began = now;
    }
}
}
