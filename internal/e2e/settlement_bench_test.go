package e2e

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiergate/tiergate/internal/devstack"
)

// BenchmarkSettlement measures what it costs to settle, by each way: CPU of Envoy
// and of TierGate for a request, how long after an answer its reservation is
// settled, and how many settlements are lost when either is killed while answers
// end. docs/decisions/settle-by-access-log.md has the figures of a run.
func BenchmarkSettlement(b *testing.B) {
	batched := func(file []byte) []byte {
		return bytes.Replace(file, []byte("buffer_size_bytes: 0"), []byte("buffer_flush_interval: 0.1s"), 1)
	}
	unlogged := func(file []byte) []byte { // the same file, with an access log that logs nothing
		return bytes.Replace(file, []byte("path: [{key: reservation}], value: {present_match: true}"), []byte("path: [{key: nothing}], value: {present_match: true}"), 1)
	}
	for _, c := range []struct {
		name, by string
		edit     func([]byte) []byte
	}{
		{"none", "[]", unlogged},
		{"access-log", "[access_log]", func(file []byte) []byte { return file }},
		{"access-log-0.1s", "[access_log]", batched},
		{"call", "[ratelimit]", func(file []byte) []byte { return settleFilter(b, unlogged(file)) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := benchStack(b, c.by, c.edit)
			load(b, s, 2000) // warm
			envoyBefore, ourBefore := cpu(b, s.Proxy.PID()), cpu(b, s.Server.PID())
			b.ResetTimer()
			load(b, s, b.N)
			b.StopTimer()
			if c.by != "[]" {
				awaitSettled(b, s, b.N+2000)
			}
			perRequest := func(before, after time.Duration) float64 {
				return float64((after - before).Microseconds()) / float64(b.N)
			}
			b.ReportMetric(perRequest(envoyBefore, cpu(b, s.Proxy.PID())), "envoy-µs/op")
			b.ReportMetric(perRequest(ourBefore, cpu(b, s.Server.PID())), "tiergate-µs/op")
			if c.by == "[]" {
				return
			}
			b.ReportMetric(delay(b, s), "ms-until-settled")
			b.ReportMetric(lostBy(b, s, s.Server, func() error { return s.StartServer(b.Context()) }), "lost-%-tiergate-killed")
			b.ReportMetric(lostBy(b, s, s.Proxy, func() error { return s.StartProxy(b.Context()) }), "lost-%-envoy-killed")
		})
	}
}

func benchStack(b *testing.B, by string, edit func([]byte) []byte) *devstack.Stack {
	b.Helper()
	s, err := devstack.Up(b.Context(), devstack.Options{
		Root: root, TierGate: binary, Envoy: envoy, Dir: b.TempDir(), Store: "redis", EditEnvoy: edit,
		Sets: []string{"tokens.settle_by=" + by, "store.redis.timeout=1s"}, Config: benchConfig(b),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Down(); err != nil {
			b.Error(err)
		}
	})
	return s
}

// benchConfig is the shipped configuration, with limits that nobody reaches.
func benchConfig(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	for _, name := range []string{"tiergate.yaml", "keys.yaml"} {
		content, err := os.ReadFile(root + "/config/" + name)
		if err != nil {
			b.Fatal(err)
		}
		for _, most := range []string{"max: 100}", "max: 1000000}", "max: 100000}"} {
			content = bytes.ReplaceAll(content, []byte(most), []byte("max: 1000000000000}"))
		}
		if err := os.WriteFile(dir+"/"+name, content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return dir + "/tiergate.yaml"
}

// load sends so many requests over 32 connections, and counts those answered.
func load(b *testing.B, s *devstack.Stack, n int) (answered int64) {
	b.Helper()
	var next, ok atomic.Int64
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			for next.Add(1) <= int64(n) {
				if one(b, s) {
					ok.Add(1)
				}
			}
		})
	}
	group.Wait()
	return ok.Load()
}

// one sends a request and reports whether it was answered in full.
func one(b *testing.B, s *devstack.Stack) bool {
	b.Helper()
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "http://"+s.API+"/v1/chat/completions",
		strings.NewReader(`{"model": "mock-1", "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]}`))
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer sk-demo-pro")
	response, err := client.Do(r)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err == nil && response.StatusCode == http.StatusOK
}

// cpu is the time that a process has used, in user and kernel mode.
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	used, err := devstack.CPU(pid)
	if err != nil {
		b.Fatal(err)
	}
	return used
}

// settledSoFar returns how many settlements TierGate has made since its start.
func settledSoFar(b *testing.B, s *devstack.Stack) int {
	b.Helper()
	response, err := client.Get("http://" + s.Options.Operator + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		b.Fatal(err)
	}
	sum := 0.0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "tiergate_settlements_total{") && strings.Contains(line, `result="settled"`) {
			n, err := strconv.ParseFloat(strings.Fields(line)[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			sum += n
		}
	}
	return int(sum)
}

// awaitSettled waits until there are so many, or no more come for two seconds.
func awaitSettled(b *testing.B, s *devstack.Stack, want int) {
	b.Helper()
	last, since := settledSoFar(b, s), time.Now()
	trueWithin(time.Minute, func() bool {
		if n := settledSoFar(b, s); n != last {
			last, since = n, time.Now()
		}
		return last >= want || time.Since(since) > 2*time.Second
	})
}

// delay is how long after its answer a request is settled, on average over 200,
// asking in between (which costs some 0.5 ms).
func delay(b *testing.B, s *devstack.Stack) float64 {
	b.Helper()
	const requests = 200
	var sum time.Duration
	for range requests {
		before := settledSoFar(b, s)
		one(b, s)
		ended := time.Now()
		for settledSoFar(b, s) == before && time.Since(ended) < 5*time.Second {
			continue
		}
		sum += time.Since(ended)
	}
	return float64(sum.Microseconds()) / 1000 / requests
}

// lostBy returns what share of the answers that ended just before and after a
// program was killed is not settled in the end: of those in Redis, by what the
// reservations left say.
func lostBy(b *testing.B, s *devstack.Stack, p *devstack.Process, restart func() error) float64 {
	b.Helper()
	awaitSettled(b, s, 1<<62)
	openBefore := openReservations(b, s)
	done := make(chan int64, 1)
	go func() { done <- load(b, s, 4000) }()
	for start := settledSoFar(b, s); settledSoFar(b, s) < start+500; { // in the middle of it
		continue
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		b.Fatal(err)
	}
	<-p.Done()
	if err := restart(); err != nil {
		b.Fatal(err)
	}
	answered := <-done
	awaitSettled(b, s, 1<<62)
	return 100 * float64(openReservations(b, s)-openBefore) / float64(max(answered, 1))
}

// openReservations counts what is reserved and not settled.
func openReservations(b *testing.B, s *devstack.Stack) int {
	b.Helper()
	client := redis.NewClient(&redis.Options{Addr: s.Options.RedisAddress})
	defer client.Close()
	open := 0
	keys := client.Scan(b.Context(), 0, "*:request:*", 1000).Iterator()
	for keys.Next(b.Context()) {
		if words := strings.Fields(client.Get(b.Context(), keys.Val()).Val()); len(words) > 2 && words[2] == "0" {
			open++
		}
	}
	if err := keys.Err(); err != nil {
		b.Fatal(err)
	}
	return open
}
