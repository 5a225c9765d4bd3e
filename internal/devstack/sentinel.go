package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// SentinelOptions say what a set consists of.
type SentinelOptions struct {
	Dir       string        // for the servers' files
	Replicas  int           // of the one primary
	DownAfter time.Duration // after which a silent primary counts as lost; default 1 s
}

// SentinelMaster is what the Sentinels of a set call the primary.
const SentinelMaster = "counts"

// A SentinelSet is a primary, its replicas, and three Sentinels that watch them.
type SentinelSet struct {
	Servers   []*RedisServer // at first the primary, then the replicas
	Sentinels []*RedisServer
}

// StartSentinels starts a set and waits until every Sentinel knows the replicas and the
// other Sentinels: 2 s to 5 s.
func StartSentinels(ctx context.Context, o SentinelOptions) (*SentinelSet, error) {
	if o.DownAfter == 0 {
		o.DownAfter = time.Second
	}
	s := &SentinelSet{}
	if err := s.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start Redis with Sentinels: %w", err), s.Stop())
	}
	return s, nil
}

func (s *SentinelSet) start(ctx context.Context, o SentinelOptions) error {
	var words []string
	for range 1 + o.Replicas {
		r, err := StartRedisServer(ctx, o.Dir, words...)
		if r != nil {
			s.Servers = append(s.Servers, r)
		}
		if err != nil {
			return err
		}
		if len(s.Servers) == 1 {
			host, port, _ := strings.Cut(r.Address, ":")
			words = []string{"--replicaof", host + " " + port}
		}
	}
	for range 3 {
		r, err := startSentinel(ctx, o, s.Servers[0].Address)
		if r != nil {
			s.Sentinels = append(s.Sentinels, r)
		}
		if err != nil {
			return err
		}
	}
	return s.await(ctx, o.Replicas)
}

// startSentinel starts one that watches a primary.
func startSentinel(ctx context.Context, o SentinelOptions, primary string) (*RedisServer, error) {
	r, err := newRedisServer(o.Dir)
	if err != nil {
		return nil, err
	}
	_, own, _ := strings.Cut(r.Address, ":")
	host, port, _ := strings.Cut(primary, ":")
	lines := []string{
		"bind 127.0.0.1",
		"port " + own,
		"dir " + r.Dir,
		fmt.Sprintf("sentinel monitor %s %s %s 2", SentinelMaster, host, port),
		fmt.Sprintf("sentinel down-after-milliseconds %s %d", SentinelMaster, o.DownAfter.Milliseconds()),
		fmt.Sprintf("sentinel failover-timeout %s %d", SentinelMaster, 4*o.DownAfter.Milliseconds()),
	}
	file := filepath.Join(r.Dir, "sentinel.conf") // a Sentinel writes to it
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("write the configuration of a Sentinel: %w", err)
	}
	r.words = []string{"redis-server", file, "--sentinel"}
	return r, r.Start(ctx)
}

// await returns when every Sentinel sees the whole set.
func (s *SentinelSet) await(ctx context.Context, replicas int) error {
	return poll(ctx, func(ctx context.Context) error {
		for _, r := range s.Sentinels {
			state, err := r.Do(ctx, "SENTINEL", "MASTER", SentinelMaster)
			if err != nil {
				return err
			}
			for _, want := range []string{fmt.Sprintf("num-slaves\n%d", replicas), "num-other-sentinels\n2", "flags\nmaster"} {
				if !strings.Contains(state+"\n", want+"\n") {
					return fmt.Errorf("the Sentinel %s does not say %q", r.Address, want)
				}
			}
		}
		return nil
	})
}

// Addresses returns those of the Sentinels.
func (s *SentinelSet) Addresses() []string { return addresses(s.Sentinels) }

// Primary returns the server that the first Sentinel takes for the primary.
func (s *SentinelSet) Primary(ctx context.Context) (*RedisServer, error) {
	answer, err := s.Sentinels[0].Do(ctx, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SentinelMaster)
	if err != nil {
		return nil, err
	}
	address := strings.ReplaceAll(answer, "\n", ":")
	for _, r := range s.Servers {
		if r.Address == address {
			return r, nil
		}
	}
	return nil, fmt.Errorf("find the primary: the Sentinel names %q", address)
}

// Stop ends all servers, the Sentinels first.
func (s *SentinelSet) Stop() error { return stopServers(s.Sentinels, s.Servers) }
