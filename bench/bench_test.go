package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"
)

// TestTable runs the table with the built programs.
func TestTable(t *testing.T) {
	dir := t.TempDir()
	for _, program := range []struct{ name, module, pkg string }{
		{"tiergate", "..", "./cmd/tiergate"},
		{"bench", ".", "."},
		{"ratelimit", "ratelimit", "github.com/envoyproxy/ratelimit/src/service_cmd"},
		{"ratelimit-check", "ratelimit", "."},
	} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, program.name), program.pkg)
		cmd.Dir = program.module
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v: %s", program.name, err, out)
		}
	}
	t.Run("whole", func(t *testing.T) { testWhole(t, dir) })
	t.Run("stops", func(t *testing.T) { testStops(t, dir) })
}

// testWhole runs the whole table for a moment: each case is measured, and the report has them
// all.
func testWhole(t *testing.T, dir string) {
	bench := exec.CommandContext(t.Context(), filepath.Join(dir, "bench"), "table",
		"-tiergate", filepath.Join(dir, "tiergate"), "-ratelimit", filepath.Join(dir, "ratelimit"), "-ratelimit-check", filepath.Join(dir, "ratelimit-check"),
		"-dir", filepath.Join(dir, "new", "files"), "-out", filepath.Join(dir, "performance.md"), "-keys", "20", "-many", "2000", "-rounds", "1", "-duration", "100ms", "-in-flight", "8")
	if out, err := bench.CombinedOutput(); err != nil {
		t.Fatalf("bench table: %v: %s", err, out)
	}
	content, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	report := string(content)
	names := []string{cannedAnswer(check).name, cannedAnswer(rls).name}
	for _, c := range cases() {
		names = append(names, c.name)
	}
	names = append(names, fewName, manyName)
	for _, chain := range chains() {
		for _, l := range []level{halfBusy, halfRate} {
			names = append(names, through(chain, "canned", l), through(chain, "redis", l))
		}
	}
	for _, name := range names {
		if !regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(name) + ` \| [1-9]`).MatchString(report) {
			t.Errorf("the report has no line of %q, with its requests a second", name)
		}
	}
	if !regexp.MustCompile(`\n## Usage\n[^#]*, [1-9][0-9.]* commands`).MatchString(report) {
		t.Error("the report does not say how many commands of Redis a flush of usage takes")
	}
	// For each protocol the server's CPU with Redis (2) and in memory (2), the throughput, Redis'
	// CPU (4) and commands; of many keys two, and the collector's pauses if there were any in
	// so short a time; and two of each of two chains.
	const goals = 2*(2+2+1+4+1) + 2 + 2*2
	measured := regexp.MustCompile(`(?m)^\| .* \| (met|\*\*not met\*\*) \|$`).FindAllString(report, -1)
	measured = slices.DeleteFunc(measured, func(line string) bool { return strings.Contains(line, "collector") })
	if len(measured) != goals || t.Failed() {
		t.Errorf("%d goals were measured, want %d:\n%s", len(measured), goals, report)
	}
}

// A watcher is where a run says how far it is: it does something when a case was measured.
type watcher struct{ do func() }

func (w watcher) Write(text []byte) (int, error) {
	if bytes.HasPrefix(text, []byte("round 1 of 3: ")) {
		w.do()
	}
	return len(text), nil
}

// testStops: no server outlives a run that is interrupted, or fails in a way that nobody
// has thought of.
func testStops(t *testing.T, dir string) {
	interruption := errors.New("interrupted")
	measure := func(ctx context.Context, w watcher) error {
		return (&table{
			bedOptions: bedOptions{
				root: "..", tiergate: filepath.Join(dir, "tiergate"), ratelimit: filepath.Join(dir, "ratelimit"), ratelimitCheck: filepath.Join(dir, "ratelimit-check"),
				program: filepath.Join(dir, "bench"),
				keys:    5, manyKeys: 5,
			},
			spread: spread{inFlight: 2, connections: 1, duration: 400 * time.Millisecond},
			rounds: 3, only: regexp.MustCompile("requests, redis, RLS"),
		}).run(ctx, &bytes.Buffer{}, w)
	}
	for name, do := range map[string]func(t *testing.T){
		"interrupted": func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			if err := measure(ctx, watcher{func() { cancel(interruption) }}); !errors.Is(err, interruption) {
				t.Errorf("have %v, want what has interrupted it", err)
			}
		},
		"panic": func(t *testing.T) {
			defer func() {
				if have := recover(); fmt.Sprint(have) != interruption.Error() {
					t.Errorf("have a panic with %v", have)
				}
			}()
			t.Error(measure(t.Context(), watcher{func() { panic(interruption) }}), "without a panic")
		},
	} {
		t.Run(name, func(t *testing.T) {
			do(t)
			if left := children(t); len(left) > 0 {
				t.Errorf("these still run: %q", left)
			}
		})
	}
}

