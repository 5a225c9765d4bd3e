package main

import (
	"fmt"
	"time"
)

const (
	// lastWrites is how long writing may take at the end, when all requests have been
	// answered: nothing else ends what waits for a disk that stalls.
	lastWrites = 30 * time.Second
	// lastUsage is how much of it usage has, in a file.
	lastUsage = 25 * time.Second
)

// endWithin waits until end has returned, and returns its error; but no longer than limit
// after all requests have been answered. Then end goes on, and the process is to end.
func endWithin(answered <-chan struct{}, limit time.Duration, end func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- end() }()
	select {
	case err := <-ended:
		return err
	case <-answered:
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case err := <-ended:
		return err
	case <-timeout.C:
		return fmt.Errorf("end: what is written last has not been within %s of the last answer, and is lost: see to the disk of store.memory.file, where that is set", limit)
	}
}
