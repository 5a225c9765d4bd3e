package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/tiergate/tiergate/internal/devstack"
)

// sums is what requests came to, by resource and outcome, and in tokens.
type sums map[string]int64

// known is a kind of call whose outcome is known from its answer.
type known struct {
	path, body, resource string
}

func knownCalls() []known {
	return []known{
		{"/v1/chat/completions", `{"model": "mock-1", "max_tokens": 50, "messages": []}`, "chat"},
		{"/v1/responses", `{"model": "mock-1", "max_output_tokens": 50, "input": ""}`, "chat"},
		{"/v1/embeddings", `{"model": "mock-1", "input": "x"}`, "embeddings"},
		{"/v1/chat/completions", `{"model": "mock-1", "max_tokens": 999999999, "messages": []}`, "chat"}, // 413
		{"/v1/completions", `{"model": "mock-1", "max_tokens": 50, "prompt": "x"}`, "chat"},
		{"/v1/images/generations", `{"model": "mock-1", "prompt": "x"}`, "images"}, // 403
	}
}

// direct counts an answer.
func (s sums) direct(t *testing.T, resource string, r reply) {
	t.Helper()
	switch r.StatusCode {
	case http.StatusOK:
		var body struct {
			Usage struct {
				PromptTokens     int64 `json:"prompt_tokens"`
				CompletionTokens int64 `json:"completion_tokens"`
				InputTokens      int64 `json:"input_tokens"`
				OutputTokens     int64 `json:"output_tokens"`
			} `json:"usage"`
		}
		if err := json.Unmarshal([]byte(r.body), &body); err != nil {
			t.Errorf("%s: %v", r.body, err)
		}
		s[resource+" admitted"]++
		s[resource+" input"] += body.Usage.PromptTokens + body.Usage.InputTokens
		s[resource+" output"] += body.Usage.CompletionTokens + body.Usage.OutputTokens
	case http.StatusTooManyRequests:
		s[resource+" "+r.Header.Get("X-Ratelimit-Limited-By")]++
	case http.StatusRequestEntityTooLarge:
		s[resource+" too_large"]++
	case http.StatusForbidden:
		s[resource+" forbidden"]++
	default:
		t.Errorf("%s %s", r.Status, r.body)
	}
	s["requests"]++
}

