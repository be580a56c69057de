// Rounds as stages of groups of rows, each made as soon as what it needs is there.
//
// Call by call, all threads wait for the last row of every loop, a few times a round: where a round
// has few rows, that is as long as the rows themselves. But a row's gradient needs nothing of other
// rows, and its sum only its neighbours' steps. So here each group counts the stages that it has
// behind it, and goes on when those that it needs have as many. A thread takes the groups of the
// rows that it has in every loop, and others' while its own wait.

#pragma once

#include "parallel.hpp"

#include <memory>
#include <vector>

namespace teleport {

using Clock = std::chrono::steady_clock;
inline double between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}
constexpr int PHASES = 4;  // of native/calls.py

// Of each group those that must have made all stages before this one: ids[begins[g]] and on.
struct Needs {
    std::vector<int32_t> begins, ids;
};

struct Stage {
    // Of n rows. shared: what passes between groups; thread: whose own memory may be used.
    void (*make)(const void* arguments, char* shared, const int64_t* rows, int64_t n,
                 int64_t thread);
    const void* arguments;
    int64_t phase;
    int which = 0;                 // of the two buffers that pass between groups
    const Needs* needs = nullptr;  // null: nothing of other groups
};

class Groups {
    static constexpr int64_t EACH = 8;       // groups of a thread at most
    static constexpr int64_t PATIENCE = 16;  // looks at its own groups before it takes others'
    static constexpr int64_t SAMPLE = 7;      // of so many turns one is timed: no divisor of EACH
    static constexpr int64_t LOOKS = 16384;   // at groups, in vain, before another thread may run

    struct alignas(64) Group {
        int64_t first, last;  // in order
        std::atomic<int64_t> made{0};
        std::atomic<bool> taken{false};
    };
    struct alignas(64) Spent {
        double seconds[PHASES] = {};
        int64_t turns = 0;
    };
    struct Loop {
        Groups& groups;
        const Stage* stages;
        int64_t n;
        char* shared[2];
        std::vector<Spent> spent;         // by thread
        std::atomic<int64_t> unfinished;  // groups
    };

    const int64_t* order;
    int64_t threads, n;
    std::unique_ptr<Group[]> all;

    bool ready(const Loop& loop, int64_t g, int64_t at) const {
        if (at == loop.n) return false;
        const Needs* const needs = loop.stages[at].needs;
        if (!needs) return true;
        for (int32_t i = needs->begins[g]; i < needs->begins[g + 1]; ++i)
            if (all[needs->ids[i]].made.load(std::memory_order_acquire) < at) return false;
        return true;
    }

    // Makes the stages of a group that are ready; whether there was one.
    bool advance(Loop& loop, int64_t g, int64_t thread) {
        Group& group = all[g];
        int64_t at = group.made.load(std::memory_order_relaxed);
        if (group.taken.load(std::memory_order_relaxed) || !ready(loop, g, at) ||
            group.taken.exchange(true, std::memory_order_acquire))
            return false;
        Spent& spent = loop.spent[thread];
        const bool timed = spent.turns++ % SAMPLE == 0;
        Clock::time_point began;
        if (timed) began = Clock::now();
        const int64_t before = at = group.made.load(std::memory_order_relaxed);
        for (; ready(loop, g, at); group.made.store(++at, std::memory_order_release)) {
            const Stage& stage = loop.stages[at];
            stage.make(stage.arguments, loop.shared[stage.which], order + group.first,
                       group.last - group.first, thread);
            if (!timed) continue;
            const auto now = Clock::now();
            spent.seconds[stage.phase] += between(began, now);
            began = now;
        }
        group.taken.store(false, std::memory_order_release);
        if (at > before && at == loop.n) --loop.unfinished;
        return at > before;
    }

    void work(Loop& loop, int64_t thread) {
        const int64_t first = n * thread / threads, last = n * (thread + 1) / threads;
        for (int64_t idle = 0; loop.unfinished.load(std::memory_order_acquire); ++idle) {
            bool own = false, other = false;
            for (int64_t g = first; g < last; ++g) own |= advance(loop, g, thread);
            for (int64_t i = last; idle >= PATIENCE && !own && !other && i < first + n; ++i)
                other = advance(loop, i % n, thread);
            if (own || other)
                idle = own ? 0 : PATIENCE;
            else if (idle < PATIENCE + LOOKS / n)
                TK_PAUSE();
            else
                std::this_thread::yield();
        }
    }

  public:
    // order: the rows, those of a thread after each other as in `in_pieces`.
    Groups(const int64_t* order, int64_t rows, int64_t threads) : order(order), threads(threads) {
        const int64_t each = std::min(EACH, std::max<int64_t>(1, rows / threads));
        n = threads * each;
        all.reset(new Group[n]);
        for (int64_t t = 0; t < threads; ++t) {
            const int64_t from = rows * t / threads, size = rows * (t + 1) / threads - from;
            for (int64_t g = 0; g < each; ++g) {
                all[t * each + g].first = from + size * g / each;
                all[t * each + g].last = from + size * (g + 1) / each;
            }
        }
    }

    // What a sum takes of other groups: the entries of its matrix. Once it is made, the group's next
    // step may write where the sum before this one was read, so those who did must be past it.
    template <class Matrix> Needs needs(const Matrix& matrix, const Matrix& before) const {
        std::vector<int32_t> group(matrix.k);
        for (int64_t g = 0; g < n; ++g)
            for (int64_t i = all[g].first; i < all[g].last; ++i) group[order[i]] = int32_t(g);
        std::vector<std::vector<bool>> needed(n, std::vector<bool>(n));
        for (int64_t row = 0; row < matrix.k; ++row) {
            for (int64_t e = matrix.indptr[row]; e < matrix.indptr[row + 1]; ++e)
                needed[group[row]][group[matrix.indices[e]]] = true;
            for (int64_t e = before.indptr[row]; e < before.indptr[row + 1]; ++e)
                needed[group[before.indices[e]]][group[row]] = true;
        }
        Needs found{{0}, {}};
        for (int32_t g = 0; g < n; ++g) {
            for (int32_t h = 0; h < n; ++h)
                if (needed[g][h] && h != g) found.ids.push_back(h);
            found.begins.push_back(int32_t(found.ids.size()));
        }
        return found;
    }

    // Makes n stages of all groups. shared: two buffers of so many bytes. seconds: by phase, added
    // to: the time from begin to end, shared out by what the threads were seen doing.
    void make(Run run, const Stage* stages, int64_t n_stages, char* shared, int64_t bytes,
              double* seconds) {
        if (n_stages == 0) return;
        const auto began = Clock::now();
        for (int64_t g = 0; g < n; ++g) all[g].made.store(0, std::memory_order_relaxed);
        Loop loop{*this, stages, n_stages, {shared, shared + bytes}, {}, {n}};
        loop.spent.resize(threads);
        const auto body = [](void* context, int64_t, int64_t thread) {
            Loop& l = *static_cast<Loop*>(context);
            l.groups.work(l, thread);
        };
        run(threads, threads, body, &loop);
        double all_seconds = 0;
        for (const Spent& s : loop.spent)
            for (double part : s.seconds) all_seconds += part;
        const double taken = between(began, Clock::now());
        if (all_seconds == 0)  // for a clock without ticks so short
            seconds[stages[0].phase] += taken;
        else
            for (const Spent& s : loop.spent)
                for (int p = 0; p < PHASES; ++p) seconds[p] += s.seconds[p] * (taken / all_seconds);
    }
};

}  // namespace teleport
