package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	berrors "go.etcd.io/bbolt/errors"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/usage"
)

const pageSize = 4096 // or a part of a page

// filledFile returns a file of keys and usage, closed, and where in it are pages with records.
func filledFile(t *testing.T) (path string, content []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "tiergate.db")
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for id := range strings.FieldsSeq("a b c d e f g h i j k l m n o p") {
		r := plainRecord(id)
		r.Labels = map[string]string{"filler": strings.Repeat(id, 1000)}
		write(t, NewFileKeys(f, KeyNotices{}), r)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if content, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return path, content
}

// useAll opens a file and uses it as a server does, until something fails.
func useAll(t *testing.T, path string) error {
	t.Helper()
	f, err := OpenFile(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // damaged, perhaps
	k := NewFileKeys(f, KeyNotices{})
	ctx, stop := context.WithCancel(t.Context())
	err = k.Watch(ctx, func([]apikey.Record, bool) { stop() })
	if err == nil {
		_, err = k.Read(t.Context(), "a")
	}
	if err == nil {
		_, err = k.Write(t.Context(), []apikey.Change{{Record: plainRecord("new"), Event: apikey.Event{Action: "create", KeyID: "new"}}})
	}
	if err == nil {
		err = NewFileUsage(f, time.Now).Add(t.Context(), usage.Batch{ID: "1", Instance: "i", Made: time.Now(), Accounts: []usage.Account{{ID: "a"}}})
	}
	return err
}

// TestDamagedFile: no page that is torn or gone ends the process, and what fails says what to do.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	directory, damaged := t.TempDir(), 0
	check := func(what string, at int, content []byte) {
		path := filepath.Join(directory, what+strconv.Itoa(at)) // one that is stuck is locked as long as the process lives
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		err := useAll(t, path)
		// bbolt says so of less than two pages, and of two that are none of its own.
		known := errors.Is(err, berrors.ErrInvalid) || strings.Contains(fmt.Sprint(err), "file size too small")
		if err != nil && !errors.Is(err, errDamaged) && !known {
			t.Errorf("%s at %d: %v", what, at, err)
		}
		if err != nil {
			damaged++
		}
	}
	path, good := filledFile(t)
	for at := 0; at < len(good); at += pageSize {
		if at > 0 { // an empty file is a new one
			check("cut off", at, good[:at])
		}
		for what, filler := range map[string]byte{"zeros": 0, "ones": 0xff, "text": 'x'} {
			content := bytes.Clone(good)
			copy(content[at:], bytes.Repeat([]byte{filler}, pageSize))
			check(what, at, content)
		}
	}
	if damaged == 0 {
		t.Error("no damage was found: the test is no proof")
	}
	if err := useAll(t, path); err != nil {
		t.Errorf("the file without damage: %v", err)
	}
}

// TestFileCutOffInUse: whoever reads or writes when the file is gone gets an error, and so does
// whoever closes it; nobody waits for ever.
func TestFileCutOffInUse(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{2 * pageSize, 0} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			t.Parallel()
			path, _ := filledFile(t)
			f, err := OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
			k, u := NewFileKeys(f, KeyNotices{}), NewFileUsage(f, time.Now)
			for range 2 { // a second time too
				_, err := k.Read(t.Context(), "a")
				wantDamaged(t, "read", path, err)
				_, err = k.Write(t.Context(), []apikey.Change{{Record: plainRecord("new"), Event: apikey.Event{Action: "create", KeyID: "new"}}})
				wantDamaged(t, "write", path, err)
				wantDamaged(t, "usage", path, u.Add(t.Context(), usage.Batch{ID: "1", Instance: "i", Made: time.Now()}))
			}
			wantDamaged(t, "close", path, f.Close())
		})
	}
}

func wantDamaged(t *testing.T, what, path string, err error) {
	t.Helper()
	if !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), path) {
		t.Errorf("%s: %v", what, err)
	}
}

// TestFileCutOffBetweenWriters: of two that write at once, none waits for ever for the other.
func TestFileCutOffBetweenWriters(t *testing.T) {
	t.Parallel()
	path, _ := filledFile(t)
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 2*pageSize); err != nil {
		t.Fatal(err)
	}
	u := NewFileUsage(f, time.Now)
	k := NewFileKeys(f, KeyNotices{})
	var both sync.WaitGroup
	both.Go(func() {
		wantDamaged(t, "usage", path, u.Add(t.Context(), usage.Batch{ID: "1", Instance: "i", Made: time.Now()}))
	})
	both.Go(func() {
		_, err := k.Write(t.Context(), []apikey.Change{{Record: plainRecord("new"), Event: apikey.Event{Action: "create", KeyID: "new"}}})
		wantDamaged(t, "write", path, err)
	})
	both.Wait()
}

// TestFileCutOffUnderReaders: of many that read at once when the file is gone, none waits for ever.
func TestFileCutOffUnderReaders(t *testing.T) {
	t.Parallel()
	path, _ := filledFile(t)
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	k := NewFileKeys(f, KeyNotices{})
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			_, err := k.Read(t.Context(), "a")
			wantDamaged(t, "read", path, err)
		})
	}
	all.Wait()
}
