package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// snapshotTime is a Wednesday, in the middle of every window.
var snapshotTime = time.Date(2026, 3, 4, 12, 30, 30, 0, time.UTC)

// A node is a memory store with a file, whose clock is the test's.
type node struct {
	*Memory

	snapshots *Snapshots
	file      *File
	setAside  []error
	outages   []error
	failed    int
	written   int
}

// startNode starts a node at a path.
func startNode(t *testing.T, path string, now func() time.Time) *node {
	t.Helper()
	n, err := tryNode(path, now)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tryNode(path string, now func() time.Time) (*node, error) {
	file, err := OpenFile(path)
	if err != nil {
		return nil, err
	}
	n := &node{Memory: NewMemory(now, 10_000), file: file}
	n.snapshots, err = OpenSnapshots(file, n.Memory, SnapshotOptions{Interval: time.Second, Notices: SnapshotNotices{
		SetAside: func(name string, why error) { n.setAside = append(n.setAside, errors.New(name+": "+why.Error())) },
		Written: func(_ time.Duration, err error) {
			n.written++
			if err != nil {
				n.failed++
			}
		},
		Outage: func(err error) { n.outages = append(n.outages, err) },
	}})
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return n, nil
}

// stop ends a node as the program does.
func (n *node) stop(t *testing.T) {
	t.Helper()
	if err := errors.Join(n.snapshots.Close(), n.file.Close()); err != nil {
		t.Fatal(err)
	}
}

// keptOrder is an order whose charges wait for a settlement.
func keptOrder(account, request string, charges ...quota.Charge) quota.Order {
	return quota.Order{Account: account, Charges: charges, Request: request, Secret: "secret-" + request, Keep: time.Hour}
}

func countsFile(path string) string { return path + ".counts" }

// TestSnapshotKeepsItsWord: after a restart every count goes on where it was, a repeat is
// known, and what was reserved is settled, once.
func TestSnapshotKeepsItsWord(t *testing.T) {
	t.Parallel()
	now := snapshotTime
	clock := func() time.Time { return now }
	path := filepath.Join(t.TempDir(), "tiergate.db")
	n := startNode(t, path, clock)
	for i := range 500 {
		take(t, n, of("a"+strconv.Itoa(i), charge(quota.Minute, 1000, int64(i)), charge(quota.Day, 10_000, 3)))
	}
	many := keptOrder("many", "r1", charge(quota.Second, 9, 1), charge(quota.Minute, 9, 1), charge(quota.Hour, 9, 1), charge(quota.Week, 9, 1), tokens(quota.Tokens, quota.Month, 900, 500))
	wantTaken(t, take(t, n, many), true, 1, 1, 1, 1, 500)
	settled := keptOrder("settled", "r2", tokens(quota.Tokens, quota.Day, quota.NoMax, 100))
	take(t, n, settled)
	if got := settle(t, n, quota.Settlement{Account: "settled", Request: "r2", Secret: "secret-r2", Used: quota.Cost{Tokens: 40}}); got != quota.Settled {
		t.Errorf("settled: %s", got)
	}
	n.stop(t)
	if info, err := os.Stat(countsFile(path)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v: want mode 0600", info.Mode(), err)
	}
	if _, err := os.Stat(countsFile(path) + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a temporary file is left: %v", err)
	}

	now = now.Add(5 * time.Second)
	n = startNode(t, path, clock)
	defer n.stop(t)
	if len(n.setAside) != 0 {
		t.Errorf("set aside: %v", n.setAside)
	}
	for i := range 500 {
		want := []int64{int64(i), 4}
		wantTaken(t, take(t, n, of("a"+strconv.Itoa(i), charge(quota.Minute, 1000, 0), charge(quota.Day, 10_000, 1))), true, want...)
	}
	again := many
	again.Secret = "other"
	if taken := take(t, n, again); taken.Secret != "secret-r1" || !taken.Now.Equal(snapshotTime) || taken.Used[4] != 500 {
		t.Errorf("a repeat: %+v", taken)
	}
	st := quota.Settlement{Account: "many", Request: "r1", Secret: "secret-r1", Used: quota.Cost{Tokens: 120}}
	wrong := st
	wrong.Secret = "other"
	for _, step := range []struct {
		st   quota.Settlement
		want quota.Outcome
	}{
		{wrong, quota.NotFound},
		{st, quota.Settled},
		{st, quota.Duplicate},
		{quota.Settlement{Account: "settled", Request: "r2", Secret: "secret-r2"}, quota.Duplicate},
	} {
		if got := settle(t, n, step.st); got != step.want {
			t.Errorf("%+v: %s, want %s", step.st, got, step.want)
		}
	}
	wantTaken(t, take(t, n, of("many", charge(quota.Second, 9, 0), charge(quota.Minute, 9, 0), tokens(quota.Tokens, quota.Month, 900, 0))), true, 0, 1, 120)
	wantTaken(t, take(t, n, of("settled", tokens(quota.Tokens, quota.Day, quota.NoMax, 0))), true, 40)
}

// TestSnapshotForgets what ended before it was written, and what ended before it is read.
func TestSnapshotForgets(t *testing.T) {
	t.Parallel()
	now := snapshotTime
	clock := func() time.Time { return now }
	path := filepath.Join(t.TempDir(), "tiergate.db")
	n := startNode(t, path, clock)
	take(t, n, keptOrder("secondly", "canary", charge(quota.Second, 9, 1)))
	for i := range 1000 {
		take(t, n, of("m"+strconv.Itoa(i), charge(quota.Minute, 9, 1)))
	}
	o := keptOrder("daily", "r", charge(quota.Day, 9, 1), charge(quota.Minute, 9, 1))
	o.Keep = time.Minute
	take(t, n, o)
	now = now.Add(time.Second)
	n.stop(t)
	content, err := os.ReadFile(countsFile(path))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(content, []byte("requests/second")) {
		t.Error("the reservation of an ended second is to be kept")
	}
	if len(content) > 15_000 {
		t.Errorf("1,000 accounts take %d bytes", len(content))
	}

	now = now.Add(time.Hour)
	n = startNode(t, path, clock)
	if n.Len() != 1 {
		t.Errorf("%d accounts after an hour: want 1", n.Len())
	}
	if got := settle(t, n, quota.Settlement{Account: "daily", Request: "r", Secret: "secret-r"}); got != quota.NotFound {
		t.Errorf("an expired reservation: %s", got)
	}
	for i := range n.shards {
		if k := len(n.shards[i].reservations); k > 0 {
			t.Errorf("%d expired reservations", k)
		}
	}
	for _, account := range []string{"m999", "daily"} {
		take(t, n, of(account, charge(quota.Minute, 9, 1)))
	}
	now = now.Add(time.Minute)
	n.stop(t)
	if content, err = os.ReadFile(countsFile(path)); err != nil || bytes.Contains(content, []byte("m999")) || !bytes.Contains(content, []byte("daily")) {
		t.Errorf("%q %v", content, err)
	}
}

// TestSnapshotOfTheFuture: where the clock was set back, the windows that have begun go on,
// those that have not are void until they begin, and nothing refuses to count.
func TestSnapshotOfTheFuture(t *testing.T) {
	t.Parallel()
	now := snapshotTime
	clock := func() time.Time { return now }
	path := filepath.Join(t.TempDir(), "tiergate.db")
	n := startNode(t, path, clock)
	c := []quota.Charge{charge(quota.Minute, 9, 5), charge(quota.Day, 90, 5)}
	take(t, n, keptOrder("a", "r", c...))
	take(t, n, of("b", c...))
	n.stop(t)

	now = snapshotTime.Add(-time.Hour)
	n = startNode(t, path, clock)
	wantTaken(t, take(t, n, of("a", c...)), true, 5, 10)
	if got := settle(t, n, quota.Settlement{Account: "a", Request: "r", Secret: "secret-r"}); got != quota.Settled {
		t.Errorf("a reservation: %s", got)
	}
	n.stop(t)

	now = snapshotTime.Add(time.Second)
	n = startNode(t, path, clock)
	defer n.stop(t)
	wantTaken(t, take(t, n, of("b", c...)), false, 5, 5)
	wantTaken(t, take(t, n, of("a", c...)), true, 5, 15)
}

// writtenSnapshot returns a snapshot with a count and a reservation.
func writtenSnapshot(tb testing.TB) []byte {
	tb.Helper()
	m := NewMemory(func() time.Time { return snapshotTime }, 100)
	for _, o := range []quota.Order{of("a", charge(quota.Day, 9, 1), charge(quota.Hour, 9, 2)), keptOrder("b", "r", tokens(quota.Tokens, quota.Month, 9, 1))} {
		if _, err := m.Take(tb.Context(), o); err != nil {
			tb.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(tb.TempDir(), "snapshot"))
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(m.writeSnapshot(f), f.Close()); err != nil {
		tb.Fatal(err)
	}
	content, err := os.ReadFile(f.Name())
	if err != nil {
		tb.Fatal(err)
	}
	return content
}

// TestDamagedSnapshots are set aside as they are, counting starts at zero, and the next
// snapshot works.
func TestDamagedSnapshots(t *testing.T) {
	t.Parallel()
	good := writtenSnapshot(t)
	newer := bytes.Clone(good)
	binary.BigEndian.PutUint32(newer[len(snapshotMagic):], snapshotVersion+1)
	long := bytes.Clone(good)
	binary.BigEndian.PutUint64(long[len(snapshotMagic)+4:], 1<<63)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 4
	zeros := bytes.Clone(good)
	clear(zeros[len(zeros)/2:])
	cases := []struct {
		content []byte
		want    string
	}{
		{nil, "ends after 0 bytes"},
		{good[:5], "ends after 5 bytes"},
		{good[:headerSize], "by its header"},
		{good[:len(good)-1], "by its header"},
		{append(bytes.Clone(good), 0), "by its header"},
		{long, "by its header"},
		{newer, "it has version 2 of the format, and this TierGate reads version 1"},
		{flipped, "its checksum is wrong"},
		{zeros, "its checksum is wrong"},
		{[]byte("SQLite format 3\x00 and so on, and so on"), "no snapshot of TierGate"},
		{sealed([]byte("no gob")), "contradicts itself"},
	}
	now := func() time.Time { return snapshotTime }
	for i, c := range cases {
		path := filepath.Join(t.TempDir(), "tiergate.db")
		if err := os.WriteFile(countsFile(path), c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		n := startNode(t, path, now)
		aside := countsFile(path) + ".damaged-20260304T123030.000Z"
		if len(n.setAside) != 1 || !strings.HasPrefix(n.setAside[0].Error(), aside+": ") || !strings.Contains(n.setAside[0].Error(), c.want) {
			t.Errorf("case %d: set aside: %v, want %q", i, n.setAside, c.want)
		}
		if content, err := os.ReadFile(aside); err != nil || !bytes.Equal(content, c.content) {
			t.Errorf("case %d: not as it was: %v", i, err)
		}
		wantTaken(t, take(t, n, of("a", charge(quota.Day, 9, 1))), true, 1)
		n.stop(t)
		n = startNode(t, path, now)
		wantTaken(t, take(t, n, of("a", charge(quota.Day, 9, 1))), true, 2)
		n.stop(t)
	}
	for i := range good { // no bit of it may change
		m := NewMemory(now, 100)
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		var damage damageError
		if err := m.readSnapshot(bytes.NewReader(bad), int64(len(bad))); !errors.As(err, &damage) || m.Len() != 0 {
			t.Errorf("byte %d changed: %v, %d accounts", i, err, m.Len())
		}
	}
}

// TestSnapshotsThatCannotBeOpened end the start, and say what to do.
func TestSnapshotsThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	now := func() time.Time { return snapshotTime }
	dir := t.TempDir()
	fails := func(path, want string) {
		t.Helper()
		if _, err := tryNode(path, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q", err, want)
		}
	}
	unreadable := filepath.Join(dir, "unreadable.db")
	if err := os.Mkdir(countsFile(unreadable), 0o700); err != nil {
		t.Fatal(err)
	}
	fails(unreadable, "load the counts: read "+countsFile(unreadable)+": is a directory: let the server read it")

	stuck := filepath.Join(dir, "stuck.db")
	if err := os.Mkdir(countsFile(stuck)+".damaged-20260304T123030.000Z", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(countsFile(stuck), []byte("foreign, and of some length"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(stuck, "set aside the counts, which cannot be used (it is no snapshot of TierGate")

	left := filepath.Join(dir, "left.db")
	if err := os.WriteFile(countsFile(left)+".tmp", []byte("half of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, left, now)
	if _, err := os.Stat(countsFile(left) + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	fails(left, "another process has it")
	n.stop(t)
	if err := os.MkdirAll(countsFile(left)+".tmp/x", 0o700); err != nil {
		t.Fatal(err)
	}
	fails(left, "remove it by hand")

	unnamed, err := OpenFile("")
	if err != nil {
		t.Fatal(err)
	}
	defer unnamed.Close()
	if _, err := OpenSnapshots(unnamed, NewMemory(now, 1), SnapshotOptions{}); !errors.Is(err, ErrUnnamed) {
		t.Errorf("unnamed: %v", err)
	}
}

// TestSnapshotsFailAndRecover: while the directory cannot be written, counting goes on, the
// old file stays, one notice tells of the beginning and one of the end.
func TestSnapshotsFailAndRecover(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tiergate.db")
	n := startNode(t, path, func() time.Time { return snapshotTime })
	write := func() error {
		t.Helper()
		take(t, n, of("a", charge(quota.Day, 9, 1)))
		return n.snapshots.write()
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(countsFile(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(countsFile(path)+".tmp/x", 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := write(); err == nil || !strings.Contains(err.Error(), "write the counts: remove ") {
			t.Errorf("written: %v", err)
		}
	}
	if after, err := os.ReadFile(countsFile(path)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the old file changed: %v", err)
	}
	if err := os.RemoveAll(countsFile(path) + ".tmp"); err != nil {
		t.Fatal(err)
	}
	// Nothing has been counted since, but what could not be written then is due.
	for range 2 {
		if err := n.snapshots.write(); err != nil {
			t.Fatal(err)
		}
	}
	if n.written != 4 || n.failed != 2 || len(n.outages) != 2 || n.outages[0] == nil || n.outages[1] != nil {
		t.Errorf("%d written, %d of them failed, outages %v", n.written, n.failed, n.outages)
	}
	n.stop(t)
	n = startNode(t, path, func() time.Time { return snapshotTime })
	defer n.stop(t)
	wantTaken(t, take(t, n, of("a", charge(quota.Day, 9, 1))), true, 4)
}

// TestSnapshotInterval: a snapshot is written at every interval in which something was
// counted, and at no other.
func TestSnapshotInterval(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tiergate.db")
	synctest.Test(t, func(t *testing.T) {
		n := startNode(t, path, time.Now)
		done := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { done <- n.snapshots.Run(ctx) }()
		after := func(want int, do func()) {
			t.Helper()
			do()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n.written != want {
				t.Errorf("%d written, want %d", n.written, want)
			}
		}
		after(1, func() {}) // the first shows whether it can
		o := keptOrder("a", "r", tokens(quota.Tokens, quota.Month, 9, 2))
		after(2, func() { take(t, n, o) })
		after(2, func() { take(t, n, of("a", tokens(quota.Tokens, quota.Month, 9, 0))) })
		after(2, func() { take(t, n, of("a", tokens(quota.Tokens, quota.Month, 1, 1))) })
		after(3, func() { settle(t, n, quota.Settlement{Account: "a", Request: "r", Secret: "secret-r"}) })
		after(4, func() { take(t, n, of("a", charge(quota.Month, 9, 1))) })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		n.stop(t)
		if n.written != 4 {
			t.Errorf("written at the end: %d", n.written)
		}
	})
}

// TestSnapshotIsOfOneInstant: while accounts are charged and settled, what a snapshot has
// of each fits together: its count is the sum of its reservations.
func TestSnapshotIsOfOneInstant(t *testing.T) {
	t.Parallel()
	clock := func() time.Time { return snapshotTime }
	m := NewMemory(clock, 4_000_000)
	var running atomic.Int64
	var group sync.WaitGroup
	for g := range 4 {
		running.Add(1)
		group.Go(func() {
			defer running.Add(-1)
			for i := range 10_000 {
				account, request := "a"+strconv.Itoa(i%3), strconv.Itoa(g)+"-"+strconv.Itoa(i)
				take(t, m, keptOrder(account, request, tokens(quota.Tokens, quota.Day, quota.NoMax, 3)))
				if i%2 == 0 {
					settle(t, m, quota.Settlement{Account: account, Request: request, Secret: "secret-" + request, Used: quota.Cost{Tokens: 0}})
				}
			}
		})
	}
	unsettled := 0
	var c shardCopy
	for running.Load() > 0 {
		for i := range m.shards {
			m.shards[i].copyTo(&c, m.names, clock)
			open := map[string]int64{}
			for _, r := range c.reservations {
				if o := r.open(); !r.settled {
					open[o.account] += o.charges.charge(m.names.all()).cost
					unsettled++
				}
			}
			for k, account := range c.accounts {
				if used := c.counters[k].used; used != open[account.id] {
					t.Errorf("%s: %d counted, %d reserved", account.id, used, open[account.id])
				}
			}
		}
	}
	group.Wait()
	if unsettled == 0 {
		t.Error("nothing was reserved")
	}
}

// copyOf writes a snapshot of a memory and reads it into another.
func copyOf(tb testing.TB, m *Memory) *Memory {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "snapshot"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := m.writeSnapshot(f); err != nil {
		tb.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	loaded := NewMemory(m.now, 1000)
	if err := loaded.readSnapshot(f, info.Size()); err != nil {
		tb.Fatal(err)
	}
	return loaded
}
