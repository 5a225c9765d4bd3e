// Package pace waits for times more precisely than timers of Go, which are late by up to a
// millisecond: that would be in every latency of a load that is sent on time.
//
// It does not know what is sent.
package pace

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Until waits until a time, on a thread that is the caller's own (runtime.LockOSThread). It
// may be early, where a signal wakes it.
func Until(at time.Time) {
	if wait := time.Until(at); wait > 0 {
		t := unix.NsecToTimespec(int64(wait))
		_ = unix.Nanosleep(&t, nil) // woken early, it is early
	}
}

// Calls sends on the channel when each call is due, at that time, so many a second, until
// the duration is over or ctx is done. It never waits for calls that are late: the channel
// holds them all.
func Calls(ctx context.Context, start time.Time, rate float64, duration time.Duration) <-chan time.Time {
	calls := int(rate * duration.Seconds())
	due := make(chan time.Time, calls)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(due)
		for i := range calls {
			at := start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
			Until(at)
			if ctx.Err() != nil {
				return
			}
			due <- at
		}
	}()
	return due
}