// children returns the programs that this process has started and that run.
func children(t *testing.T) []string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		name, rest, _ := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); fields[1] == strconv.Itoa(os.Getpid()) {
			all = append(all, name)
		}
	}
	return all
}

// TestEnded: a server that ends before it serves is no mystery, and nobody waits for it.
func TestEnded(t *testing.T) {
	t.Parallel()
	b := &bed{dir: t.TempDir(), targets: map[string]target{}}
	begun := time.Now()
	err := b.startServer(t.Context(), "broken", []string{"sh", "-c", "echo no such luck; exit 3"}, nil, target{address: "127.0.0.1:1"})
	if err == nil || err.Error() != "start broken: it ended before it served: no such luck" || time.Since(begun) > 5*time.Second {
		t.Errorf("after %s: have %v", time.Since(begun), err)
	}
	if err := b.stop(); err != nil {
		t.Error(err)
	}
}

// TestRequests: what is sent is what Envoy sends, but for the number in its IDs, which is
// another each time.
func TestRequests(t *testing.T) {
	t.Parallel()
	p, err := newPrepared(check.request, "a-key")
	if err != nil {
		t.Fatal(err)
	}
	var r authv3.CheckRequest
	if err := proto.Unmarshal(p.fill(nil, "b-key", 123_456_789_012), &r); err != nil {
		t.Fatal(err)
	}
	want := checkRequest("Bearer b-key")
	want.Attributes.Request.Http.Id = "1684767123456789012"
	want.Attributes.Request.Http.Headers["x-request-id"] = "86811ad6-e2b1-4075-ad36-123456789012"
	if !proto.Equal(&r, want) {
		t.Errorf("have %v\nwant %v", &r, want)
	}
	for _, request := range []func(string) proto.Message{rls.request, threeLimits} {
		if p, err = newPrepared(request, "a-key"); err != nil {
			t.Fatal(err)
		}
		var l rlsv3.RateLimitRequest
		if err := proto.Unmarshal(p.fill(nil, "b-key", 1), &l); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&l, request("Bearer b-key")) {
			t.Errorf("have %v", &l)
		}
	}
}

// TestRead: the generator reads answers as the protobufs do.
func TestRead(t *testing.T) {
	t.Parallel()
	c := newCanned()
	ticket := c.ok.GetDynamicMetadata().GetFields()["reservation"].GetStringValue()
	encode := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tt := range []struct {
		name   string
		of     protocol
		answer proto.Message
		want   verdict
	}{
		{"allowed", check, c.allowed, verdict{admitted: true, ticket: []byte(ticket)}},
		{"denied", check, &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{Body: "no"}}}, verdict{}},
		{"empty", check, &authv3.CheckResponse{}, verdict{}},
		{"ok", rls, c.ok, verdict{admitted: true, ticket: []byte(ticket)}},
		{"over limit", rls, &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OVER_LIMIT}, verdict{}},
		{"unknown", rls, &rlsv3.RateLimitResponse{}, verdict{}},
		{"degraded", rls, &rlsv3.RateLimitResponse{
			OverallCode: rlsv3.RateLimitResponse_OK, ResponseHeadersToAdd: values([][2]string{{"X-RateLimit-Degraded", "1"}}),
		}, verdict{admitted: true, degraded: true}},
	} {
		have := tt.of.read(encode(tt.answer), true)
		if have.admitted != tt.want.admitted || have.degraded != tt.want.degraded || !bytes.Equal(have.ticket, tt.want.ticket) {
			t.Errorf("%s: have %+v, want %+v", tt.name, have, tt.want)
		}
	}
	if field([]byte("\xff"), 1) != nil || check.read([]byte("\xff"), true).admitted {
		t.Error("what is no message is read")
	}
}

