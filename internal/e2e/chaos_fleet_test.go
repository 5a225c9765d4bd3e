package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// instanceKilled: of three instances behind one Envoy one is killed, and started again.
// What was under way there Envoy asks of another.
func instanceKilled(t *testing.T) row {
	f := newTrialBehindOne(t, devstack.Options{}, 3)
	last := f.stacks[2]
	r := f.run("One of three instances killed", pick(10*time.Second, 4*time.Second), func() { kill(t, last.Server) }, func() {
		if err := last.StartServer(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	for _, name := range []string{"upstream_rq_retry", "upstream_rq_retry_success", "upstream_rq_retry_limit_exceeded"} {
		t.Logf("Envoy's %s: %d", name, envoyStat(t, f.edges[0], "cluster.tiergate."+name))
	}
	// A settlement on its way to the killed one is lost: its estimate stands. What it had
	// charged and not yet answered is asked again under the same ID.
	return f.check(r, promise{slowest: slowest(), tokens: f.unsettled()})
}

// envoyRestarted: the errors are Envoy's own; every count is right.
func envoyRestarted(t *testing.T) row {
	f := newTrial(t, devstack.Options{}, 1)
	one := f.stacks[0]
	r := f.run("Envoy restarted", pick(2*time.Second, time.Second), func() {
		if err := one.Proxy.Stop(10 * time.Second); err != nil {
			t.Fatal(err)
		}
	}, func() {
		if err := one.StartProxy(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	return f.check(r, promise{errors: r.errors, doubt: r.errors, tokens: f.unsettled()})
}

// diskFull: the counts of one node cannot be written to disk. It goes on counting, says so,
// keeps the file it has, and writes again as soon as it can.
func diskFull(t *testing.T) row {
	var log logged
	f := newMemoryTrial(t, &log)
	s := f.stacks[0]
	file := s.Options.Dir + "/tiergate.db.counts"
	failures := func() float64 { return metric(t, s, "tiergate_snapshot_failures_total") }
	eventually(t, "there is a snapshot", func() bool { _, err := os.Stat(file); return err == nil })
	var kept []byte
	r := f.run("Disk full for the snapshot", pick(10*time.Second, 4*time.Second), func() {
		limitFiles(t, s.Server, "512")
		before := failures()
		eventually(t, "a snapshot fails", func() bool { return failures() > before })
		kept = content(t, file)
	}, func() {
		if now := content(t, file); !bytes.Equal(kept, now) {
			t.Errorf("the snapshot of %d bytes became one of %d while none could be written", len(kept), len(now))
		}
		limitFiles(t, s.Server, "unlimited")
		eventually(t, "there is a newer snapshot", func() bool { return !bytes.Equal(kept, content(t, file)) })
	})
	if n := bytes.Count(log.bytes(), []byte("written to disk")); n != 2 {
		t.Errorf("%d lines of the log: want one when writing begins to fail and one when it works again", n)
	}
	return f.check(r, promise{slowest: slowest()})
}

// newMemoryTrial starts one instance that keeps its counts in the process and on disk.
func newMemoryTrial(t *testing.T, log io.Writer) *trial {
	t.Helper()
	o := devstack.Options{Keep: true, Log: log, Sets: []string{"store.memory.snapshot_interval=1s"}}
	f := newStoppedTrial(t, &o)
	o.Store = "memory"
	f.add(o)
	f.edges = f.stacks
	return f
}

// limitFiles says how many bytes a file of a running program may have: what is written
// beyond fails, as it does on a full disk. Unlike a full disk, it needs no privilege.
func limitFiles(t *testing.T, p *devstack.Process, bytes string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "prlimit", "--pid", strconv.Itoa(p.PID()), "--fsize="+bytes+":").CombinedOutput()
	if err != nil {
		t.Fatalf("limit the files of TierGate: %v: %s", err, out)
	}
}

func content(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A logged is a log that is read while it is written.
type logged struct {
	mu  sync.Mutex
	all []byte
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, p...)
	return len(p), nil
}

func (l *logged) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.all)
}
