package main

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
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

	config atomic.Pointer[config.Reload] // in use
}

func newDirectory(c config.Reload, m *metrics, log *slog.Logger) *directory {
	d := &directory{stored: apikey.NewStored(c.Peppers), metrics: m, log: log, loaded: make(chan struct{})}
	d.config.Store(&c)
	return d
}

// apply takes up what the store has.
func (d *directory) apply(records []apikey.Record, whole bool) {
	take, known := d.stored.Apply, d.stored.Directory()
	if whole {
		take = d.stored.Replace
	}
	d.tell(take(records))
	if whole {
		d.tellRestored(known, d.stored.Directory())
	}
	d.metrics.keys.WithLabelValues("store").Set(float64(d.stored.Directory().Len()))
	d.tellTiers(func(yield func(*apikey.Record) bool) {
		for i := range records {
			if !yield(&records[i]) {
				return
			}
		}
	})
	if whole {
		d.metrics.keysInStep.Set(1)
		select {
		case <-d.loaded:
		default:
			close(d.loaded)
		}
	}
}

// use takes up a changed configuration.
func (d *directory) use(c config.Reload) {
	d.tell(d.stored.UsePeppers(c.Peppers))
	d.config.Store(&c) // before it looks: a record that comes meanwhile is told of here or by apply
	d.tellTiers(d.stored.Directory().All)
}

// tell says which keys do not work, and why; of a former key as long as it would.
func (d *directory) tell(faults []apikey.RecordError) {
	now := time.Now()
	for _, fault := range faults {
		if fault.Field != "former" {
			d.log.Warn("a key of the store does not work", "key_id", fault.ID, "error", fault.Err)
		} else if r := d.stored.Directory().ByID(fault.ID); r != nil && r.Former != nil && now.Before(r.Former.Until) {
			d.log.Warn("the former secret of a key of the store does not work", "key_id", fault.ID, "error", fault.Err)
		}
	}
}

// tellTiers says of how many of the records no request is answered, since their tier is not
// configured.
func (d *directory) tellTiers(records iter.Seq[*apikey.Record]) {
	c := d.config.Load()
	if c.RateLimit.Tier != "" || c.Identity.Tier.Namespace != "" { // Envoy may name another
		return
	}
	keys, example, now := map[string]int{}, map[string]string{}, time.Now()
	for r := range records {
		if c.Plans[r.Tier] != nil || r.Usable(now) != nil || c.Directory.ByID(r.ID) != nil || c.Directory.ByHash(r.Hash) != nil {
			continue
		}
		keys[r.Tier]++
		if first := example[r.Tier]; first == "" || r.ID < first {
			example[r.Tier] = r.ID
		}
	}
	for _, tier := range slices.Sorted(maps.Keys(keys)) {
		d.log.Warn("keys of the store name a tier that is not configured, and all their requests get 503: add the tier, or give the keys another",
			"tier", tier, "keys", keys[tier], "key_id", example[tier])
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