// TestAccessLog: an entry has the reservation, whatever the one before had.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	for p, filter := range map[protocol]string{check: "envoy.filters.http.ext_authz", rls: "envoy.filters.http.ratelimit"} {
		entry := newLogEntry(p)
		for _, want := range []string{"a-ticket", "b-ticket", "longer-ticket"} {
			encoded, err := entry.fill([]byte(want))
			if err != nil {
				t.Fatal(err)
			}
			var m alsv3.StreamAccessLogsMessage
			if err := proto.Unmarshal(encoded, &m); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(&m, accessLog(p, want)) {
				t.Errorf("%s, %s: have %v", p, want, &m)
			}
			have := m.GetHttpLogs().GetLogEntry()[0].GetCommonProperties().GetMetadata().GetFilterMetadata()[filter].GetFields()["reservation"].GetStringValue()
			if have != want {
				t.Errorf("%s: the reservation is %q, want %q", p, have, want)
			}
		}
	}
}

// TestLateCalls: in an open loop a call that waits for a slow one is late, though it is
// fast by itself; in a closed loop it is not made.
func TestLateCalls(t *testing.T) {
	t.Parallel()
	const stall = 50 * time.Millisecond
	slowFirst := func(_ int, o *outcome) call {
		first := true
		return func(ctx context.Context, due time.Time) {
			if first {
				first = false
				ctx, cancel := context.WithTimeout(ctx, stall)
				defer cancel()
				<-ctx.Done()
			}
			o.requests++
			o.took(time.Since(due))
		}
	}
	open := drive(t.Context(), newOutcomes(1), schedule(t.Context(), 1000, stall), slowFirst)
	if half := time.Duration(open.latency.ValueAtQuantile(50)); open.requests != 50 || half < stall/4 {
		t.Errorf("open loop: %d calls, half of them within %s: want 50, late by %s on average", open.requests, half, stall/2)
	}
	closed := drive(t.Context(), newOutcomes(1), schedule(t.Context(), 0, 2*stall), slowFirst)
	if half := time.Duration(closed.latency.ValueAtQuantile(50)); half > stall/4 {
		t.Errorf("closed loop: half of the calls within %s: want no wait", half)
	}
}

// TestGroups: what is compared takes turns, and with the first of a target and a protocol its canned answer.
func TestGroups(t *testing.T) {
	t.Parallel()
	have := map[string]string{} // by the case, those with which it takes turns
	for _, group := range groups(cases()) {
		var names []string
		for _, c := range group {
			names = append(names, c.name)
		}
		have[names[len(names)-1]] = strings.Join(names[:len(names)-1], "; ")
	}
	want := map[string]string{
		"requests, redis, Check": "canned answer, Check; envoyproxy/ratelimit, Check", "requests, redis, RLS": "canned answer, RLS; envoyproxy/ratelimit, RLS",
		"requests, memory, Check": "canned answer, Check", "requests, memory, RLS": "canned answer, RLS",
	}
	for _, store := range []string{"redis", "memory"} {
		for _, p := range []protocol{check, rls} {
			for _, kind := range []string{"tokens", "tokens settled", "refused", "unlimited"} {
				if name := fmt.Sprintf("%s, %s, %s", kind, store, p); store == "redis" || strings.HasPrefix(kind, "tokens") {
					want[name] = ""
				}
			}
		}
	}
	if !maps.Equal(have, want) {
		t.Errorf("have %q\nwant %q", have, want)
	}
	only := groups([]benchCase{{name: "tokens, redis, RLS", target: "redis", protocol: rls}})
	if len(only) != 1 || len(only[0]) != 2 || only[0][0].name != "canned answer, RLS" {
		t.Errorf("one case: have %v, want it to take turns with the canned answer", only)
	}
}

// TestMedians: ratios are taken round by round.
func TestMedians(t *testing.T) {
	t.Parallel()
	r := results{
		"a": {{perSecond: 30}, {perSecond: 1}, {perSecond: 20}},
		"b": {{perSecond: 10}, {perSecond: 1}, {perSecond: 4}},
		"c": {{}},
	}
	for _, tt := range []struct {
		name string
		have func() (float64, bool)
		want string
	}{
		{"median", func() (float64, bool) { return r.median("a", perSecond) }, "20 true"},
		{"ratio", func() (float64, bool) { return r.ratio("a", "b", perSecond) }, "3 true"},
		{"of what was not measured", func() (float64, bool) { return r.ratio("a", "c", perSecond) }, "0 false"},
		{"of an unknown case", func() (float64, bool) { return r.median("d", perSecond) }, "0 false"},
	} {
		v, ok := tt.have()
		if have := fmt.Sprint(v, ok); have != tt.want {
			t.Errorf("%s: have %s, want %s", tt.name, have, tt.want)
		}
	}
}

