package main

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pace sends on the channel when each call is due, at that time, until the duration is
// over. It never waits for calls that are late: the channel holds them all.
//
// It has a thread of its own, since timers of Go are late by up to a millisecond, which
// would be in every latency.
func pace(ctx context.Context, start time.Time, rate float64, duration time.Duration) <-chan time.Time {
	calls := int(rate * duration.Seconds())
	due := make(chan time.Time, calls)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(due)
		for i := range calls {
			at := start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
			if wait := time.Until(at); wait > 0 {
				t := unix.NsecToTimespec(int64(wait))
				_ = unix.Nanosleep(&t, nil) // woken early, it is early
			}
			if ctx.Err() != nil {
				return
			}
			due <- at
		}
	}()
	return due
}
