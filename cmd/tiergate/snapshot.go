package main

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tiergate/tiergate/internal/store"
)

// keepCounts loads what was counted before, and has the counts written from now on: at
// intervals by keep, and for the last time by close, while the file is still locked.
func (s *stores) keepCounts(file *store.File, memory *store.Memory, o store.SnapshotOptions) error {
	snapshots, err := store.OpenSnapshots(file, memory, o)
	if err != nil {
		return errors.Join(fmt.Errorf("open the store: %w", err), file.Close())
	}
	s.keep = snapshots.Run
	s.close = func() error { return errors.Join(snapshots.Close(), file.Close()) }
	return nil
}

// newSnapshotNotices returns what measures snapshots and logs what becomes of them.
func newSnapshotNotices(m *metrics, log *slog.Logger) store.SnapshotNotices {
	failures := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tiergate_snapshot_failures_total", Help: "Snapshots of the memory store's counts that could not be written.",
	})
	last := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tiergate_snapshot_last_success_timestamp_seconds", Help: "When the latest snapshot of the memory store's counts was written, Unix seconds; 0: none.",
	})
	duration := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "tiergate_snapshot_duration_seconds", Help: "Time to write a snapshot of the memory store's counts.",
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30},
	})
	m.registry.MustRegister(failures, last, duration)
	return store.SnapshotNotices{
		SetAside: func(name string, why error) {
			log.Error("the counts on disk cannot be used: they are set aside, and counting starts at zero", "error", why, "set_aside", name)
		},
		Written: func(took time.Duration, err error) {
			if err != nil {
				failures.Inc()
				return
			}
			duration.Observe(took.Seconds())
			last.SetToCurrentTime()
		},
		Outage: func(err error) {
			if err != nil {
				log.Error("the counts cannot be written to disk: counting goes on, and what is counted from now on ends with this process", "error", err)
				return
			}
			log.Info("the counts are written to disk again")
		},
	}
}
