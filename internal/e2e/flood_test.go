package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/redis/go-redis/v9"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/tiergate/tiergate/internal/devstack"
)

var flood = flag.Int("flood", 200_000, "how many calls of each kind TestFloodsLeaveMemoryFlat makes")

// A flooder sends one kind of call over and over, each with another number in it. It
// writes frames: an ordinary client takes longer for a call than the server does.
type flooder struct {
	headers []byte // compressed
	message []byte // as gRPC frames it, with places for the number
	places  []int
}

// place stands for the number in a message.
const place = "0123456789"

func newFlooder(t *testing.T, method string, message proto.Message) *flooder {
	t.Helper()
	content, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true}); err != nil { // in no table
			t.Fatal(err)
		}
	}
	n := len(content)
	f := &flooder{headers: block.Bytes(), message: append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, content...)}
	for i := range f.message {
		if bytes.HasPrefix(f.message[i:], []byte(place)) {
			f.places = append(f.places, i)
		}
	}
	if len(f.places) == 0 {
		t.Fatal("no place for the number")
	}
	return f
}

// send makes so many calls over several connections, many at a time, with the numbers
// from first on.
func (f *flooder) send(t *testing.T, address string, first, calls int) {
	t.Helper()
	const connections, atOnce = 8, 100 // at once, they stay within the server's window
	var next atomic.Int64
	next.Store(int64(first))
	together(connections, func(int) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		c := &floodConn{t: t, framer: http2.NewFramer(conn, conn), id: 1}
		c.framer.SetReuseFrames()
		_, err = conn.Write([]byte(http2.ClientPreface))
		c.check(err)
		c.check(c.framer.WriteSettings())
		c.check(c.framer.WriteWindowUpdate(0, 1<<30))
		var batch bytes.Buffer
		for c.err == nil {
			batch.Reset()
			from := int(next.Add(atOnce)) - atOnce
			n := min(atOnce, first+calls-from)
			if n <= 0 {
				return
			}
			for i := range n {
				c.append(&batch, f, from+i)
			}
			_, err := conn.Write(batch.Bytes())
			c.check(err)
			c.awaitEnds(n)
		}
	})
}

type floodConn struct {
	t      *testing.T
	framer *http2.Framer
	id     uint32 // of the next stream
	err    error
}

func (c *floodConn) check(err error) {
	if err != nil && c.err == nil {
		c.err = err
		c.t.Errorf("flood: %v", err)
	}
}

// append appends the frames of a call.
func (c *floodConn) append(batch *bytes.Buffer, f *flooder, number int) {
	w := http2.NewFramer(batch, nil)
	c.check(w.WriteHeaders(http2.HeadersFrameParam{StreamID: c.id, BlockFragment: f.headers, EndHeaders: true}))
	c.check(w.WriteData(c.id, true, f.message))
	message := batch.Bytes()[batch.Len()-len(f.message):]
	digits := fmt.Sprintf("%0*d", len(place), number)
	for _, at := range f.places {
		copy(message[at:], digits)
	}
	c.id += 2
}

// awaitEnds reads until so many calls have ended.
func (c *floodConn) awaitEnds(n int) {
	for n > 0 && c.err == nil {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			c.check(err)
			return
		}
		switch f := frame.(type) {
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				n--
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.check(c.framer.WriteSettingsAck())
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				c.check(c.framer.WritePing(true, f.Data))
			}
		case *http2.RSTStreamFrame:
			c.check(fmt.Errorf("a stream is reset: %s", f.ErrCode))
		case *http2.GoAwayFrame:
			c.check(fmt.Errorf("the connection is closed: %s", f.ErrCode))
		}
	}
}

// plainBinary builds the program as it is shipped: the race detector's takes several
// times the memory and the time.
func plainBinary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiergate")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, root+"/cmd/tiergate").CombinedOutput(); err != nil {
		t.Fatalf("build tiergate: %v: %s", err, out)
	}
	return path
}

// serverAlone starts TierGate, and Redis where it is the store, without Envoy.
func serverAlone(t *testing.T, program, store string) *devstack.Stack {
	t.Helper()
	s := &devstack.Stack{Options: devstack.Options{
		TierGate: program, Dir: t.TempDir(), Config: root + "/config/tiergate.yaml", Store: store, Sets: []string{"store.redis.timeout=4s", "usage.interval=200ms"},
	}}
	o := &s.Options
	for _, address := range []*string{&s.TierGate, &o.Operator, &o.CustomerAddress, &o.RedisAddress} {
		var err error
		if *address, err = devstack.FreeAddress(); err != nil {
			t.Fatal(err)
		}
	}
	o.TierGateAddress = s.TierGate
	t.Cleanup(func() {
		if err := s.Down(); err != nil {
			t.Error(err)
		}
	})
	if store == "redis" {
		if err := s.StartRedis(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// resident returns how much memory a program holds, in MiB, when it has come to rest:
// the least of a while, since Go's runtime gives back late.
func resident(t *testing.T, p *devstack.Process) float64 {
	t.Helper()
	least := 0.0
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(content), "VmRSS:")
		kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		if least == 0 || kib/1024 < least {
			least = kib / 1024
		}
		<-tick.C
	}
	return least
}

// series counts those of the metrics.
func series(t *testing.T, s *devstack.Stack) int {
	t.Helper()
	_, text := operator(t, s, "/metrics")
	n := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			n++
		}
	}
	return n
}

