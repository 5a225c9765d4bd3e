package store

import (
	"runtime"
	"testing"
	"time"
)

// TestMemoryPerKey holds what an active key of three limits costs, and beside it what is
// remembered of a request, at what docs/configuration.md says to plan. The number of keys is one
// that fills Go's maps badly.
func TestMemoryPerKey(t *testing.T) { // alone: it measures the whole process
	const keys, perKey, perRequest = 100_000, 200, 250
	accounts := accountsOf(keys)
	begin, none := heapSize()
	m := NewMemory(time.Now, 2*keys)
	fill(t, m, accounts, false)
	counted, some := heapSize()
	fill(t, m, accounts, true)
	remembered, _ := heapSize()
	t.Logf("%d bytes a key, %d a request", (counted-begin)/keys, (remembered-counted)/keys)
	if n := (counted - begin) / keys; n > perKey {
		t.Errorf("%d bytes a key: want %d at most", n, perKey)
	}
	if n := (remembered - counted) / keys; n > perRequest {
		t.Errorf("%d bytes a request: want %d at most", n, perRequest)
	}
	// The collector of garbage goes from each piece of memory to the next.
	if pieces := some - none; pieces > keys/10 {
		t.Errorf("%d pieces of memory for %d keys: want a tenth as many at most", pieces, keys)
	}
	runtime.KeepAlive(m)
	runtime.KeepAlive(accounts)
}

// heapSize returns how many bytes are in use, and in how many pieces.
func heapSize() (bytes, pieces int64) {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc), int64(s.HeapObjects)
}
