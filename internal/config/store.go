package config

import (
	"fmt"
	"regexp"
	"time"
)

// keyPrefix is what the names of Redis keys may begin with.
var keyPrefix = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)

func (c *checker) store(s storeSection) Store {
	r := s.Redis
	store := Store{
		Redis:   c.oneOf("store.type", s.Type, "memory", "redis") == "redis",
		MaxKeys: c.number("store.memory.max_keys", s.Memory.MaxKeys, 1, 100_000_000),

		SnapshotInterval: c.duration("store.memory.snapshot_interval", s.Memory.SnapshotInterval, 10*time.Millisecond, time.Hour),

		Address:   c.address("store.redis.address", r.Address, false).Address,
		Username:  r.Username,
		Database:  c.number("store.redis.database", r.Database, 0, 1_000_000),
		KeyPrefix: r.KeyPrefix,
		Timeout:   c.duration("store.redis.timeout", r.Timeout, time.Millisecond, 10*time.Second),
		PoolSize:  c.number("store.redis.pool_size", r.PoolSize, 1, 10_000),

		Sentinels: c.addresses("store.redis.sentinel.addresses", r.Sentinel.Addresses), SentinelMaster: r.Sentinel.Master, SentinelUsername: r.Sentinel.Username,
		Cluster: c.addresses("store.redis.cluster.addresses", r.Cluster.Addresses),
		TLS:     r.TLS.Enabled,

		AssumedInstances:     c.number("store.redis.assumed_instances", r.AssumedInstances, 1, 10_000),
		MaxQueuedSettlements: c.number("store.redis.max_queued_settlements", r.MaxQueuedSettlements, 1, 10_000_000),
	}
	if !keyPrefix.MatchString(r.KeyPrefix) {
		c.fault("store.redis.key_prefix", "%q: want 1 to 64 letters, digits and _ . : -", r.KeyPrefix)
	}
	if !store.Redis {
		if s.Memory.File != "" {
			store.File = c.loader.beside(s.Memory.File)
		}
		return store
	}
	c.redisForm(r)
	return store
}

// redisForm checks that Redis is named in one way.
func (c *checker) redisForm(r redisSection) {
	sentinel, cluster := len(r.Sentinel.Addresses) > 0, len(r.Cluster.Addresses) > 0
	switch {
	case sentinel && cluster:
		c.fault("store.redis.cluster.addresses", "there is store.redis.sentinel.addresses too: name one of the two")
	case sentinel && r.Sentinel.Master == "":
		c.fault("store.redis.sentinel.master", "empty: want what the Sentinels call the primary")
	case !sentinel && (r.Sentinel.Master != "" || r.Sentinel.Username != "" || r.Sentinel.PasswordFile != "" || r.Sentinel.PasswordEnv != ""):
		c.fault("store.redis.sentinel.addresses", "empty: want host:port of each Sentinel, or nothing else of sentinel")
	case cluster && r.Database != 0:
		c.fault("store.redis.database", "%d: a Cluster has database 0 only", r.Database)
	}
	if t := r.TLS; !t.Enabled && (t.CAFile != "" || t.CertFile != "" || t.KeyFile != "" || t.ServerName != "") {
		c.fault("store.redis.tls.enabled", "false, though files or a name are set: set it to true, or take them away")
	}
}

// redisAccess reads what Redis asks for.
func (c *checker) redisAccess(r redisSection) RedisAccess {
	return RedisAccess{
		Password:         c.password("store.redis", r.PasswordFile, r.PasswordEnv),
		SentinelPassword: c.password("store.redis.sentinel", r.Sentinel.PasswordFile, r.Sentinel.PasswordEnv),
		TLS: TLS{
			Certificate: c.certificate("store.redis.tls", r.TLS.CertFile, r.TLS.KeyFile),
			Roots:       c.roots("store.redis.tls.ca_file", r.TLS.CAFile),
			ServerName:  r.TLS.ServerName,
		},
	}
}

// addresses checks a list of host:port.
func (c *checker) addresses(path string, list []string) []string {
	for i, a := range list {
		c.address(fmt.Sprintf("%s[%d]", path, i), a, false)
	}
	return list
}
