package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"runtime"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// sealed makes a snapshot of a payload.
func sealed(payload []byte) []byte {
	sum := sha256.Sum256(payload)
	return append(append(snapshotHeader(uint64(len(payload))), payload...), sum[:]...)
}

// framed is a payload of frames.
func framed(tb testing.TB, frames ...frame) []byte {
	tb.Helper()
	var b bytes.Buffer
	encoder := gob.NewEncoder(&b)
	for _, f := range frames {
		if err := encoder.Encode(f); err != nil {
			tb.Fatal(err)
		}
	}
	return b.Bytes()
}

// A goodFrame is one that can be loaded, to be spoilt.
func goodFrame() frame {
	end := snapshotTime.Add(24 * time.Hour).UnixMilli()
	return frame{
		Accounts: accountColumns{
			Names: []string{"requests/day"}, Starts: []int64{0}, Ends: []int64{end},
			IDs: []string{"a", "b"}, Counters: []uint{1, 0}, Windows: []uint{0}, Used: []int64{1},
		},
		Reservations: reservationColumns{
			Names: []string{"tokens/day"}, Metrics: []uint{2}, Lengths: []int64{int64(quota.Day)}, Max: []int64{9}, Starts: []int64{0},
			Accounts: []string{"a"}, Requests: []string{"r"}, Secrets: []string{"s"}, At: []int64{0}, Expires: []int64{end}, Settled: []bool{false},
			Charges: []uint{1}, Windows: []uint{0}, Costs: []int64{3}, Used: []int64{3},
		},
	}
}

// spoilt are frames that contradict themselves, each in one way.
func spoilt() map[string]frame {
	frames := map[string]frame{}
	add := func(name string, spoil func(a *accountColumns, r *reservationColumns)) {
		f := goodFrame()
		spoil(&f.Accounts, &f.Reservations)
		frames[name] = f
	}
	add("no window", func(a *accountColumns, _ *reservationColumns) { a.Names = nil })
	add("no such window", func(a *accountColumns, _ *reservationColumns) { a.Windows[0] = 1 })
	add("more counters than there are", func(a *accountColumns, _ *reservationColumns) { a.Counters[0] = 2 })
	add("counters that overflow", func(a *accountColumns, _ *reservationColumns) { a.Counters[0], a.Counters[1] = 1<<63, 1<<63+1 })
	add("counters of no account", func(a *accountColumns, _ *reservationColumns) { a.Counters[0] = 0 })
	add("an account without its number", func(a *accountColumns, _ *reservationColumns) { a.Counters = a.Counters[:1] })
	add("no value", func(a *accountColumns, _ *reservationColumns) { a.Used = nil })
	add("less than nothing", func(a *accountColumns, _ *reservationColumns) { a.Used[0] = -1 })
	add("more than a count can be", func(a *accountColumns, _ *reservationColumns) { a.Used[0] = quota.MaxUsed + 1 })
	add("no secret", func(_ *accountColumns, r *reservationColumns) { r.Secrets = nil })
	add("no such charge", func(_ *accountColumns, r *reservationColumns) { r.Windows[0] = 1 })
	add("a window without length", func(_ *accountColumns, r *reservationColumns) { r.Lengths[0] = 0 })
	add("a window that is too long", func(_ *accountColumns, r *reservationColumns) { r.Lengths[0] = 1 << 62 })
	add("no such metric", func(_ *accountColumns, r *reservationColumns) { r.Metrics[0] = 258 })
	add("a metric that there is not", func(_ *accountColumns, r *reservationColumns) { r.Metrics[0] = 200 })
	add("no maximum", func(_ *accountColumns, r *reservationColumns) { r.Max = nil })
	add("no cost", func(_ *accountColumns, r *reservationColumns) { r.Costs = nil })
	add("more charges than there are", func(_ *accountColumns, r *reservationColumns) { r.Charges[0] = 2 })
	add("a window before too many", func(_ *accountColumns, r *reservationColumns) { r.Before = []int64{0, 0} })
	add("less than nothing used", func(_ *accountColumns, r *reservationColumns) { r.Used[0] = -1 })
	add("less than nothing before", func(_ *accountColumns, r *reservationColumns) { r.Before = []int64{-1} })
	add("a cost above all", func(_ *accountColumns, r *reservationColumns) { r.Costs[0] = quota.MaxUsed + 1 })
	add("less than no maximum", func(_ *accountColumns, r *reservationColumns) { r.Max[0] = -1 })
	add("a cost beyond all", func(_ *accountColumns, r *reservationColumns) { r.Costs[0] = -1 << 63 })
	return frames
}

