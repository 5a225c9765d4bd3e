package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/store"
)

// openRedis keeps everything in Redis, and counts without it while it is away.
func openRedis(c config.Store, access config.RedisAccess, notices store.KeyNotices, w watcher) stores {
	redis := store.NewRedis(store.RedisOptions{
		Address: c.Address, Sentinels: c.Sentinels, SentinelMaster: c.SentinelMaster, SentinelUsername: c.SentinelUsername, Cluster: c.Cluster,
		TLS: c.TLS, Access: redisAccess(access), Username: c.Username, Database: c.Database,
		KeyPrefix: c.KeyPrefix, Timeout: c.Timeout, PoolSize: c.PoolSize, Sent: w.metrics.addRedis(),
	})
	fallback := w.fallback(redis, c)
	return stores{
		counts: fallback, fallback: fallback, keys: store.NewRedisKeys(redis, notices), usage: store.NewRedisUsage(redis, time.Now), close: redis.Close,
		useAccess: func(a config.RedisAccess) { redis.UseAccess(redisAccess(a)) },
	}
}

// addRedis makes the metric of counting in Redis, and returns what is told of each call.
func (m *metrics) addRedis() (sent func(n int)) {
	sizes := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "tiergate_redis_batch_size", Help: "Decisions and settlements that went to Redis together in one call.",
		Buckets: prometheus.ExponentialBuckets(1, 2, 8),
	})
	m.registry.MustRegister(sizes)
	return func(n int) { sizes.Observe(float64(n)) }
}

// redisAccess hands on how Redis lets TierGate in.
func redisAccess(a config.RedisAccess) store.RedisAccess {
	return store.RedisAccess{
		Password: a.Password, SentinelPassword: a.SentinelPassword,
		Certificate: a.TLS.Certificate, Roots: a.TLS.Roots, ServerName: a.TLS.ServerName,
	}
}
