package store

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestStoppedRedisIsNotWaitedFor: while Redis stands still no call takes longer than its
// time-out, and all but the first take nothing of it; the limit holds; when it goes on,
// everything that was admitted is counted there, once.
func TestStoppedRedisIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	const timeout, most = 200 * time.Millisecond, 1000
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, timeout)
	var told []string
	var mu sync.Mutex
	f := fallbackOn(r, func(o *FallbackOptions) {
		o.Notices.Began = func(out Outage) { mu.Lock(); told = append(told, "began: "+out.Err.Error()); mu.Unlock() }
		o.Notices.Ended = func(out Outage) { mu.Lock(); told = append(told, fmt.Sprintf("ended: %+v", out.Totals)); mu.Unlock() }
	})
	warm(t, r)
	runs(t, f)
	becomes(t, "the instance is counted", func() bool { return f.fleet.live.Load() == 1 })
	var admitted, degraded, slow atomic.Int64
	once := func() {
		began := time.Now()
		taken, err := f.Take(t.Context(), of("a", charge(quota.Month, most, 1)))
		if err != nil {
			t.Error(err)
			return
		}
		if time.Since(began) > 2*timeout {
			slow.Add(1)
		}
		if taken.Degraded {
			degraded.Add(1)
		}
		if taken.Admitted {
			admitted.Add(1)
		}
	}
	for range 100 {
		once()
	}
	signal(t, server, syscall.SIGSTOP)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				once()
			}
		})
	}
	group.Wait()
	if n := degraded.Load(); n != 400 || slow.Load() != 0 {
		t.Errorf("%d of 400 decided without Redis, %d slow", n, slow.Load())
	}
	if s := f.State(); !s.Degraded || s.Err == nil {
		t.Errorf("%+v", s)
	}
	signal(t, server, syscall.SIGCONT)
	began := time.Now()
	becomes(t, "counts are shared again", func() bool { return allShared(f) })
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("counts are shared again after %s: want 2 s", took)
	}
	direct := redisStore(t, server)
	if used := take(t, direct, of("a", charge(quota.Month, most, 0))).Used[0]; used != admitted.Load() {
		t.Errorf("%d used, %d admitted", used, admitted.Load())
	}
	for range 8 {
		group.Go(func() {
			for range 100 {
				once()
			}
		})
	}
	group.Wait()
	if n := admitted.Load(); n != most {
		t.Errorf("%d admitted of %d", n, most)
	}
	becomes(t, "the end of the outage is told", func() bool { mu.Lock(); defer mu.Unlock(); return len(told) >= 2 })
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 2 {
		t.Errorf("told: %q", told)
	}
	t.Log(told)
}

// TestNeverMoreThroughAnOutage: requests all the time while Redis stops and goes on several
// times get exactly the limit of a single instance.
func TestNeverMoreThroughAnOutage(t *testing.T) {
	t.Parallel()
	server := redisServer(t)
	r := hastyStore(t, server.Options.RedisAddress, 50*time.Millisecond)
	warm(t, r)
	f := fallbackOn(r, nil)
	runs(t, f)
	var group sync.WaitGroup
	var admitted [20]atomic.Int64
	done := make(chan struct{})
	for k := range 8 {
		group.Go(func() {
			for i := k; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				account := i % len(admitted)
				taken, err := f.Take(t.Context(), of("a"+strconv.Itoa(account), charge(quota.Month, 1500, 1)))
				if err != nil {
					t.Error(err)
					return
				}
				if taken.Admitted {
					admitted[account].Add(1)
				}
				if taken.Degraded {
					<-time.After(time.Millisecond) // else the limit is reached in no time
				}
			}
		})
	}
	for range 3 {
		signal(t, server, syscall.SIGSTOP)
		becomes(t, "degraded", func() bool { return f.State().Degraded })
		<-time.After(100 * time.Millisecond)
		signal(t, server, syscall.SIGCONT)
		becomes(t, "back", func() bool { return !f.State().Degraded })
	}
	becomes(t, "all limits are reached", func() bool {
		for i := range admitted {
			if admitted[i].Load() < 1400 {
				return false
			}
		}
		return true
	})
	close(done)
	group.Wait()
	becomes(t, "counts are shared", func() bool { return allShared(f) })
	for i := range admitted {
		used := take(t, f, of("a"+strconv.Itoa(i), charge(quota.Month, 1500, 0))).Used[0]
		if n := admitted[i].Load(); n > 1500 || used < n || used > n+24 {
			t.Errorf("account %d: %d admitted of 1500, %d used: want as many, and those that Redis admitted and nobody heard of", i, n, used)
		}
	}
}

// TestAnOutageThatComesAndGoes is one.
func TestAnOutageThatComesAndGoes(t *testing.T) {
	t.Parallel()
	var began, ended int
	f := fallbackOn(redisStore(t, redisServer(t)), func(o *FallbackOptions) {
		o.Notices.Began = func(Outage) { began++ }
		o.Notices.Ended = func(out Outage) {
			if ended++; out.Duration <= 0 || out.Totals.Local != 3 {
				t.Errorf("%+v", out)
			}
		}
	})
	p := f.part("a")
	for range 3 {
		for i := range mostFailures {
			if f.State().Degraded {
				t.Errorf("degraded after %d failures: want %d", i, mostFailures)
			}
			f.failed(p, errors.New("too slow"))
		}
		take(t, f, of("a", charge(quota.Month, 10, 1)))
		f.mend(t.Context(), p)
		f.outage.end(f, calm)
	}
	if began != 1 || ended != 0 {
		t.Errorf("began %d times, ended %d times: want 1 and 0", began, ended)
	}
	becomes(t, "it is over", func() bool { f.outage.end(f, calm); return ended == 1 })
	f.failed(p, errors.New("too slow"))
	take(t, f, of("a", charge(quota.Month, 10, 0))) // succeeds: the next are not in a row
	for range mostFailures - 1 {
		f.failed(p, errors.New("too slow"))
	}
	if f.State().Degraded || began != 1 {
		t.Error("failures that are not in a row are too many")
	}
}
