// Stages that look at what they are given, for test_stages.py.

#include "stages.hpp"

#include <random>

using namespace teleport;

namespace {

struct Matrix {
    int64_t k;
    const int64_t *indptr, *indices;
};

struct Round {
    int64_t number;  // of the mix, of which there may be several a round
    Matrix matrix;
    int64_t* made;  // (rows): stages of each row
    std::atomic<int64_t>* wrong;
};

// Some rows take long, so that others get as far ahead as they may.
void linger(int64_t row, int64_t round) {
    std::minstd_rand random(uint32_t(row * 7919 + round * 104729 + 1));
    random.discard(3);
    if (random() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
}

// Stage number `stage` of three a round is the next one of its rows.
void count(const Round& r, const int64_t* rows, int64_t n, int64_t stage) {
    for (int64_t i = 0; i < n; ++i) *r.wrong += r.made[rows[i]]++ != 3 * r.number + stage;
}

void gradient(const void* a, char*, const int64_t* rows, int64_t n, int64_t) {
    const Round& r = *(const Round*)a;
    count(r, rows, n, 0);
    linger(rows[0], r.number);
}

void step(const void* a, char* shared, const int64_t* rows, int64_t n, int64_t) {
    const Round& r = *(const Round*)a;
    count(r, rows, n, 1);
    for (int64_t i = 0; i < n; ++i) ((volatile int64_t*)shared)[rows[i]] = r.number;
}

void sum(const void* a, char* shared, const int64_t* rows, int64_t n, int64_t) {
    const Round& r = *(const Round*)a;
    count(r, rows, n, 2);
    for (int again = 0; again < 2; ++again) {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t e = r.matrix.indptr[rows[i]]; e < r.matrix.indptr[rows[i] + 1]; ++e)
                *r.wrong += ((volatile int64_t*)shared)[r.matrix.indices[e]] != r.number;
        if (!again) linger(rows[0] + 1, r.number);
    }
}

}  // namespace

// Rounds with matrices in turn, each with indptr (rows + 1) and indices of its own; first those before
// `first`, then the others. made: (rows), zeros. seconds: by phase. How often a row's turn was not the
// next one, or a sum found another round's step.
extern "C" int64_t make_stages(int64_t threads, int64_t rows, const int64_t* order, int64_t rounds,
                               int64_t first, int64_t n_matrices, const int64_t* const* indptr,
                               const int64_t* const* indices, int64_t* made, double* seconds) {
    Groups groups(order, rows, threads);
    std::atomic<int64_t> wrong{0};
    std::vector<Round> each;
    std::vector<Needs> needs;
    for (int64_t t = 0; t < rounds; ++t) {
        const int64_t m = t % n_matrices;
        each.push_back({t, {rows, indptr[m], indices[m]}, made, &wrong});
        needs.push_back(groups.needs(each[t].matrix, each[t ? t - 1 : 0].matrix));
    }
    std::vector<Stage> stages;
    for (int64_t t = 0; t < rounds; ++t) {
        const int which = t % 2;
        stages.push_back({gradient, &each[t], 1});
        stages.push_back({step, &each[t], 2, which});
        stages.push_back({sum, &each[t], 2, which, &needs[t]});
    }
    std::vector<int64_t> shared(2 * rows, -1);
    const int64_t bytes = rows * int64_t(sizeof(int64_t));
    for (const auto& [from, to] : {std::pair{int64_t(0), first}, std::pair{first, rounds}})
        groups.make(run_in_pool, stages.data() + 3 * from, 3 * (to - from), (char*)shared.data(),
                    bytes, seconds);
    return wrong;
}
