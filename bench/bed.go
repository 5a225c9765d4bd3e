package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/tiergate/tiergate/internal/apikey"
	"github.com/tiergate/tiergate/internal/devstack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// tiers are those of the bench, in the place of the shipped ones. Each has three limits.
const tiers = `
tiers:
  requests:
    priority: high
    limits:
      - {metric: requests, per: minute, max: 1000000000}
      - {metric: requests, per: hour, max: 1000000000}
      - {metric: requests, per: day, max: 1000000000}
  tokens:
    priority: high
    limits:
      - {metric: requests, per: minute, max: 1000000000}
      - {metric: tokens, per: minute, max: 1000000000000}
      - {metric: requests, per: day, max: 1000000000}
  spent:
    priority: high
    limits:
      - {metric: requests, per: minute, max: 1000000000}
      - {metric: requests, per: hour, max: 1000000000}
      - {metric: requests, per: day, max: 1}
  unlimited:
    priority: critical
    unlimited: true
`

func tierNames() []string { return []string{"requests", "tokens", "spent", "unlimited"} }

// A target is a server under load.
type target struct {
	address  string
	pid      int
	redis    *redis.Client // of its own; nil: none
	operator string        // TierGate's listener for operators; empty: it is not TierGate
	flushes  flushes       // of TierGate
}

// A bed is everything that is measured, running at the same time: each waits while
// another has the machine.
type bed struct {
	dir     string
	program string              // this one, which serves the canned answer
	keys    map[string][]string // by tier
	targets map[string]target   // canned, ratelimit, ratelimit-check, redis, memory and usage
	stops   []func() error      // in the order of starting
}

// bedOptions say what to start.
type bedOptions struct {
	root           string // of the project
	tiergate       string // the built program
	ratelimit      string // envoyproxy/ratelimit, built
	ratelimitCheck string // and that which serves Checks
	program        string // this one
	dir            string // for generated files and logs
	keys           int    // of each tier
	manyKeys       int    // where many are used
}

// stop stops all that was started.
func (b *bed) stop() error {
	var errs []error
	for _, stop := range b.stops {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// start starts everything. What it has started is to be stopped also where it fails.
func (b *bed) start(ctx context.Context, o bedOptions) error {
	config, keys, err := configure(o.root, b.dir, o.keys, tierNames()...)
	if err != nil {
		return err
	}
	b.keys = keys
	for _, s := range []started{
		{name: "redis", store: "redis", config: config, flush: quietInterval},
		{name: "memory", store: "memory", config: config, flush: quietInterval},
		{name: "usage", store: "redis", config: config, flush: flushInterval},
	} {
		if err := b.startTierGate(ctx, o, s); err != nil {
			return err
		}
	}
	if err := b.startCanned(ctx); err != nil {
		return err
	}
	return errors.Join(b.startRateLimit(ctx, "ratelimit", o.ratelimit), b.startRateLimit(ctx, "ratelimit-check", o.ratelimitCheck))
}

func (b *bed) redisAt(address string) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1})
	b.stops = append(b.stops, client.Close)
	return client
}

// configure writes a configuration with the bench's tiers, so many keys of some of them,
// and else the shipped one, and returns its path and the keys by tier.
func configure(root, dir string, each int, ofTiers ...string) (path string, keys map[string][]string, err error) {
	shipped, err := os.ReadFile(filepath.Join(root, "config", "tiergate.yaml"))
	if err != nil {
		return "", nil, fmt.Errorf("read the shipped configuration: %w", err)
	}
	head, _, ok := strings.Cut(string(shipped), "\ntiers:\n")
	if !ok || strings.Contains(head, "\ntiers:") {
		return "", nil, errors.New("the shipped configuration has no tiers at its end")
	}
	keys = map[string][]string{}
	entries := strings.Builder{}
	entries.WriteString("keys:\n")
	for _, tier := range ofTiers {
		for i := range each {
			key := apikey.New()
			keys[tier] = append(keys[tier], key.Reveal())
			fmt.Fprintf(&entries, "  - {id: key_%s_%06d, hash: %q, tier: %s}\n", tier, i, key.Hash(), tier)
		}
		if err := os.WriteFile(filepath.Join(dir, tier+".txt"), []byte(strings.Join(keys[tier], "\n")), 0o600); err != nil {
			return "", nil, fmt.Errorf("write the keys: %w", err)
		}
	}
	path = filepath.Join(dir, "tiergate.yaml")
	err = errors.Join(
		os.WriteFile(path, []byte(head+tiers), 0o600),
		os.WriteFile(filepath.Join(dir, "keys.yaml"), []byte(entries.String()), 0o600),
	)
	if err != nil {
		return "", nil, fmt.Errorf("write a configuration: %w", err)
	}
	return path, keys, nil
}

// A started is a TierGate to start.
type started struct {
	name, store, config string
	flush               time.Duration // usage.interval
	sets                []string      // settings that are its own
}

