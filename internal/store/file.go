package store

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long another process may take to let go of the file.
const lockTimeout = 2 * time.Second

// errDamaged says that pages of the file are torn or gone.
var errDamaged = errors.New("it is damaged: put a copy of it back, or set it aside, and keys and usage begin anew; if it is sound, please report this")

// A File is where one node keeps what outlives the process: the directory of keys and
// the usage. Every change is written whole or not at all. Where damage is found, nothing
// more is read or written until the file is opened again.
type File struct {
	db   *bbolt.DB
	path string // empty: it has no name

	damage  sync.Once
	damaged chan struct{} // closed where damage is found: what bbolt had locked then, it may have locked for ever
}

// OpenFile opens the file at a path, and makes it where there is none. Without a path
// what is kept ends with the process. It is an error if the file is another process's,
// none of ours, or cut off.
func OpenFile(path string) (*File, error) {
	options := *bbolt.DefaultOptions
	options.Timeout = lockTimeout
	open := os.OpenFile
	if path == "" {
		options.NoSync = true
		open = openUnnamed
	}
	var opened *os.File
	options.OpenFile = func(name string, flag int, mode os.FileMode) (file *os.File, err error) {
		opened, err = open(name, flag, mode)
		return opened, err
	}
	f := &File{path: path, damaged: make(chan struct{})}
	err := guarded(func() (err error) {
		if f.db, err = bbolt.Open(path, 0o600, &options); err != nil || path == "" {
			return err
		}
		return whole(f.db, path)
	})
	if errors.Is(err, errDamaged) {
		_ = opened.Close() // and the lock with it
	}
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("open %s: another process has it%s: stop that one, or name another file in store.memory.file", path, holder(path))
	case errors.Is(err, errDamaged):
		return nil, fmt.Errorf("open %s: %w", path, err)
	case err != nil && path == "":
		return nil, fmt.Errorf("make a temporary file for keys and usage: %w: set store.memory.file", err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w: name a file that may be written, or set it aside", path, err)
	}
	return f, nil
}

// whole reports a file that is cut off: it does not have all the pages that it counts.
func whole(db *bbolt.DB, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	return db.View(func(tx *bbolt.Tx) error { //nolint:wrapcheck // ours
		if info.Size() < tx.Size() {
			return fmt.Errorf("it ends after %d bytes of %d: %w", info.Size(), tx.Size(), errDamaged)
		}
		return nil
	})
}

// view reads in one step.
func (f *File) view(read func(*bbolt.Tx) error) error { return f.use(false, read) }

// update writes in one step.
func (f *File) update(write func(*bbolt.Tx) error) error { return f.use(true, write) }

// use reads or writes, unless damage was found.
func (f *File) use(writable bool, do func(*bbolt.Tx) error) error {
	var tx *bbolt.Tx
	if err := f.unlessDamaged(func() (err error) {
		tx, err = f.db.Begin(writable)
		return err
	}); err != nil {
		return err
	}
	if err := f.found(guarded(func() error { return do(tx) })); err != nil {
		_ = f.unlessDamaged(tx.Rollback) // what went wrong before tells more
		return err
	}
	if writable {
		return f.unlessDamaged(tx.Commit)
	}
	return f.unlessDamaged(tx.Rollback)
}

// unlessDamaged does what may wait for another use of the file, until damage is found in it.
func (f *File) unlessDamaged(do func() error) error {
	select {
	case <-f.damaged:
		return fmt.Errorf("%s: %w", f.path, errDamaged)
	default:
	}
	done := make(chan error, 1)
	go func() { done <- guarded(do) }()
	select {
	case err := <-done:
		return f.found(err)
	case <-f.damaged:
		return fmt.Errorf("%s: %w", f.path, errDamaged)
	}
}

// found ends the use of the file where an error says that it is damaged.
func (f *File) found(err error) error {
	if errors.Is(err, errDamaged) {
		f.damage.Do(func() { close(f.damaged) })
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return err
}

// guarded has damage fail, where bbolt panics because pages contradict each other or make no
// sense, and the processor because they are not there.
func guarded(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if found := recover(); found != nil {
			err = fmt.Errorf("%v: %w", found, errDamaged)
		}
	}()
	return do()
}

// Close ends the use of the file.
func (f *File) Close() error {
	if err := f.unlessDamaged(f.db.Close); err != nil {
		return fmt.Errorf("close the file of keys and usage: %w", err)
	}
	return nil
}
