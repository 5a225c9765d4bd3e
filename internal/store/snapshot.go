package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Snapshots keep what a Memory counts in a file beside a File, whose lock protects both.
// Their methods are safe for concurrent use.
type Snapshots struct {
	memory   *Memory
	path     string
	interval time.Duration
	notices  SnapshotNotices

	mu      sync.Mutex // held while the file is written
	due     bool       // what was counted is not in the file
	failing bool
}

// SnapshotOptions say how Snapshots are kept.
type SnapshotOptions struct {
	Interval time.Duration // between two of them, and so what a killed process forgets
	Notices  SnapshotNotices
}

// SnapshotNotices are told how Snapshots fare. Each may be nil.
type SnapshotNotices struct {
	// SetAside: the file that was found could not be used, is now called name, and
	// counting begins at zero.
	SetAside func(name string, why error)
	// Written: a snapshot took so long, or failed.
	Written func(took time.Duration, err error)
	// Outage: snapshots begin to fail; nil: they are written again.
	Outage func(err error)
}

// ErrUnnamed says that a File without a name has no place for snapshots beside it.
var ErrUnnamed = errors.New("no snapshots without a file: set store.memory.file")

// OpenSnapshots loads what was counted when the last snapshot beside a file was written
// into an empty memory. A snapshot that is torn, damaged, foreign or of a newer version is
// set aside, and nothing of it is used. It is an error if it can neither be read nor set
// aside.
func OpenSnapshots(f *File, m *Memory, o SnapshotOptions) (*Snapshots, error) {
	if f.path == "" {
		return nil, ErrUnnamed
	}
	// It is due at once, so that a directory that cannot be written shows early.
	s := &Snapshots{memory: m, path: f.path + ".counts", interval: o.Interval, notices: o.Notices, due: true}
	if err := s.removeTemporary(); err != nil {
		return nil, fmt.Errorf("remove what is left of an unfinished snapshot: %w: remove it by hand", err)
	}
	err := s.load()
	var damage damageError
	switch {
	case errors.As(err, &damage):
		return s, s.setAside(damage)
	case err != nil:
		return nil, fmt.Errorf("load the counts: %w: let the server read it, or move it away, and counting starts at zero", err)
	}
	return s, nil
}

func (s *Snapshots) load() error {
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	return s.memory.readSnapshot(f, info.Size())
}

// setAside gives the file another name, which tells when that was.
func (s *Snapshots) setAside(why error) error {
	name := s.path + ".damaged-" + s.memory.now().UTC().Format("20060102T150405.000Z")
	if err := os.Rename(s.path, name); err != nil {
		return fmt.Errorf("set aside the counts, which cannot be used (%w): %w: move the file away, and counting starts at zero", why, err)
	}
	if s.notices.SetAside != nil {
		s.notices.SetAside(name, why)
	}
	return nil
}

// Run writes a snapshot at every interval in which something was counted, until ctx is
// done. One that fails is tried again at the next.
func (s *Snapshots) Run(ctx context.Context) error {
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			_ = s.write() // the notices have it
		}
	}
}

// Close writes the last snapshot, if anything was counted since the one before. It is
// called when nobody counts any more, before the File is closed.
func (s *Snapshots) Close() error {
	if err := s.write(); err != nil {
		return fmt.Errorf("the last counts are lost: %w", err)
	}
	return nil
}

// write writes a snapshot if one is due.
func (s *Snapshots) write() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.due && !s.memory.changed() {
		return nil
	}
	s.due = true
	began := s.memory.now()
	err := s.replace()
	s.due = err != nil
	if s.notices.Written != nil {
		s.notices.Written(s.memory.now().Sub(began), err)
	}
	if failing := err != nil; failing != s.failing {
		s.failing = failing
		if s.notices.Outage != nil {
			s.notices.Outage(err)
		}
	}
	return err
}

// replace writes a new file and puts it into the old one's place when it is on the disk.
func (s *Snapshots) replace() error {
	if err := s.removeTemporary(); err != nil {
		return fmt.Errorf("write the counts: %w", err)
	}
	err := s.writeTemporary()
	if err == nil {
		err = os.Rename(s.temporary(), s.path)
	}
	if err != nil {
		return fmt.Errorf("write the counts: %w", errors.Join(err, s.removeTemporary()))
	}
	if err := syncDirectory(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("write the counts: %w", err)
	}
	return nil
}

func (s *Snapshots) temporary() string { return s.path + ".tmp" }

func (s *Snapshots) removeTemporary() error {
	if err := os.Remove(s.temporary()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err //nolint:wrapcheck // it names the file
	}
	return nil
}

func (s *Snapshots) writeTemporary() error {
	f, err := os.OpenFile(s.temporary(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	err = s.memory.writeSnapshot(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDirectory has the disk keep the names of a directory.
func syncDirectory(path string) error {
	d, err := os.Open(path) //nolint:gosec // the operator's
	if err != nil {
		return err //nolint:wrapcheck // it names the directory
	}
	return errors.Join(d.Sync(), d.Close())
}
