package store

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/quota"
)

// TestMemoryForgetsEndedWindows: what has ended frees its memory, what is open
// stays.
func TestMemoryForgetsEndedWindows(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	m := NewMemory(func() time.Time { return now }, 10_000)
	for i := range 1000 {
		take(t, m, of(strconv.Itoa(i), charge(quota.Minute, 10, 1)))
	}
	take(t, m, of("long", charge(quota.Minute, 10, 1), charge(quota.Day, 10, 1)))
	now = now.Add(time.Minute)
	m.Sweep()
	if n := m.Len(); n != 1 {
		t.Errorf("%d accounts after the minute: want 1", n)
	}
	wantTaken(t, take(t, m, of("long", charge(quota.Minute, 10, 1), charge(quota.Day, 10, 1))), true, 1, 2)
}

// TestMemoryIsBounded: a full store refuses new accounts, keeps counting those
// it has, and makes room by itself once windows have ended.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const most = 6400
	m := NewMemory(func() time.Time { return now }, most)
	counted, full := "", 0
	for i := range 2 * most {
		_, err := m.Take(t.Context(), quota.Order{Account: strconv.Itoa(i), Charges: []quota.Charge{charge(quota.Minute, 10, 1)}})
		switch {
		case errors.Is(err, ErrFull):
			full++
		case err != nil:
			t.Fatal(err)
		default:
			counted = strconv.Itoa(i)
		}
	}
	if n := m.Len(); n > most || n+full != 2*most {
		t.Errorf("%d accounts and %d refused: want at most %d accounts", n, full, most)
	}
	wantTaken(t, take(t, m, of(counted, charge(quota.Minute, 10, 1))), true, 2)
	now = now.Add(time.Minute)
	for i := range most / 2 {
		take(t, m, of("later"+strconv.Itoa(i), charge(quota.Minute, 10, 1)))
	}
}

// TestMemoryLooksCostNoRoom: asking about an unknown account leaves no trace.
func TestMemoryLooksCostNoRoom(t *testing.T) {
	t.Parallel()
	m := NewMemory(time.Now, 1)
	for i := range 100 {
		take(t, m, of(strconv.Itoa(i), charge(quota.Minute, 0, 1)))
	}
	if n := m.Len(); n != 0 {
		t.Errorf("%d accounts after refusals only: want none", n)
	}
	full := NewMemory(time.Now, 1)
	for i := range 100 {
		_, _ = full.Take(t.Context(), of(strconv.Itoa(i), charge(quota.Day, 1, 1))) // until it is full
		take(t, full, of("look"+strconv.Itoa(i), charge(quota.Minute, 1, 0)))
		take(t, m, of(strconv.Itoa(i), charge(quota.Minute, 1, 0)))
	}
	if n := m.Len(); n != 0 {
		t.Errorf("%d accounts after looks only: want none", n)
	}
}
