package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// SentinelOptions say what a set consists of.
type SentinelOptions struct {
	Dir      string   // for the servers' files
	Replicas int      // of the one primary
	Words    []string // further ones for each redis-server, but for the Sentinels
	Lines    []string // further ones of each Sentinel's configuration
}

const (
	// downAfter is the silence after which a primary counts as lost. A promotion closes the
	// Sentinels' connections to the server, and they connect to one once a second at the
	// most: after one second they may take the new primary for lost, and promote another.
	downAfter = 2 * time.Second
	// failoverTimeout is half of the wait after a vote that no Sentinel won.
	failoverTimeout = 4 * time.Second
)

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
	s := &SentinelSet{}
	if err := s.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start Redis with Sentinels: %w", err), s.Stop())
	}
	return s, nil
}

func (s *SentinelSet) start(ctx context.Context, o SentinelOptions) error {
	words := o.Words
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
			words = append([]string{"--replicaof", host + " " + port}, words...)
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
	lines := append([]string{
		"bind 127.0.0.1",
		"port " + own,
		"dir " + r.Dir,
		fmt.Sprintf("sentinel monitor %s %s %s 2", SentinelMaster, host, port),
		fmt.Sprintf("sentinel down-after-milliseconds %s %d", SentinelMaster, downAfter.Milliseconds()),
		fmt.Sprintf("sentinel failover-timeout %s %d", SentinelMaster, failoverTimeout.Milliseconds()),
	}, o.Lines...)
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

// An Event is what a Sentinel, or a server that keeps data, noted of a fail-over.
type Event struct {
	At      time.Time
	Address string // of who noted it
	Text    string
}

// Promoted says whether a server became the primary.
func (e Event) Promoted() bool { return e.Text == "MASTER MODE enabled" }

// String returns the event as a line.
func (e Event) String() string {
	return fmt.Sprintf("%s %s %s", e.At.Format("15:04:05.000"), e.Address, e.Text)
}

// eventLine finds the time and the text of an event in a log. What a Sentinel notes begins
// with + or -; a server adds in brackets who asked.
var eventLine = regexp.MustCompile(`(?m)^\d+:\w (\d\d \w+ \d+ [\d:.]+) . (` +
	`[+-](?:[so]down|new-epoch|vote-for-leader|elected-leader|promoted-slave|switch-master|failover-end|failover-abort|convert-to-slave)\b.*` +
	`|MASTER MODE enabled|REPLICAOF \S+ enabled|Full resync from .*)`)

// Events returns what the logs of the set say of fail-overs, in order of time.
func (s *SentinelSet) Events() ([]Event, error) {
	var events []Event
	for _, r := range slices.Concat(s.Servers, s.Sentinels) {
		log, err := os.ReadFile(filepath.Join(r.Dir, "redis.log"))
		if err != nil {
			return nil, fmt.Errorf("read the log of a Redis server: %w", err)
		}
		for _, parts := range eventLine.FindAllStringSubmatch(string(log), -1) {
			at, err := time.ParseInLocation("02 Jan 2006 15:04:05.000", parts[1], time.Local)
			if err != nil {
				return nil, fmt.Errorf("read the log of %s: %w", r.Address, err)
			}
			events = append(events, Event{at, r.Address, parts[2]})
		}
	}
	slices.SortStableFunc(events, func(a, b Event) int { return a.At.Compare(b.At) })
	return events, nil
}

// Stop ends all servers, the Sentinels first.
func (s *SentinelSet) Stop() error { return stopServers(s.Sentinels, s.Servers) }
