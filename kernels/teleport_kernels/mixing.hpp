// What cpu_mix.cpp takes, and what it lends to libraries that call it between loops of their own.

#pragma once

#include "parallel.hpp"

namespace teleport {

struct Mix {
    int64_t dtype;  // 0 float32, 1 float64, 2 bfloat16, 3 float16
    int64_t k, width;
    const int64_t *indptr, *indices;
    int64_t n_runs;
    const int64_t* runs;
    int64_t n_blocks;
    const int64_t* blocks;
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
    int64_t tile, rows, threads, past;
    int64_t pool;  // whether the threads are the pool's, else OpenMP's
};

struct Lent {
    Run run;  // on the threads that mix
    int (*mix)(const Mix*);
    // A float32 mix without source and target in two passes over rows: the y of some rows, and once
    // their neighbours' are there as well, their sums. y has the bytes of `space`, as many for each
    // row, and begins where a vector register may.
    int64_t (*space)(const Mix*);
    void (*step)(const Mix*, void* y, const int64_t* rows, int64_t n);
    void (*sum)(const Mix*, const void* y, const int64_t* rows, int64_t n);
};

}  // namespace teleport
