package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// fullHere is set in the process whose files end early.
const fullHere = "TIERGATE_TEST_DISK_FULL"

// TestDiskFull: where a snapshot finds room for a part only, the old one stays, the part
// goes, and counting goes on. It runs in a process of its own, since all files of that end
// there, the log of the tests too.
func TestDiskFull(t *testing.T) {
	if os.Getenv(fullHere) == "" {
		alone := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDiskFull$", "-test.v")
		alone.Env = append(os.Environ(), fullHere+"=1")
		if out, err := alone.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestDiskFull")) {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "tiergate.db")
	n := startNode(t, path, func() time.Time { return snapshotTime })
	count := func() {
		for i := range 5000 {
			take(t, n, of("account"+strconv.Itoa(i), charge(quota.Day, 1<<40, 1<<30+int64(i))))
		}
	}
	count()
	if err := n.snapshots.write(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(countsFile(path))
	if err != nil || len(before) < 50_000 {
		t.Fatalf("%d bytes: %v", len(before), err)
	}
	limitFiles(t, uint64(len(before))/2)
	count()
	err = n.snapshots.write()
	limitFiles(t, 1<<62)
	if !errors.Is(err, syscall.EFBIG) {
		t.Errorf("on a full disk: %v", err)
	}
	if after, err := os.ReadFile(countsFile(path)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the old file changed: %v", err)
	}
	if _, err := os.Stat(countsFile(path) + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a part is left: %v", err)
	}
	n.stop(t)
	n = startNode(t, path, func() time.Time { return snapshotTime })
	defer n.stop(t)
	wantTaken(t, take(t, n, of("account7", charge(quota.Day, 1<<40, 0))), true, 2<<30+14)
}

// limitFiles lets files grow to that many bytes, as if the disk had no more.
func limitFiles(t *testing.T, most uint64) {
	t.Helper()
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		t.Fatal(err)
	}
	l.Cur = min(most, l.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
		t.Fatal(err)
	}
}
