// Loops on several threads, for passes of microseconds on machines that others use as well.
//
// OpenMP's barrier waits for every thread, also for one that the system has put aside: a pass of
// twenty microseconds then takes a time slice. Here threads claim pieces of the loop as they come;
// the caller claims too and waits only for pieces that were claimed, so that an idle core helps and
// a busy one does not hinder. Each begins with a share of its own, the same of every loop: what it
// wrote there in the last loop lies in its core's cache, and another core's would be slower to read
// than memory. Between loops the threads look for the next one for a moment, and then sleep.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include <pthread.h>

#if defined(__SSE2__)
#include <immintrin.h>
#define TK_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define TK_PAUSE() asm volatile("yield")
#else
#define TK_PAUSE() ((void)0)
#endif

namespace teleport {

class Pool {
  public:
    using Body = void (*)(void*, int64_t piece, int64_t thread);

  private:
    // Of the current loop, in one word: how many threads may work, and of one thread's share of the
    // pieces those that nobody has claimed. A piece is claimed by putting the word without it in its
    // place; and as long as a claimed piece is not done, the loop cannot end, so body and context
    // stay what they are.
    struct alignas(64) Share {
        static constexpr int PIECE = 24;
        std::atomic<uint64_t> word{0};

        static int64_t field(uint64_t word, int at) {
            return word >> at & ((uint64_t(1) << PIECE) - 1);
        }
        void deal(int64_t limit, int64_t first, int64_t last) {
            word = (uint64_t(limit) << PIECE | uint64_t(last)) << PIECE | uint64_t(first);
        }
        // A piece for that thread, from the front or from the back; -1 where there is none.
        int64_t claim(int64_t thread, bool front) {
            for (uint64_t w = word.load();;) {
                const int64_t first = field(w, 0), last = field(w, PIECE);
                if (first >= last || thread >= field(w, 2 * PIECE)) return -1;
                const uint64_t left = front ? w + 1 : w - (uint64_t(1) << PIECE);
                if (word.compare_exchange_weak(w, left)) return front ? first : last - 1;
            }
        }
    };
    static constexpr int64_t MOST_THREADS = 256, MOST_PIECES = (1 << Share::PIECE) - 1;

    Share shares[MOST_THREADS];
    alignas(64) std::atomic<uint64_t> loop{0};
    std::atomic<int64_t> sleeping{0};
    Body body = nullptr;
    void* context = nullptr;
    std::atomic<int64_t> most_threads{0};
    alignas(64) std::atomic<int64_t> done{0};
    std::mutex mutex, busy;
    std::condition_variable wake;
    int64_t threads = 1;

    // First the thread's own share, then what others have not begun.
    void work(int64_t thread, int64_t most) {
        int64_t count = 0;
        for (int64_t s = 0; s < most; ++s)
            for (int64_t i; (i = shares[(thread + s) % most].claim(thread, s == 0)) >= 0; ++count)
                body(context, i, thread);
        if (count) done.fetch_add(count, std::memory_order_release);
    }

    void serve(int64_t thread) {
        using Clock = std::chrono::steady_clock;
        uint64_t seen = 0;
        const auto another = [&] { return loop.load() != seen; };
        for (;;) {
            const auto until = Clock::now() + std::chrono::microseconds(50);
            for (int spins = 1; !another(); ++spins) {
                TK_PAUSE();
                if (spins % 64 || Clock::now() < until) continue;
                std::unique_lock<std::mutex> lock(mutex);
                ++sleeping;
                wake.wait(lock, another);
                --sleeping;
            }
            seen = loop.load();
            work(thread, most_threads);
        }
    }

  public:
    // Never destroyed: its threads live as long as the process. A fork has none of them, nor knows
    // what they held: it gets a pool of its own.
    static Pool& instance() {
        static Pool* pool = [] {
            pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
            return new Pool;
        }();
        return *pool;
    }

    // what(with, piece, thread) for the pieces 0 .. n - 1, on threads below `most`.
    void run(int64_t most, int64_t n, Body what, void* with) {
        std::unique_lock<std::mutex> alone(busy, std::try_to_lock);
        if (most < 2 || n < 2 || n > MOST_PIECES || !alone.owns_lock()) {
            for (int64_t i = 0; i < n; ++i) what(with, i, 0);
            return;
        }
        most = std::min({most, n, MOST_THREADS});
        for (; threads < most; ++threads)
            std::thread([this, thread = threads] { serve(thread); }).detach();
        body = what, context = with, done = 0, most_threads = most;
        for (int64_t t = 0; t < most; ++t) shares[t].deal(most, n * t / most, n * (t + 1) / most);
        ++loop;
        if (sleeping) {
            std::lock_guard<std::mutex> lock(mutex);
            wake.notify_all();
        }
        work(0, most);
        for (int spins = 0; done.load(std::memory_order_acquire) < n; ++spins)
            if (spins < 4096)
                TK_PAUSE();
            else
                std::this_thread::yield();
    }
};

// How a loop is given to threads: `run` of the pool, or of another library's.
using Run = void (*)(int64_t most, int64_t n, Pool::Body, void* context);
inline void run_in_pool(int64_t most, int64_t n, Pool::Body body, void* context) {
    Pool::instance().run(most, n, body, context);
}

// Calls body(thread, first, last) for ranges of 0 .. n - 1 that cover it, a few for each thread.
template <class Body> void in_pieces(Run run, int64_t threads, int64_t n, Body body) {
    struct Loop {
        Body& body;
        int64_t n, pieces;
    } loop{body, n, n < 4 * threads ? n : threads == 1 ? 1 : 4 * threads};
    const auto piece = [](void* context, int64_t i, int64_t thread) {
        const Loop& l = *static_cast<Loop*>(context);
        l.body(thread, l.n * i / l.pieces, l.n * (i + 1) / l.pieces);
    };
    run(threads, loop.pieces, piece, &loop);
}

}  // namespace teleport
