package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/config"
	"github.com/tiergate/tiergate/internal/devstack"
)

// A running is a server in this process, with the shipped configuration.
type running struct {
	*server

	log     *logText
	options config.Options
}

// logText is a log that can be read while it is written.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// count returns how often a text is in it.
func (l *logText) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// startRedis starts a redis-server for as long as the test runs.
func startRedis(t *testing.T, words ...string) *devstack.RedisServer {
	t.Helper()
	redis, err := devstack.StartRedisServer(t.Context(), t.TempDir(), words...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := redis.Stop(); err != nil {
			t.Error(err)
		}
	})
	return redis
}

// startServer serves until the test ends; file is the configuration, the shipped one
// where it is empty.
func startServer(t *testing.T, file string, sets ...string) *running {
	t.Helper()
	if file == "" {
		file = "../../config/tiergate.yaml"
	}
	sets = append([]string{"allow_demo_keys=true"}, sets...)
	for _, setting := range []string{"grpc.address", "operator.address", "customer.address"} {
		address, err := devstack.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, setting+"="+address)
	}
	r := &running{log: &logText{}, options: config.Options{File: file, Sets: sets, Now: time.Now}}
	loaded, sources, err := config.Load(r.options)
	if err != nil {
		t.Fatal(err)
	}
	log := newLogger(r.log, loaded.Start)
	if r.server, err = newServer(loaded, log); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		reload := &reloader{options: r.options, use: r.use, metrics: r.metrics, log: log, start: loaded.Start}
		ended <- r.run(ctx, reload, loaded, sources)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "it serves", func() bool { return r.log.count("msg=serving") > 0 })
	return r
}

// eventually asks until the answer is true, for ten seconds at the most.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	end := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ask() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}

// metric returns the sum of a metric's series that have a label value; "" means all.
func (r *running) metric(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := r.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			ok := label == ""
			for _, l := range m.GetLabel() {
				ok = ok || l.GetValue() == label
			}
			if ok {
				sum, found = sum+m.GetGauge().GetValue()+m.GetCounter().GetValue(), true
			}
		}
	}
	if !found {
		t.Fatalf("no metric %s of %q", name, label)
	}
	return sum
}
