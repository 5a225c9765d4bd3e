package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/quota"
	"github.com/tiergate/tiergate/internal/store"
	"github.com/tiergate/tiergate/internal/usage"
	"github.com/tiergate/tiergate/internal/web"
)

// counts is what the program needs of a store of counters.
type counts interface {
	quota.Counts
	Ping(context.Context) error
}

// keyStore is what it needs of one of keys.
type keyStore interface {
	web.KeyStore
	Watch(ctx context.Context, apply func(records []apikey.Record, whole bool)) error
}

// usageStore is what it needs of one of usage.
type usageStore interface {
	usage.Store
	web.KeyUsage
	web.Fleet
	Tell(ctx context.Context, i usage.Instance) error
}

// stores is what the program keeps: in Redis, or on this node.
type stores struct {
	counts counts
	keys   keyStore
	usage  usageStore
	sweep  func(context.Context) error // nil: Redis does it
	keep   func(context.Context) error // writes the counts to disk; nil: they are not kept there
	close  func() error

	useAccess func(config.RedisAccess) // nil: there is no Redis
	fallback  *store.Fallback          // likewise
}

func openStores(c config.Store, access config.RedisAccess, notices store.KeyNotices, snapshots store.SnapshotNotices, w watcher) (stores, error) {
	if c.Redis {
		return openRedis(c, access, notices, w), nil
	}
	file, err := store.OpenFile(c.File)
	if err != nil {
		return stores{}, fmt.Errorf("open the store: %w", err)
	}
	memory := store.NewMemory(time.Now, c.MaxKeys)
	opened := stores{
		counts: memory, keys: store.NewFileKeys(file, notices), usage: store.NewFileUsage(file, time.Now), sweep: memory.Run, close: file.Close,
	}
	if c.File == "" {
		return opened, nil
	}
	err = opened.keepCounts(file, memory, store.SnapshotOptions{Interval: c.SnapshotInterval, Notices: snapshots})
	return opened, err
}

// A directory keeps what this process knows of the store's keys in step with them.
type directory struct {
	stored  *apikey.Stored
	metrics *metrics
	log     *slog.Logger
	loaded  chan struct{} // closed when it has been read
}

func newDirectory(peppers []apikey.Pepper, m *metrics, log *slog.Logger) *directory {
	return &directory{stored: apikey.NewStored(peppers), metrics: m, log: log, loaded: make(chan struct{})}
}

// apply takes up what the store has.
func (d *directory) apply(records []apikey.Record, whole bool) {
	take := d.stored.Apply
	if whole {
		take = d.stored.Replace
	}
	d.tell(take(records))
	d.metrics.keys.WithLabelValues("store").Set(float64(d.stored.Directory().Len()))
	if whole {
		d.metrics.keysInStep.Set(1)
		select {
		case <-d.loaded:
		default:
			close(d.loaded)
		}
	}
}

// usePeppers takes up changed peppers.
func (d *directory) usePeppers(peppers []apikey.Pepper) { d.tell(d.stored.UsePeppers(peppers)) }

// tell says which keys do not work, and why.
func (d *directory) tell(faults []apikey.RecordError) {
	for _, fault := range faults {
		d.log.Warn("a key of the store does not work", "key_id", fault.ID, "error", fault.Err)
	}
}

// notices tell of the store's troubles with the directory.
func (d *directory) notices() store.KeyNotices {
	return store.KeyNotices{
		Outage: func(err error) {
			if err != nil {
				d.metrics.keysInStep.Set(0)
				d.log.Error("the directory of keys cannot be followed: the keys stay as they are known", "error", err)
				return
			}
			d.metrics.keysInStep.Set(1)
			d.log.Info("the directory of keys is followed")
		},
		Unreadable: func(fault *apikey.KeyError) {
			d.log.Warn("a record in the store cannot be read: the key does not work", "key_id", fault.ID, "error", fault.Err)
		},
	}
}

// patience is how long a start waits for the directory. After that, keys that are not
// in the file get 503 until it has been read.
const patience = 2 * time.Second

// await returns when the directory has been read, or patience is over.
func (d *directory) await(ctx context.Context) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-d.loaded:
	case <-timer.C:
	case <-ctx.Done():
	}
}
