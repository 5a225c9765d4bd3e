package e2e

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// snapshotFile is where a stack's TierGate keeps its counts.
func snapshotFile(s *devstack.Stack) string {
	return filepath.Join(s.Options.Dir, "tiergate.db.counts")
}

// usedOf is what a key has used of its requests per minute.
func usedOf(t *testing.T, s *devstack.Stack, id string) int {
	t.Helper()
	limits, _ := admin(t, s, "usage", id, "--limits")["limits"].([]any)
	for _, l := range limits {
		if l, ok := l.(map[string]any); ok && l["name"] == "requests_per_minute" {
			return int(l["used"].(float64))
		}
	}
	t.Fatalf("no requests per minute: %v", limits)
	return 0
}

// manyRequests is a configuration whose tier pro has a large limit.
func manyRequests(t *testing.T) string {
	t.Helper()
	config, _ := ownConfig(t)
	edit(t, config, "per: minute, max: 100}", "per: minute, max: 100000}")
	return config
}

// TestCountsSurviveAKill: a TierGate that counts in memory and is killed under load forgets
// what it answered in the last interval, and nothing that is older.
func TestCountsSurviveAKill(t *testing.T) {
	t.Parallel()
	const interval = 500 * time.Millisecond
	s := up(t, devstack.Options{Config: manyRequests(t), Keep: true, Sets: []string{"store.memory.snapshot_interval=" + interval.String()}})
	key, id := createKey(t, s, "--tier", "pro")
	inForce(t, s, key, http.StatusOK)
	freshMinute(t, 30*time.Second)
	before := usedOf(t, s, id)
	var answered []time.Time
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		if r := do(t, s, call{key: key}); r.StatusCode != http.StatusOK {
			t.Fatalf("%s %s", r.Status, r.body)
		}
		answered = append(answered, time.Now())
	}
	duration := metric(t, s, "tiergate_snapshot_duration_seconds_sum") / metric(t, s, "tiergate_snapshot_duration_seconds_count")
	killed := time.Now()
	kill(t, s.Server)
	if err := s.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	counted := usedOf(t, s, id) - before
	lost := time.Duration(0)
	if counted < len(answered) {
		lost = killed.Sub(answered[max(counted, 0)])
	}
	t.Logf("%d requests in 4 s, killed: %d are counted after the start, the last %s are lost; a write takes %.0f ms", len(answered), counted, lost, duration*1000)
	// A busy machine may write late.
	if counted < 1 || counted > len(answered) || lost > interval+time.Second {
		t.Errorf("%d of %d counted, %s lost: want at most %s", counted, len(answered), lost, interval)
	}
}

// TestCountsSurviveAStop: one that is told to stop forgets nothing, up to the last request,
// and what it keeps holds no key.
func TestCountsSurviveAStop(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Config: manyRequests(t), Keep: true, Sets: []string{"store.memory.snapshot_interval=1h", "shutdown.delay=1s"}})
	key, id := createKey(t, s, "--tier", "pro")
	inForce(t, s, key, http.StatusOK)
	freshMinute(t, 30*time.Second)
	n := usedOf(t, s, id)
	if err := s.Server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for answers := true; answers; { // until it has drained
		if answers = do(t, s, call{key: key}).StatusCode == http.StatusOK; answers {
			n++
		}
	}
	<-s.Server.Done()
	content, err := os.ReadFile(snapshotFile(s))
	if err != nil || !bytes.Contains(content, []byte(id)) || bytes.Contains(content, []byte(key)) {
		t.Errorf("the snapshot: %v, %d bytes: want the key's ID, and not the key", err, len(content))
	}
	if err := s.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if counted := usedOf(t, s, id); counted != n {
		t.Errorf("%d answered, %d counted", n, counted)
	}
}

// TestSnapshotsFail: while the counts cannot be written requests are answered and counted,
// the metrics tell, the log has one line, and so it has when they can be again.
func TestSnapshotsFail(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Keep: true, Sets: []string{"store.memory.snapshot_interval=20ms"}})
	eventually(t, "the first snapshot is written", func() bool { return metric(t, s, "tiergate_snapshot_last_success_timestamp_seconds") > 0 })
	// A directory that is not empty comes and goes at once, or the server gets between.
	obstacle := t.TempDir()
	if err := os.Mkdir(filepath.Join(obstacle, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	temporary := snapshotFile(s) + ".tmp"
	eventually(t, "it is in the way", func() bool { return os.Rename(obstacle, temporary) == nil })
	do(t, s, call{key: "sk-demo-pro"})
	eventually(t, "snapshots fail", func() bool { return metric(t, s, "tiergate_snapshot_failures_total") >= 3 })
	if r := do(t, s, call{key: "sk-demo-pro"}); r.StatusCode != http.StatusOK {
		t.Errorf("%s %s", r.Status, r.body)
	}
	if status, body := operator(t, s, "/readyz"); status != http.StatusOK {
		t.Errorf("readyz: %d %s", status, body)
	}
	if err := os.Rename(temporary, obstacle); err != nil {
		t.Fatal(err)
	}
	var log []byte
	eventually(t, "they are written again", func() bool {
		var err error
		log, err = os.ReadFile(s.LogFile("tiergate"))
		return err == nil && bytes.Contains(log, []byte("the counts are written to disk again"))
	})
	failures := metric(t, s, "tiergate_snapshot_failures_total")
	last := metric(t, s, "tiergate_snapshot_last_success_timestamp_seconds")
	do(t, s, call{key: "sk-demo-pro"})
	eventually(t, "another is written", func() bool { return metric(t, s, "tiergate_snapshot_last_success_timestamp_seconds") > last })
	if now := metric(t, s, "tiergate_snapshot_failures_total"); now != failures {
		t.Errorf("%g failures, and %g later", failures, now)
	}
	for _, line := range []string{"the counts cannot be written to disk", "the counts are written to disk again"} {
		if n := strings.Count(string(log), line); n != 1 {
			t.Errorf("%d lines in the log say %q: want 1", n, line)
		}
	}
}
