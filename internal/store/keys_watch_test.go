package store

import (
	"context"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
)

// A watched is a directory as one watcher knows it.
type watched struct {
	stored  *apikey.Stored
	wholes  atomic.Int32 // loads of the whole
	applied chan struct{}
	cancel  context.CancelFunc
	ended   chan error
}

// watch begins to watch and returns when everything there is has been applied.
func watch(t *testing.T, k keyStore) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	w := &watched{stored: apikey.NewStored(nil), applied: make(chan struct{}, 1), cancel: cancel, ended: make(chan error, 1)}
	go func() { w.ended <- k.Watch(ctx, w.apply) }()
	t.Cleanup(func() { w.stop(t) })
	w.awaitThat(t, "the whole", func(*apikey.Directory) bool { return w.wholes.Load() > 0 })
	return w
}

func (w *watched) apply(records []apikey.Record, whole bool) {
	if whole {
		w.stored.Replace(records)
		w.wholes.Add(1)
	} else {
		w.stored.Apply(records)
	}
	select {
	case w.applied <- struct{}{}:
	default:
	}
}

// stop ends the watch, which must be soon and without an error.
func (w *watched) stop(t *testing.T) {
	t.Helper()
	w.cancel()
	select {
	case err := <-w.ended:
		if err != nil {
			t.Errorf("the watch ended with %v", err)
		}
		w.ended <- nil
	case <-time.After(time.Second):
		t.Error("the watch does not end")
	}
}

// awaitThat waits until the directory is as it should be, and returns how long it took.
func (w *watched) awaitThat(t *testing.T, what string, is func(d *apikey.Directory) bool) time.Duration {
	t.Helper()
	began := time.Now()
	timeout := time.After(30 * time.Second)
	for !is(w.stored.Directory()) {
		select {
		case <-w.applied:
		case err := <-w.ended:
			w.ended <- err
			t.Fatalf("the watch ended: %v", err)
		case <-timeout:
			t.Fatalf("the watcher never saw %s", what)
		}
	}
	return time.Since(began)
}

// await waits until the watcher knows a record.
func (w *watched) await(t *testing.T, r apikey.Record) time.Duration {
	t.Helper()
	return w.awaitThat(t, "key "+r.ID, func(d *apikey.Directory) bool {
		known := d.ByID(r.ID)
		return known != nil && known.Revision >= r.Revision
	})
}

// has expects that the watcher knows a record as it is.
func (w *watched) has(t *testing.T, r apikey.Record) {
	t.Helper()
	if known := w.stored.Directory().ByID(r.ID); known == nil || !reflect.DeepEqual(*known, r) {
		t.Errorf("known of key %s: %+v, want %+v", r.ID, known, r)
	}
}

// soon expects that a record arrives within a second.
func (w *watched) soon(t *testing.T, r apikey.Record) {
	t.Helper()
	took := w.await(t, r)
	t.Logf("key %s arrived after %s", r.ID, took)
	if took > time.Second {
		t.Errorf("key %s arrived after %s: want within a second", r.ID, took)
	}
	w.has(t, r)
}
