package config

import (
	"fmt"
	"maps"
	"os"
	"syscall"
)

// Sources are the files that a configuration was read from, each with the state
// it was in just before.
type Sources map[string]string

// Now returns the same files in the state they are in.
func (s Sources) Now() Sources {
	now := make(Sources, len(s))
	for name := range s {
		now[name] = state(name)
	}
	return now
}

// Equal reports whether the files and their states are the same.
func (s Sources) Equal(o Sources) bool { return maps.Equal(s, o) }

// With returns the files of both; where both have one, its state in s holds.
func (s Sources) With(o Sources) Sources {
	both := maps.Clone(o)
	maps.Copy(both, s)
	return both
}

// state describes a file by what changes when it does. It follows symbolic
// links, so it sees Kubernetes swap a mounted directory.
func state(name string) string {
	info, err := os.Stat(name)
	if err != nil {
		return err.Error()
	}
	var inode uint64
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = stat.Ino
	}
	return fmt.Sprintf("%d bytes, %d, inode %d", info.Size(), info.ModTime().UnixNano(), inode)
}