// startTierGate starts the built program with the shipped configuration, but for when it
// flushes usage, and that it has more time for Redis: on a machine that the load takes
// whole, the shipped one would sometimes make it decide without.
func (b *bed) startTierGate(ctx context.Context, o bedOptions, own started) error {
	begun := time.Now()
	s, err := devstack.Up(ctx, devstack.Options{
		Root: o.root, Dir: filepath.Join(b.dir, own.name), TierGate: o.tiergate, Store: own.store, ServerOnly: true,
		Config: own.config, Sets: append([]string{"store.redis.timeout=1s", "usage.interval=" + own.flush.String()}, own.sets...),
	})
	if err != nil {
		return fmt.Errorf("start TierGate: %w", err)
	}
	b.stops = append(b.stops, s.Down)
	t := target{address: s.TierGate, pid: s.Server.PID(), operator: s.Options.Operator}
	t.flushes = flushes{from: begun.Add(own.flush), to: time.Now().Add(own.flush + flushTime), every: own.flush}
	if own.store == "redis" {
		t.redis = b.redisAt(s.Options.RedisAddress)
	}
	b.targets[own.name] = t
	return nil
}

// startCanned starts this program as the server of the canned answer.
func (b *bed) startCanned(ctx context.Context) error {
	address, err := devstack.FreeAddress()
	if err != nil {
		return err
	}
	return b.startServer(ctx, "canned", []string{b.program, "canned", "-listen", address}, nil, target{address: address})
}

// startServer starts a program that is compared with TierGate, and waits until it serves.
func (b *bed) startServer(ctx context.Context, name string, words, environment []string, t target) error {
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		return fmt.Errorf("open a log: %w", err)
	}
	b.stops = append(b.stops, log.Close)
	p, err := devstack.Start(name, words, environment, log)
	if err != nil {
		return err
	}
	b.stops = append(b.stops, func() error { return p.Stop(5 * time.Second) })
	t.pid = p.PID()
	b.targets[name] = t
	if err := awaitHealthy(ctx, t.address, p.Done()); err != nil {
		printed, _ := os.ReadFile(log.Name()) // all there is to say of it, if there is any
		return fmt.Errorf("start %s: %w: %s", name, err, bytes.TrimSpace(printed))
	}
	return nil
}

// awaitHealthy waits until a gRPC server serves, as long as its process runs.
func awaitHealthy(ctx context.Context, address string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("reach %s: %w", address, err)
	}
	defer conn.Close()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err == nil {
		return nil
	}
	select {
	case <-ended:
		return errors.New("it ended before it served")
	default:
		return fmt.Errorf("ask %s for its health: %w", address, err)
	}
}

// settled returns how many settlements TierGate has made since its start; another target 0.
func (t target) settled(ctx context.Context) (float64, error) {
	if t.operator == "" {
		return 0, nil
	}
	return t.metric(ctx, "tiergate_settlements_total{", `result="settled"`)
}

// sent returns how many calls of Redis TierGate has made for decisions and settlements
// since its start, and how many of these went in them; of others 0.
func (t target) sent(ctx context.Context) (calls, entries float64, err error) {
	if t.operator == "" || t.redis == nil {
		return 0, 0, nil
	}
	if calls, err = t.metric(ctx, "tiergate_redis_batch_size_count ", ""); err != nil {
		return 0, 0, err
	}
	entries, err = t.metric(ctx, "tiergate_redis_batch_size_sum ", "")
	return calls, entries, err
}

// metric returns the sum of TierGate's metrics whose lines begin so and have a label.
func (t target) metric(ctx context.Context, beginning, label string) (float64, error) {
	text, err := t.metrics(ctx)
	if err != nil {
		return 0, err
	}
	return sumOf(text, beginning, label)
}

// metrics returns all of TierGate's metrics, as they were at one moment.
func (t target) metrics(ctx context.Context) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.operator+"/metrics", http.NoBody)
	if err != nil {
		return "", fmt.Errorf("ask for metrics: %w", err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", fmt.Errorf("ask for metrics: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("read metrics: %w", err)
	}
	return string(text), nil
}

// sumOf returns the sum of metrics whose lines begin so and have a label.
func sumOf(text, beginning, label string) (float64, error) {
	sum := 0.0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, beginning) || !strings.Contains(line, label) {
			continue
		}
		fields := strings.Fields(line)
		n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			return 0, fmt.Errorf("read the metric %q: %w", line, err)
		}
		sum += n
	}
	return sum, nil
}

// awaitSettled waits until TierGate has made so many settlements since its start.
func (t target) awaitSettled(ctx context.Context, want float64) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for have := 0.0; ; {
		select {
		case <-tick.C: // at first too: to be asked costs TierGate milliseconds
		case <-ctx.Done():
			return fmt.Errorf("TierGate has made %.0f settlements: want %.0f", have, want)
		}
		var err error
		if have, err = t.settled(ctx); err != nil || have >= want {
			return err
		}
	}
}