// floods are of keys that nobody has, and of descriptors with something new in every
// value, under a key that is served.
func floods(t *testing.T) map[string]*flooder {
	t.Helper()
	entries := []*ratelimitv3.RateLimitDescriptor_Entry{{Key: "api_key", Value: "sk-demo-enterprise"}}
	for _, key := range []string{"resource", "path", "priority", "user", "user-" + place} {
		value := place
		if key == "path" {
			value = "/v1/" + place
		}
		entries = append(entries, &ratelimitv3.RateLimitDescriptor_Entry{Key: key, Value: value})
	}
	return map[string]*flooder{
		"unknown keys": newFlooder(t, authv3.Authorization_Check_FullMethodName, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
				Id: "id-" + place, Method: "POST", Path: "/v1/chat/completions", Headers: map[string]string{"authorization": "Bearer sk-" + place},
			}},
		}}),
		"descriptor values": newFlooder(t, rlsv3.RateLimitService_ShouldRateLimit_FullMethodName, &rlsv3.RateLimitRequest{
			Domain: "tiergate", Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: entries}},
		}),
	}
}

// TestFloodsLeaveMemoryFlat: keys that nobody has, and descriptors of which no two are
// alike, leave nothing in the process, in its metrics or in Redis. docs/decisions/bounds.md
// has what a million of each did.
func TestFloodsLeaveMemoryFlat(t *testing.T) {
	program := plainBinary(t)
	for _, c := range []struct {
		store       string
		warm, calls int
	}{{"memory", *flood / 5, *flood}, {"redis", *flood / 20, *flood / 10}} {
		s := serverAlone(t, program, c.store)
		t.Logf("%-8s %-18s %9s %10s %10s %10s %8s %8s", "store", "flood of", "calls", "RSS before", "plateau", "at the end", "took", "series")
		for _, name := range []string{"unknown keys", "descriptor values"} {
			f := floods(t)[name]
			before := resident(t, s.Server)
			f.send(t, s.TierGate, 0, c.warm)
			plateau, seriesBefore, keysBefore := resident(t, s.Server), series(t, s), redisKeys(t, s)
			began := time.Now()
			f.send(t, s.TierGate, c.warm, c.calls-c.warm)
			took := time.Since(began)
			end, seriesAfter, keysAfter := resident(t, s.Server), series(t, s), redisKeys(t, s)
			t.Logf("%-8s %-18s %9d %6.1f MiB %6.1f MiB %6.1f MiB %8s %8d", c.store, name, c.calls, before, plateau, end, took.Round(100*time.Millisecond), seriesAfter)
			if end > plateau*1.15+16 {
				t.Errorf("%s, %s: memory grew from %.1f MiB to %.1f MiB", c.store, name, plateau, end)
			}
			if seriesAfter != seriesBefore {
				t.Errorf("%s, %s: %d series, were %d", c.store, name, seriesAfter, seriesBefore)
			}
			// Windows of the clock begin meanwhile, and are counted and shown: a few keys each.
			if len(keysAfter) > len(keysBefore)+10*(1+int(took/time.Minute)) {
				t.Errorf("%s, %s: %d keys in Redis, were %d: %.2000v", c.store, name, len(keysAfter), len(keysBefore), keysAfter)
			}
		}
		unknown, served := metric(t, s, "tiergate_decisions_total", `outcome="unauthenticated"`), metric(t, s, "tiergate_decisions_total", `outcome="allowed"`)
		if unknown != float64(c.calls) || served != float64(c.calls) {
			t.Errorf("%s: %.0f unknown, %.0f served, want %d of each", c.store, unknown, served, c.calls)
		}
	}
}

// redisKeys lists those of a stack's Redis.
func redisKeys(t *testing.T, s *devstack.Stack) []string {
	t.Helper()
	if s.Redis == nil {
		return nil
	}
	client := redis.NewClient(&redis.Options{Addr: s.Options.RedisAddress})
	defer client.Close()
	keys, err := client.Keys(t.Context(), "*").Result()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}
