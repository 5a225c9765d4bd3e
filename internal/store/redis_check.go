package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/quota"
)

const (
	clusterSlots = 16384
	// clusterParts is how many parts of a Cluster's slots are known to work or not, each
	// by itself: a server that is lost is not all of them.
	clusterParts = 16
)

// What Redis must have at least: ZADD with GT, XREVRANGE that leaves out its end.
const wantMajor, wantMinor = 6, 2

// parts returns how many parts of Redis may work or fail apart from the others.
func (r *Redis) parts() int { return len(r.checked) }

// part returns the part that has an account's counters, from 0.
func (r *Redis) part(account string) int { return partOf(account, r.parts()) }

func partOf(account string, parts int) int {
	if parts == 1 {
		return 0
	}
	return slotOf(account) * parts / clusterSlots
}

// slotOf returns the slot of a Cluster that has the keys of a hash tag.
func slotOf(tag string) int {
	var crc uint16 // CRC16 of XMODEM
	for _, b := range []byte(tag) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % clusterSlots
}

// A checkedPart is one part of Redis, and an account of nobody's in it.
type checkedPart struct {
	account string
	mu      sync.Mutex
	version bool // whether the server's was looked at since the last failure
}

// newCheckedParts returns the parts, each with the first account that falls into it.
func newCheckedParts(n int) []*checkedPart {
	parts := make([]*checkedPart, n)
	for i, found := 0, 0; found < n; i++ {
		account := "~check" + strconv.Itoa(i)
		if p := partOf(account, n); parts[p] == nil {
			parts[p] = &checkedPart{account: account}
			found++
		}
	}
	return parts
}

// Check reports whether a part of Redis, from 0, counts: it counts one for an account of
// nobody's. At first, and after a failure, it looks at the version too, and fails where that
// is older than 6.2.
func (r *Redis) Check(ctx context.Context, part int) error {
	p := r.checked[part]
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.version {
		if err := r.checkVersion(ctx, p.account); err != nil {
			r.lookAgain(ctx)
			return err
		}
		p.version = true
	}
	op := &operation{order: &quota.Order{Account: p.account, Charges: []quota.Charge{{
		Limit:   quota.Limit{Metric: quota.Requests, Window: quota.Minute, Max: quota.NoMax},
		Counter: quota.Requests.String() + "/" + quota.Minute.String(), Cost: 1,
	}}}}
	ctx, cancel := r.soon(ctx)
	defer cancel()
	r.sendTogether(ctx, []*operation{op}) // alone: it is asked while no request is
	p.version = op.err == nil
	return op.err
}

// warm makes connections to the server of a part, up to half of those there may be, so
// that requests need not: to make one takes a time-out of its own, and where the network
// is slow the request would be over before.
func (r *Redis) warm(ctx context.Context, part int) {
	ctx, cancel := within(ctx, dialTimeout)
	defer cancel()
	server, err := r.server(ctx, countsKey(r.prefix, r.checked[part].account))
	if err != nil {
		return // a request will tell
	}
	var calls sync.WaitGroup
	for range (r.options.PoolSize + 1) / 2 {
		calls.Go(func() { server.Do(ctx, "hello") })
	}
	calls.Wait()
}

// server returns a client of the server that has a key.
func (r *Redis) server(ctx context.Context, key string) (redis.UniversalClient, error) {
	cluster, ok := r.client.(*redis.ClusterClient)
	if !ok {
		return r.client, nil
	}
	node, err := cluster.MasterForKey(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("find the server of a slot: %w", failed(err, false))
	}
	return node, nil
}

// checkVersion asks the server of an account.
func (r *Redis) checkVersion(ctx context.Context, account string) error {
	ctx, cancel := r.soon(ctx)
	defer cancel()
	server, err := r.server(ctx, countsKey(r.prefix, account))
	if err != nil {
		return err
	}
	reply, err := server.Do(ctx, "hello").Result()
	if redis.HasErrorPrefix(err, "unknown command") {
		return fmt.Errorf("check Redis: it is older than 6.0: want %d.%d or newer: upgrade it", wantMajor, wantMinor)
	}
	if err != nil {
		return fmt.Errorf("ask Redis for its version: %w", failed(err, false))
	}
	return newEnough(versionIn(reply))
}

// versionIn finds the version in the answer to HELLO: a map, or the same as a list.
func versionIn(reply any) string {
	switch reply := reply.(type) {
	case map[any]any:
		version, _ := reply["version"].(string)
		return version
	case []any:
		for i := 0; i+1 < len(reply); i += 2 {
			if reply[i] == "version" {
				version, _ := reply[i+1].(string)
				return version
			}
		}
	}
	return ""
}

// newEnough fails for a version that is too old. One that is no numbers is somebody else's
// server, and is let pass.
func newEnough(version string) error {
	words := strings.SplitN(version, ".", 3)
	if len(words) < 2 {
		return nil
	}
	major, errMajor := strconv.Atoi(words[0])
	minor, errMinor := strconv.Atoi(words[1])
	if errors.Join(errMajor, errMinor) == nil && (major < wantMajor || major == wantMajor && minor < wantMinor) {
		return fmt.Errorf("check Redis: it is version %s: want %d.%d or newer: upgrade it", version, wantMajor, wantMinor)
	}
	return nil
}

// Ping reports whether all of Redis counts.
func (r *Redis) Ping(ctx context.Context) error {
	errs := make([]error, r.parts())
	var checks sync.WaitGroup
	for part := range errs {
		checks.Go(func() { errs[part] = r.Check(ctx, part) })
	}
	checks.Wait()
	for _, err := range errs { // one is enough: all of one server fail alike
		if err != nil {
			return fmt.Errorf("ping Redis: %w", err)
		}
	}
	return nil
}
