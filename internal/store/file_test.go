package store

import (
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// TestFile: what has a name is there again, what has none is not; a file belongs to
// one process.
func TestFile(t *testing.T) {
	t.Parallel()
	put := func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte("b"))
		if err != nil {
			return err
		}
		return bucket.Put([]byte("k"), make([]byte, 1<<20))
	}
	has := func(f *File) (found bool) {
		_ = f.db.View(func(tx *bbolt.Tx) error {
			found = tx.Bucket([]byte("b")) != nil
			return nil
		})
		return found
	}
	for _, path := range []string{"", filepath.Join(t.TempDir(), "tiergate.db")} {
		f, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.db.Update(put); err != nil || !has(f) {
			t.Errorf("%q: %v", path, err)
		}
		if path != "" {
			if _, err := OpenFile(path); err == nil || !strings.Contains(err.Error(), "another process has it") {
				t.Errorf("opened twice: %v", err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		again, err := OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if has(again) != (path != "") {
			t.Errorf("%q: kept: %t", path, has(again))
		}
		if err := again.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := OpenFile(filepath.Join(t.TempDir(), "no", "such.db")); err == nil || !strings.Contains(err.Error(), "may be written") {
		t.Errorf("no directory: %v", err)
	}
}
