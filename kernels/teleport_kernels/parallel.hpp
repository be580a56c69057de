// Loops on several threads, for passes of microseconds on machines that others use as well.
//
// OpenMP's barrier waits for every thread, also for one that the system has put aside: a pass of
// twenty microseconds then takes a time slice. Here threads claim pieces of the loop as they come;
// the caller claims too and waits only for pieces that were claimed, so that an idle core helps and
// a busy one does not hinder. Between loops the threads look for the next one for a moment, and then
// sleep.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

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
    // Of the current loop, in one word: its number, how many threads may work, its pieces, and the
    // next of them. A thread claims a piece by putting the word with the next one in its place,
    // which fails where the loop has ended meanwhile; and as long as a claimed piece is not done,
    // the loop cannot end, so body and context stay what they are.
    struct Ticket {
        static constexpr int PIECE = 20, LIMIT = 8;
        uint64_t word;
        uint64_t loop() const { return word >> (2 * PIECE + LIMIT); }
        int64_t limit() const { return field(2 * PIECE, LIMIT); }
        int64_t pieces() const { return field(PIECE, PIECE); }
        int64_t next() const { return field(0, PIECE); }
        int64_t field(int at, int bits) const { return word >> at & ((uint64_t(1) << bits) - 1); }
        static uint64_t of(uint64_t loop, int64_t limit, int64_t pieces) {
            return ((loop << LIMIT | uint64_t(limit)) << PIECE | uint64_t(pieces)) << PIECE;
        }
    };
    static constexpr int64_t MOST_THREADS = (1 << Ticket::LIMIT) - 1;
    static constexpr int64_t MOST_PIECES = (1 << Ticket::PIECE) - 1;

    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> done{0}, sleeping{0};
    Body body = nullptr;
    void* context = nullptr;
    std::mutex mutex, busy;
    std::condition_variable wake;
    int64_t threads = 1;

    void work(int64_t thread) {
        Ticket t{ticket.load()};
        while (thread < t.limit() && t.next() < t.pieces())
            if (ticket.compare_exchange_weak(t.word, t.word + 1)) {
                body(context, t.next(), thread);
                done.fetch_add(1, std::memory_order_release);
                t.word = ticket.load();
            }
    }

    void serve(int64_t thread) {
        using Clock = std::chrono::steady_clock;
        uint64_t seen = 0;
        const auto another = [&] { return Ticket{ticket.load()}.loop() != seen; };
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
            seen = Ticket{ticket.load()}.loop();
            work(thread);
        }
    }

  public:
    // Never destroyed: its threads live as long as the process.
    static Pool& instance() {
        static Pool* pool = new Pool;
        return *pool;
    }

    // what(with, piece, thread) for the pieces 0 .. n - 1, on threads below `most`.
    void run(int64_t most, int64_t n, Body what, void* with) {
        std::unique_lock<std::mutex> alone(busy, std::try_to_lock);
        if (most < 2 || n < 2 || n > MOST_PIECES || !alone.owns_lock()) {
            for (int64_t i = 0; i < n; ++i) what(with, i, 0);
            return;
        }
        most = most < MOST_THREADS ? most : MOST_THREADS;
        for (; threads < most; ++threads)
            std::thread([this, thread = threads] { serve(thread); }).detach();
        body = what, context = with, done = 0;
        ticket = Ticket::of(Ticket{ticket.load()}.loop() + 1, most, n);
        if (sleeping) {
            std::lock_guard<std::mutex> lock(mutex);
            wake.notify_all();
        }
        work(0);
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
