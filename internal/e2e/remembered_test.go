package e2e

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestRefusedFromMemoryAsByRedis: what a client gets is the same to the byte, but for what the
// clock says: a refusal that Redis is asked for, and one of the same minute that it is not.
func TestRefusedFromMemoryAsByRedis(t *testing.T) {
	both(t, func(t *testing.T, chain string) {
		redis, err := devstack.StartRedisServer(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := redis.Stop(); err != nil {
				t.Error(err)
			}
		})
		s := up(t, devstack.Options{
			Chain: chain, Store: "redis", RedisRunning: true, RedisAddress: redis.Address,
			Sets: []string{"usage.interval=1m"}, // of the clock, and by scripts too
		})
		freshMinute(t, 20*time.Second)
		remembered := func() float64 { return metric(t, s, "tiergate_remembered_refusals_total") }
		ask := func() (r reply, raw string) {
			before := time.Now()
			r, raw = doRaw(t, s, "sk-demo-free")
			if r.StatusCode != http.StatusOK {
				checkLimited(t, r, before)
				checkSix(t, r, "10", "0", "chat", "10", "1")
			}
			return r, raw
		}
		for i := range 10 {
			if r, _ := ask(); r.StatusCode != http.StatusOK {
				t.Fatalf("call %d: %s: %s", i+1, r.Status, r.body)
			}
		}
		_, byRedis := ask()
		if n := remembered(); n != 0 {
			t.Fatalf("%v refused from memory: want the first refused by Redis", n)
		}
		var fromMemory string
		eventuallyWithin(t, 20*time.Second, "a request is refused from memory", func() bool { // after 10 s, where it has an ID
			before, calls := remembered(), orderCalls(t, redis)
			_, fromMemory = ask()
			return orderCalls(t, redis) == calls && remembered() == before+1
		})
		have, want := withoutClock.ReplaceAllString(fromMemory, "$1*"), withoutClock.ReplaceAllString(byRedis, "$1*")
		if have != want {
			t.Errorf("from memory:\n%s\nby Redis:\n%s", fromMemory, byRedis)
		}
		if n := strings.Count(want, "*"); n != 4 {
			t.Errorf("the clock has %d places, want 4:\n%s", n, want)
		}
	})
}

// withoutClock finds what depends on the moment of a refusal. The end of its window does not.
var withoutClock = regexp.MustCompile(`(?m)(^date: |^retry-after: |^retry-after-ms: |retry after )(\d+|\w+, [^\r]+)`)

// doRaw sends a request through a stack's Envoy, and returns the answer also as it came.
func doRaw(t *testing.T, s *devstack.Stack, key string) (r reply, raw string) {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), "tcp", s.API)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.API+"/v1/chat/completions", strings.NewReader(`{"model": "mock-1", "messages": []}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+key)
	if err := request.Write(conn); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	response, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &got)), request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{response, string(content)}, got.String()
}

// orderCalls returns how often a Redis has run scripts, but for those that count instances:
// each of them has one ZADD.
func orderCalls(t *testing.T, redis *devstack.RedisServer) int {
	t.Helper()
	stats, err := redis.Do(t.Context(), "INFO", "commandstats")
	if err != nil {
		t.Fatal(err)
	}
	calls, err := devstack.ParseInfo(stats)
	if err != nil {
		t.Fatal(err)
	}
	return int(calls["cmdstat_fcall"] + calls["cmdstat_evalsha"] + calls["cmdstat_eval"] - calls["cmdstat_zadd"])
}
