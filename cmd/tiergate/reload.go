package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/tiergate/tiergate/internal/config"
)

// pollInterval is how often the files are looked at. A change is taken up when it has
// lasted for settledAfter, so that a file is not read while it is being written.
const (
	pollInterval = 100 * time.Millisecond
	settledAfter = 2 * pollInterval
)

// A reloader keeps the gate's settings in step with the files: parse, check,
// swap one pointer. Files that are refused change nothing.
type reloader struct {
	options config.Options
	use     func(config.Reload) // takes up a configuration
	metrics *metrics
	log     *slog.Logger

	start   config.Start       // what the process was started with
	redis   config.RedisAccess // in use
	sources config.Sources     // as they were when last read
	sum     [sha256.Size]byte

	seen  config.Sources // at the last look
	since time.Time      // of the first look that has seen them so
}

// run reloads on SIGHUP and when a file has changed, until ctx is done.
func (r *reloader) run(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			r.reload(ctx)
		case <-tick.C:
			if r.look(r.sources.Now(), time.Now()) {
				r.reload(ctx)
			}
		}
	}
}

// look takes in what a look at the files has seen, and when, and reports whether they are to be
// read: they have changed since they were, and do not change any more.
func (r *reloader) look(files config.Sources, now time.Time) bool {
	if !files.Equal(r.seen) {
		r.seen, r.since = files, now
	}
	return now.Sub(r.since) >= settledAfter && !files.Equal(r.sources)
}

func (r *reloader) reload(ctx context.Context) {
	c, sources, err := config.Load(r.options)
	if err != nil {
		// The old files too: one of them may be what is missing now.
		r.sources = sources.With(r.sources.Now())
		r.metrics.reloads.WithLabelValues("failure").Inc()
		r.metrics.reloadOK.Set(0)
		r.logFaults(ctx, err)
		return
	}
	changed := c.Sum != r.sum
	if !c.Start.Store.SameRedis(r.start.Store) { // what lets in there is of no use here
		c.Reload.Redis = r.redis
	}
	r.use(c.Reload)
	r.metrics.reloads.WithLabelValues("success").Inc()
	r.loaded(c, sources)
	r.log.InfoContext(ctx, "configuration reloaded", "changed", changed, "keys", c.Reload.Directory.Len())
	if sections := c.Start.Changed(r.start); len(sections) > 0 {
		r.metrics.needsRestart.Set(1)
		r.log.WarnContext(ctx, "some changes wait for a restart; all others are in use", "in", strings.Join(sections, ", "))
	}
}

// loaded notes that a configuration is in use, and has garbage collected: what was read, and
// what was in use before, else counts as living when the next collection is due.
func (r *reloader) loaded(c *config.Config, sources config.Sources) {
	r.sources, r.sum, r.redis = sources, c.Sum, c.Reload.Redis
	r.metrics.reloadOK.Set(1)
	r.metrics.needsRestart.Set(0)
	r.metrics.lastReload.SetToCurrentTime()
	for _, w := range c.Warnings {
		r.log.Warn("the configuration is in use, and something in it does not work", "warning", w.String())
	}
	r.metrics.files.WithLabelValues("config").Set(hashOf(c.FileSum))
	r.metrics.files.WithLabelValues("keys").Set(hashOf(c.KeysSum))
	r.metrics.keys.WithLabelValues("file").Set(float64(c.Reload.Directory.Len()))
	r.metrics.demoKeysInUse.Set(0)
	if c.Reload.AllowDemoKeys {
		r.metrics.demoKeysInUse.Set(1)
	}
	runtime.GC()
}

// hashOf is what a metric says of a digest: its first 48 bits, since a float64 has 53.
func hashOf(sum [sha256.Size]byte) float64 { return float64(binary.BigEndian.Uint64(sum[:]) >> 16) }

func (r *reloader) logFaults(ctx context.Context, err error) {
	var faults config.Faults
	if !errors.As(err, &faults) {
		faults = config.Faults{{Source: r.options.File, Problem: err.Error()}}
	}
	for _, f := range faults {
		r.log.ErrorContext(ctx, "the new configuration is refused, the old one stays in use", "fault", f.String())
	}
}
