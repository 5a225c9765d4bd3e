package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestEndIsBounded: the program waits for its last writes, and not for ever.
func TestEndIsBounded(t *testing.T) {
	t.Parallel()
	failed := errors.New("no room")
	for name, c := range map[string]struct {
		write time.Duration // from the last answer; 0: for ever
		want  string
	}{
		"at once":      {time.Nanosecond, "no room"},
		"slow":         {29 * time.Second, "no room"},
		"stands still": {0, "see to the disk"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const serving = time.Hour
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), serving)
				defer cancel()
				stuck, unstick := context.WithCancel(t.Context())
				defer unstick()
				err := endWithin(ctx.Done(), lastWrites, func() error {
					if c.write == 0 {
						<-stuck.Done()
						return nil
					}
					<-time.After(serving + c.write)
					return failed
				})
				if err == nil || !strings.Contains(err.Error(), c.want) || time.Since(began) > serving+lastWrites {
					t.Errorf("%v after %s: want %q", err, time.Since(began), c.want)
				}
			})
		})
	}
}
