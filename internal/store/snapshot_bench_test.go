package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// BenchmarkSnapshot writes and loads 1,000,000 accounts of three counters each, and says
// how long a Take waited meanwhile, and how long one does in the same time without.
func BenchmarkSnapshot(b *testing.B) {
	const accounts = 1_000_000
	m := NewMemory(time.Now, 2*accounts)
	for i := range accounts {
		if _, err := m.Take(b.Context(), accountOrder(i)); err != nil {
			b.Fatal(err)
		}
	}
	path := filepath.Join(b.TempDir(), "tiergate.db")
	file, err := OpenFile(path)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	s := &Snapshots{memory: m, path: countsFile(path)}
	var wrote, loaded, copied time.Duration
	var waits, alone []time.Duration
	for b.Loop() {
		began := time.Now()
		waits = append(waits, takesWhile(b, m, func() {
			s.due = true
			if err := s.write(); err != nil {
				b.Error(err)
			}
			wrote += time.Since(began)
		})...)
		took := time.Since(began)
		alone = append(alone, takesWhile(b, m, func() { time.Sleep(took) })...)

		var c shardCopy
		for i := range m.shards {
			began := time.Now()
			m.shards[i].copyTo(&c, m.names, m.now)
			copied = max(copied, time.Since(began))
		}

		began = time.Now()
		again := NewMemory(time.Now, 2*accounts)
		if err := (&Snapshots{memory: again, path: s.path}).load(); err != nil {
			b.Fatal(err)
		}
		loaded += time.Since(began)
		if again.Len() != accounts {
			b.Fatalf("%d accounts", again.Len())
		}
	}
	info, err := os.Stat(s.path)
	if err != nil {
		b.Fatal(err)
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(wrote)/float64(b.N), "write-ms")
	b.ReportMetric(ms(loaded)/float64(b.N), "load-ms")
	b.ReportMetric(float64(info.Size())/1e6, "MB")
	b.ReportMetric(ms(copied), "longest-copy-ms")
	b.ReportMetric(ms(slices.Max(waits)), "longest-take-ms")
	b.ReportMetric(ms(slices.Max(alone)), "longest-take-without-ms")
	b.Logf("%d Takes while it was written, p99.9 %s; without %d, p99.9 %s", len(waits), permille(waits), len(alone), permille(alone))
}

// accountOrder charges three limits of an account.
func accountOrder(i int) quota.Order {
	return of(fmt.Sprintf("key_%020d", i), charge(quota.Month, quota.NoMax, 1), charge(quota.Week, quota.NoMax, 1+int64(i%1000)), tokens(quota.Tokens, quota.Month, quota.NoMax, 1+int64(i)))
}

// takesWhile measures Takes, one after the other, for as long as do takes.
func takesWhile(b *testing.B, m *Memory, do func()) []time.Duration {
	b.Helper()
	orders := make([]quota.Order, 10_000)
	for i := range orders {
		orders[i] = accountOrder(i * 97)
	}
	var over atomic.Bool
	took := make(chan []time.Duration)
	go func() {
		var all []time.Duration
		for i := 0; !over.Load(); i++ {
			began := time.Now()
			if _, err := m.Take(b.Context(), orders[i%len(orders)]); err != nil {
				b.Error(strconv.Itoa(i), err)
			}
			all = append(all, time.Since(began))
		}
		took <- all
	}()
	do()
	over.Store(true)
	return <-took
}

func permille(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)*999/1000]
}