// told sums up what the usage API says.
func told(t *testing.T, body string) sums {
	t.Helper()
	var answer struct {
		Totals struct {
			Requests int64
		}
		Points []struct {
			Resource     string
			Admitted     int64
			Refused      map[string]int64
			InputTokens  int64 `json:"input_tokens"`
			OutputTokens int64 `json:"output_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	s := sums{"requests": answer.Totals.Requests}
	for _, p := range answer.Points {
		s[p.Resource+" admitted"] += p.Admitted
		s[p.Resource+" input"] += p.InputTokens
		s[p.Resource+" output"] += p.OutputTokens
		for reason, n := range p.Refused {
			s[p.Resource+" "+reason] += n
		}
	}
	maps.DeleteFunc(s, func(_ string, n int64) bool { return n == 0 })
	return s
}

// TestUsageAgrees: after 1,000 known calls through two instances, what the customers'
// API, the admin API and the command line say is what was counted from the answers, by
// resource and outcome, in every step; and so is what the dashboard shows.
func TestUsageAgrees(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	edit(t, config, "per: minute, max: 100}", "per: minute, max: 400}")
	one, two := fleet(t, devstack.Options{Config: config})
	secret, id := createKey(t, one, "--tier", "pro", "--resources", "chat,embeddings")
	eventually(t, "the other instance knows the key", func() bool {
		return do(t, two, call{method: http.MethodGet, path: "/v1/limits", key: secret}).StatusCode == http.StatusOK // not charged
	})
	counted, mu := sums{}, sync.Mutex{}
	calls := knownCalls()
	const callers, each = 20, 50
	freshMinute(t, 40*time.Second) // so that some are refused
	together(callers, func(i int) {
		for n := range each {
			c := calls[(i+n)%len(calls)]
			s := []*devstack.Stack{one, two}[n%2]
			r := do(t, s, call{path: c.path, body: c.body, key: secret, header: http.Header{"X-Mock-Usage": {fmt.Sprintf("%d,%d", 10+i, 20+n)}}})
			mu.Lock()
			counted.direct(t, c.resource, r)
			mu.Unlock()
		}
	})
	maps.DeleteFunc(counted, func(_ string, n int64) bool { return n == 0 })
	ask := func(step string) sums {
		r := do(t, two, call{method: http.MethodGet, path: "/v1/usage?by=resource&step=" + step, key: secret})
		waitUntil(t, time.Now().Add(250*time.Millisecond)) // a key may ask 5 times a second
		return told(t, r.body)
	}
	agreed := trueWithin(15*time.Second, func() bool { return reflect.DeepEqual(ask("day"), counted) })
	t.Logf("counted: %v", counted)
	for _, step := range []string{"minute", "hour", "day"} {
		if have := ask(step); !agreed || !reflect.DeepEqual(have, counted) {
			t.Errorf("by %s: %v, want %v", step, have, counted)
		}
	}
	out, err := tryAdmin(t, one, "usage", id, "--step", "day", "--by", "resource")
	if err != nil || !reflect.DeepEqual(told(t, out), counted) {
		t.Errorf("command line: %s: %v", out, err)
	}
	if counted["chat requests_per_minute"] == 0 || counted["chat too_large"] == 0 || counted["images forbidden"] == 0 || counted["requests"] != 1000 {
		t.Errorf("not every outcome: %v", counted)
	}
	checkDashboard(t, one, secret, counted)
}

// checkDashboard signs in and compares what is shown, all together and by resource.
func checkDashboard(t *testing.T, s *devstack.Stack, secret string, counted sums) {
	t.Helper()
	b := browse(t)
	b.signIn(s, secret)
	b.do("see the usage", chromedp.Navigate("http://"+s.API+"/dashboard#usage"), chromedp.WaitVisible("#totals"))
	for _, resource := range []string{"", "chat", "embeddings", "images"} {
		want := map[string]int64{"Requests": 0, "Admitted": 0, "Over a limit (429)": 0, "Refused otherwise": 0, "Input tokens": 0, "Output tokens": 0}
		for name, n := range counted {
			of, outcome, several := strings.Cut(name, " ")
			if !several || (resource != "" && of != resource) {
				continue
			}
			switch outcome {
			case "admitted":
				want["Admitted"] += n
				want["Requests"] += n
			case "input":
				want["Input tokens"] += n
			case "output":
				want["Output tokens"] += n
			case "forbidden", "too_large":
				want["Refused otherwise"] += n
				want["Requests"] += n
			default:
				want["Over a limit (429)"] += n
				want["Requests"] += n
			}
		}
		evaluate[bool](b, `(() => { const s = document.getElementById("resource"); s.value = "`+resource+`"; s.dispatchEvent(new Event("change", {bubbles: true})); return true })()`)
		var have map[string]int64
		if !trueWithin(browserPatience, func() bool { have = b.totals(); return reflect.DeepEqual(have, want) }) {
			t.Errorf("the dashboard shows of %q: %v, want %v", resource, have, want)
		}
	}
}

// TestNodeKeepsKeysAndUsage: with a file, what one node was told and has counted is there
// again after a stop, all of it; after a kill, all but at most an interval of usage.
func TestNodeKeepsKeysAndUsage(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Keep: true, Sets: []string{"usage.interval=500ms"}})
	secret, id := createKey(t, s, "--tier", "enterprise")
	admitted := func() int64 {
		out, err := tryAdmin(t, s, "usage", id, "--step", "day", "--by", "resource")
		if err != nil {
			t.Fatal(out)
		}
		return told(t, out)["chat admitted"]
	}
	restart := func() {
		t.Helper()
		<-s.Server.Done()
		if err := s.StartServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		inForce(t, s, secret, http.StatusOK)
	}
	for range 40 {
		do(t, s, call{key: secret})
	}
	if err := s.Server.Signal(syscall.SIGTERM); err != nil { // at once, within the interval
		t.Fatal(err)
	}
	restart()
	if n := admitted(); n != 40 && n != 41 { // one more when it was seen to be back
		t.Errorf("%d counted after a stop, want 40", n)
	}
	eventually(t, "the request after the start is counted", func() bool { return admitted() == 41 })
	for range 20 {
		do(t, s, call{key: secret})
	}
	eventually(t, "they are written", func() bool { return admitted() == 61 })
	for range 5 {
		do(t, s, call{key: secret})
	}
	kill(t, s.Server)
	restart()
	if n := admitted(); n < 61 || n > 67 {
		t.Errorf("%d counted after a kill, want 61 to 67", n)
	}
	admin(t, s, "keys", "revoke", id)
	if err := s.Server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.Server.Done()
	if err := s.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	inForce(t, s, secret, http.StatusUnauthorized)
}

// TestFleetStopsWithoutLoss: an instance of a fleet that stops hands over what it has
// counted.
func TestFleetStopsWithoutLoss(t *testing.T) {
	t.Parallel()
	one, two := fleet(t, devstack.Options{Sets: []string{"usage.interval=1m"}})
	secret, id := createKey(t, one, "--tier", "enterprise")
	inForce(t, two, secret, http.StatusOK)
	for range 30 {
		do(t, two, call{key: secret, header: http.Header{"X-Mock-Usage": {"3,4"}}})
	}
	eventually(t, "the answers are settled", func() bool {
		return metric(t, two, "tiergate_settlements_total", `result="settled"`)+metric(t, two, "tiergate_settlements_total", `result="unreserved"`) >= 31
	})
	if err := two.Server.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	out, err := tryAdmin(t, one, "usage", id, "--step", "day", "--by", "resource")
	if err != nil {
		t.Fatal(out)
	}
	if have := told(t, out); have["chat admitted"] != 31 || have["chat input"] < 90 || have["chat output"] < 120 {
		t.Errorf("%v, want 31 admitted", have)
	}
}

// TestUsageIsBounded: beyond usage.max_series keys count together.
func TestUsageIsBounded(t *testing.T) {
	t.Parallel()
	s := up(t, devstack.Options{Keep: true, Sets: []string{"usage.max_series=1", "usage.interval=1m"}})
	for _, key := range []string{"sk-demo-pro", "sk-demo-basic", "sk-demo-basic"} {
		do(t, s, call{key: key})
	}
	if n := metric(t, s, "tiergate_usage_overflowed_total"); n < 2 {
		t.Errorf("%v counted together, want at least 2", n)
	}
	if err := s.Server.Stop(20 * time.Second); err != nil { // so that all is written
		t.Fatal(err)
	}
	if err := s.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	requests := func(path string) int64 {
		token, err := os.ReadFile(s.AdminTokenFile())
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Options.Operator+"/admin/v1"+path+"?step=day", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+string(token))
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return told(t, read(t, response).body)["requests"]
	}
	if fleet, own := requests("/fleet/usage"), requests("/keys/key_demo_pro/usage")+requests("/keys/key_demo_basic/usage"); fleet != 3 || own != 1 {
		t.Errorf("%d of the fleet, %d under their own keys; want 3 and 1", fleet, own)
	}
}

// TestUnlimitedRepeatsInUsage: a request of an unlimited tier that Envoy asks about again,
// at the same instance and at another, is in the usage once, though each time it is
// answered before Redis has counted it.
func TestUnlimitedRepeatsInUsage(t *testing.T) {
	t.Parallel()
	one, two := fleet(t, devstack.Options{})
	instances := []*devstack.Stack{one, two}
	var authz []authv3.AuthorizationClient
	for _, s := range instances {
		authz = append(authz, authv3.NewAuthorizationClient(dial(t, s)))
	}
	const requests = 20
	order := []int{0, 0, 1, 0, 1}
	for i := range requests {
		for _, at := range order {
			request := checkRequest("sk-demo-enterprise")
			request.Attributes.Request.Http.Id = fmt.Sprintf("request-%d", i)
			r, err := authz[at].Check(t.Context(), request)
			if err != nil || r.GetOkResponse() == nil {
				t.Fatalf("request %d at instance %d: %v, %v", i, at, r, err)
			}
		}
	}
	ahead := 0.0
	for _, s := range instances {
		ahead += metric(t, s, "tiergate_answered_ahead_total")
	}
	if want := float64(requests * len(order)); ahead != want {
		t.Errorf("%v were answered ahead, want %v", ahead, want)
	}
	for _, s := range instances { // a stop counts all that is on its way, and hands it over
		if err := s.Server.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range instances {
		<-s.Server.Done()
	}
	if err := one.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := tryAdmin(t, one, "usage", "key_demo_enterprise", "--step", "day", "--by", "resource")
	if want := (sums{"requests": requests, "chat admitted": requests}); err != nil || !reflect.DeepEqual(told(t, out), want) {
		t.Errorf("%s: %v: want %v", out, err, want)
	}
}

// TestTwoWaysAreOneInUsage: an answer that is reported to two instances is in the usage once,
// of a key without limits too, and where Redis is away meanwhile.
func TestTwoWaysAreOneInUsage(t *testing.T) {
	t.Parallel()
	one, two := fleet(t, devstack.Options{Sets: []string{"tokens.settle_by=[access_log, ratelimit]", "store.redis.timeout=500ms"}})
	here, there := intrude(t, one), intrude(t, two)
	keys := []string{"sk-demo-pro", "sk-demo-enterprise"}
	ticket := func(key string) string {
		r, err := here.authz.Check(t.Context(), checkRequest(key))
		if err != nil || ticketOf(r) == "" {
			t.Fatalf("%v, %v", r, err)
		}
		return ticketOf(r)
	}
	both := func(ticket string) {
		for _, i := range []intruder{here, there} {
			if err := i.call(t, "tiergate-settle", ticket, 7); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := map[string]string{}
	for _, key := range keys {
		both(ticket(key))
		before[key] = ticket(key)
	}
	freeze(t, one.Redis)
	for _, s := range []*devstack.Stack{one, two} {
		eventually(t, "Redis is found away", func() bool { return metric(t, s, "tiergate_degraded") == 1 })
	}
	for _, key := range keys {
		both(ticket(key))
		both(before[key])
	}
	if err := one.Redis.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	used := func(key string) sums {
		out, err := tryAdmin(t, one, "usage", "key_demo_"+strings.TrimPrefix(key, "sk-demo-"), "--step", "day", "--by", "resource")
		if err != nil {
			return nil // Redis is not back yet
		}
		return told(t, out)
	}
	want := sums{"requests": 3, "chat admitted": 3, "chat input": 21, "chat output": 21}
	for _, key := range keys {
		if !trueWithin(20*time.Second, func() bool { return reflect.DeepEqual(used(key), want) }) {
			t.Errorf("%s: %v, want %v", key, used(key), want)
		}
	}
	for _, s := range []*devstack.Stack{one, two} {
		eventually(t, "nothing waits", func() bool { return metric(t, s, "tiergate_settlements_waiting") == 0 })
	}
}
