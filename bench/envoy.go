package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// chains are the shipped Envoy files that are measured.
func chains() []string { return []string{"ext_authz", "ratelimit"} }

// chainName is that of a chain for -only.
func chainName(chain string) string { return "Envoy, " + chain }

// behind are the targets that are measured behind Envoy.
func behind() []string { return []string{"canned", "redis"} }

// behindEnvoy returns the server of one of these names. The TierGate is the one that flushes usage
// often, for requests may have to wait for that.
func (b *bed) behindEnvoy(name string) target {
	if name == "redis" {
		name = "usage"
	}
	return b.targets[name]
}

// body is what is asked for: the mock AI API reports 36 tokens for it.
const body = `{"model": "mock-1", "max_tokens": 100, "messages": [{"role": "user", "content": "Tell me a story of some length about a tortoise."}]}`

// A front is an Envoy with a shipped file in front of the mock AI API, and what asks it.
type front struct {
	stack  *devstack.Stack
	keys   []string
	client *http.Client
	number uint64 // of runs so far: each asks for other keys
}

// envoys measures, for each chain that is wanted, how long requests take through Envoy
// where TierGate decides, and where the canned answer does, at the same rates.
func (t *table) envoys(ctx context.Context, b *bed, r results, progress io.Writer) error {
	wanted := t.chains()
	if len(wanted) == 0 {
		return nil
	}
	envoy, err := devstack.FindEnvoy(ctx, os.Getenv, filepath.Join(t.root, ".cache"), progress)
	if err != nil {
		return err
	}
	for _, chain := range wanted {
		if err := t.chain(ctx, b, r, envoy, chain, progress); err != nil {
			return fmt.Errorf("measure the chain %s: %w", chain, err)
		}
	}
	return nil
}

func (t *table) chain(ctx context.Context, b *bed, r results, envoy devstack.Envoy, chain string, progress io.Writer) (err error) {
	fronts := map[string]*front{}
	for _, target := range behind() {
		f, startErr := t.newFront(ctx, b, envoy, chain, target)
		if f != nil {
			defer func() { err = errors.Join(err, f.stop()) }()
		}
		if startErr != nil {
			return startErr
		}
		fronts[target] = f
	}
	// The first run of each warms it.
	var capacity float64
	for _, target := range behind() {
		o, err := fronts[target].run(ctx, load{inFlight: t.spread.inFlight}, t.spread.duration)
		if err != nil {
			return err
		}
		capacity = float64(o.requests-o.failed) / o.elapsed.Seconds() // in the end that of TierGate
	}
	rates := map[level]float64{halfRate: capacity / 2}
	if rates[halfBusy], err = t.searchHalfBusy(ctx, fronts["redis"], capacity); err != nil {
		return err
	}
	fmt.Fprintf(progress, "Envoy, %s: %.0f requests/s pass, and %.0f keep the processors half busy\n", chain, capacity, rates[halfBusy])
	return t.levels(ctx, r, chain, fronts, rates, progress)
}

// newFront starts an Envoy and an upstream, which must be stopped also where that fails.
// Its flood guard is further away than in the shipped file: all requests come from one
// address.
func (t *table) newFront(ctx context.Context, b *bed, envoy devstack.Envoy, chain, target string) (*front, error) {
	s := &devstack.Stack{Options: devstack.Options{
		Root: t.root, Dir: filepath.Join(b.dir, chain+"-"+target), Chain: chain, Envoy: envoy,
		EditEnvoy: func(file []byte) []byte {
			return bytes.ReplaceAll(bytes.ReplaceAll(file,
				[]byte("max_tokens: 5000, tokens_per_fill: 5000"), []byte("max_tokens: 1000000, tokens_per_fill: 1000000")),
				[]byte("max_tokens: 100000, tokens_per_fill: 100000"), []byte("max_tokens: 1000000, tokens_per_fill: 1000000"))
		},
	}}
	s.TierGate = b.behindEnvoy(target).address
	for _, address := range []*string{&s.API, &s.Admin, &s.Customer, &s.Upstream} {
		free, err := devstack.FreeAddress()
		if err != nil {
			return nil, err
		}
		*address = free
	}
	if err := os.MkdirAll(s.Options.Dir, 0o755); err != nil { // Envoy may run as another user
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	// Connections stay from one run to the next: no request of a run waits for a new one.
	transport := &http.Transport{MaxIdleConnsPerHost: atATime(t.spread), DisableCompression: true}
	f := &front{stack: s, keys: b.keys["tokens"], client: &http.Client{Transport: transport, Timeout: longest}}
	if err := s.StartUpstream(ctx); err != nil {
		return f, err
	}
	return f, s.StartProxy(ctx)
}

func (f *front) stop() error {
	f.client.CloseIdleConnections()
	return f.stack.Down()
}

// run sends chats through Envoy. One that is not answered with 200 and the header of a
// decision by Redis has failed.
func (f *front) run(ctx context.Context, l load, duration time.Duration) (*outcome, error) {
	f.number++
	o, begun := newOutcome(), time.Now()
	next := schedule(ctx, l.rate, duration)
	var counting sync.Mutex // one outcome for all: those of each would take time from the first requests
	var group sync.WaitGroup
	for i := range l.inFlight {
		group.Go(func() {
			chance := rand.New(rand.NewPCG(uint64(i), f.number))
			for due, ok := next(); ok; due, ok = next() {
				err := f.chat(ctx, f.keys[chance.IntN(len(f.keys))])
				took := time.Since(due)
				counting.Lock()
				o.requests++
				o.took(took)
				if err != nil {
					o.fail(err)
				}
				counting.Unlock()
			}
		})
	}
	group.Wait()
	o.elapsed = time.Since(begun)
	if o.requests == o.failed {
		return o, fmt.Errorf("none of %d requests was answered: %w", o.requests, o.err)
	}
	return o, nil
}

// fewFailed is the error of an outcome in which more have failed than may where requests come on time.
// At full load, where only those that pass are counted, any may.
func (o *outcome) fewFailed() error {
	if float64(o.failed) > tolerated*float64(o.requests) {
		return fmt.Errorf("%d of %d requests failed: %w", o.failed, o.requests, o.err)
	}
	return nil
}

// chat sends one request.
func (f *front) chat(ctx context.Context, key string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+f.stack.API+path, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", userAgent)
	response, err := f.client.Do(r)
	if err != nil {
		return fmt.Errorf("send a request: %w", err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return fmt.Errorf("read an answer: %w", err)
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("X-RateLimit-Limit") == "0" || response.Header.Get("X-RateLimit-Degraded") != "" {
		return fmt.Errorf("an answer was %s, limit %q, degraded %q: want 200 and a decision",
			response.Status, response.Header.Get("X-RateLimit-Limit"), response.Header.Get("X-RateLimit-Degraded"))
	}
	return nil
}