// TestCommands: what cannot be done is an error.
func TestCommands(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"":                         "want table, load or canned",
		"jump":                     `unknown command "jump"`,
		"table now":                `unexpected argument "now"`,
		"table -only (":            "-only",
		"table -keys 0":            "want at least one key",
		"table -many 0":            "want at least one key",
		"table -zipf 0.8":          "-zipf 0.8: want more than 1",
		"table -only jump":         `-only "jump": want an expression that one of these matches: ["envoyproxy/ratelimit, Check" "requests, redis, Check" "tokens, redis, Check" `,
		"table -tiergate /no/such": "stat /no/such: no such file or directory: make bench builds it",
		"load":                     "want -keys",
		"load -protocol ftp":       `unknown protocol "ftp"`,
		"load -keys /no/such/file": "read the keys",
		"canned -listen nowhere":   "listen at nowhere",
	} {
		err := run(t.Context(), strings.Fields(args), &bytes.Buffer{}, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("bench %s: have %v, want %q", args, err, want)
		}
	}
}

// TestDocumented: what the report says how to measure less, and to send a load, does that.
func TestDocumented(t *testing.T) {
	t.Parallel()
	only := regexp.MustCompile(`-only '(.*)'"`).FindStringSubmatch(reportText)
	sent := regexp.MustCompile(`go run \. (load .*)`).FindStringSubmatch(reportText)
	if only == nil || sent == nil {
		t.Fatal("the report does not say how to measure less, or to send a load")
	}
	less := table{envoy: true, only: regexp.MustCompile(only[1])}
	chosen := slices.DeleteFunc(less.names(), func(name string) bool { return !less.only.MatchString(name) })
	if want := []string{rateLimitCase(check).name, "requests, redis, Check", rateLimitCase(rls).name, "requests, redis, RLS"}; !slices.Equal(chosen, want) || len(less.chains()) > 0 {
		t.Errorf("-only %q: have %q and the chains %q, want %q", less.only, chosen, less.chains(), want)
	}
	less.only = regexp.MustCompile("ext_authz")
	if have := less.chains(); !slices.Equal(have, []string{"ext_authz"}) {
		t.Errorf("-only %q: have the chains %q", less.only, have)
	}
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("sk-demo-enterprise\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := scripted{}
	s.check = func(context.Context) (*authv3.CheckResponse, error) { return s.allowed, nil }
	address, _ := s.start(t)
	var out bytes.Buffer
	args := append(strings.Fields(sent[1]), "-to", address, "-keys", keys, "-duration", "100ms")
	if err := run(t.Context(), args, &out, &out); err != nil || !strings.Contains(out.String(), "50 admitted of 50, 0 degraded, 0 failed") {
		t.Errorf("bench %q: %v: %s", args, err, &out)
	}
}

// TestFree: what is measured begins where no flush of usage comes before its end.
func TestFree(t *testing.T) {
	t.Parallel()
	at := func(seconds float64) time.Time {
		return time.Unix(0, 0).Add(time.Duration(seconds * float64(time.Second)))
	}
	f := flushes{from: at(60), to: at(62), every: time.Minute}
	for _, tt := range []struct{ now, lasts, want float64 }{
		{0, 10, 0},
		{49, 10, 49},
		{50, 10, 62},
		{61, 1, 62},
		{62, 50, 62},
		{100, 30, 122},
		{119, 0.5, 119},
		{121, 1, 122},
		{722, 50, 722},
		{730, 51, 782},
	} {
		if have := f.free(at(tt.now), time.Duration(tt.lasts*float64(time.Second))); !have.Equal(at(tt.want)) {
			t.Errorf("at %v s, for %v s: have %s, want %v s", tt.now, tt.lasts, have.Sub(at(0)), tt.want)
		}
	}
	if have := (flushes{}).free(at(5), time.Hour); !have.Equal(at(5)) {
		t.Errorf("without flushes: have %s, want 5 s", have.Sub(at(0)))
	}
}
