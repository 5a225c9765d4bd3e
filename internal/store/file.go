package store

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long another process may take to let go of the file.
const lockTimeout = 2 * time.Second

// A File is where one node keeps what outlives the process: the directory of keys and
// the usage. Every change is written whole or not at all.
type File struct {
	db   *bbolt.DB
	path string // empty: it has no name
}

// OpenFile opens the file at a path, and makes it where there is none. Without a path
// what is kept ends with the process. It is an error if the file is another process's,
// or none of ours.
func OpenFile(path string) (*File, error) {
	options := *bbolt.DefaultOptions
	options.Timeout = lockTimeout
	if path == "" {
		options.NoSync = true
		options.OpenFile = openUnnamed
	}
	db, err := bbolt.Open(path, 0o600, &options)
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("open %s: another process has it: one server to a file", path)
	case err != nil && path == "":
		return nil, fmt.Errorf("make a temporary file for keys and usage: %w: set store.memory.file", err)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w: name a file that may be written, or set it aside", path, err)
	}
	return &File{db, path}, nil
}

// Close ends the use of the file.
func (f *File) Close() error {
	if err := f.db.Close(); err != nil {
		return fmt.Errorf("close the file of keys and usage: %w", err)
	}
	return nil
}