// TestSpoiltFrames: a snapshot whose checksum is right and whose content is not is refused
// as a whole.
func TestSpoiltFrames(t *testing.T) {
	t.Parallel()
	load := func(frames ...frame) (*Memory, error) {
		m := NewMemory(func() time.Time { return snapshotTime }, 100)
		content := sealed(framed(t, frames...))
		return m, m.readSnapshot(bytes.NewReader(content), int64(len(content)))
	}
	if m, err := load(goodFrame()); err != nil || m.Len() != 1 {
		t.Fatalf("the good one: %v, %d accounts", err, m.Len())
	}
	for name, f := range spoilt() {
		m, err := load(goodFrame(), f)
		if left := m.accounts.left.Load(); err == nil || m.Len() != 0 || left != 100 {
			t.Errorf("%s: %v, %d accounts, room for %d", name, err, m.Len(), left)
		}
		for i := range m.shards {
			if n := len(m.shards[i].reservations); n > 0 {
				t.Errorf("%s: %d reservations", name, n)
			}
		}
	}
}

// TestClaimedLengths: what is only claimed is not allocated.
func TestClaimedLengths(t *testing.T) { // alone: it measures the whole process
	huge := []byte{0xfb, 0x01, 0, 0, 0, 0} // gob: a message of 2^32 bytes
	good := framed(t, goodFrame())
	for _, content := range [][]byte{sealed(huge), sealed(append(bytes.Clone(good), huge...)), append(snapshotHeader(1<<40), huge...)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m := NewMemory(func() time.Time { return snapshotTime }, 100)
		if err := m.readSnapshot(bytes.NewReader(content), int64(len(content))); err == nil {
			t.Error("loaded")
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("%d bytes allocated for %d", n, len(content))
		}
	}
}

// FuzzSnapshot: whatever a file holds, with a right checksum or not, it is refused or
// loaded, and what was loaded can be counted with and written again.
func FuzzSnapshot(f *testing.F) {
	f.Add(writtenSnapshot(f), false)
	f.Add(framed(f, goodFrame()), true)
	for _, s := range spoilt() {
		f.Add(framed(f, s), true)
	}
	f.Fuzz(func(t *testing.T, content []byte, seal bool) {
		if seal {
			content = sealed(content)
		}
		m := NewMemory(func() time.Time { return snapshotTime }, 100)
		if err := m.readSnapshot(bytes.NewReader(content), int64(len(content))); err != nil {
			if m.Len() != 0 {
				t.Errorf("%d accounts of a snapshot that was refused", m.Len())
			}
			return
		}
		var settlements []quota.Settlement
		for i := range m.shards {
			for _, r := range m.shards[i].reservations {
				o := r.open()
				settlements = append(settlements, quota.Settlement{Account: o.account, Request: o.request, Secret: o.secret, RefundShare: 500})
			}
		}
		if again := copyOf(t, m); again.Len() != m.Len() {
			t.Errorf("%d accounts, and %d when they were written again", m.Len(), again.Len())
		}
		for _, st := range settlements {
			settle(t, m, st)
		}
		take(t, m, of("a", charge(quota.Day, 9, 1)))
		m.Sweep()
	})
}
