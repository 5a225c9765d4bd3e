package e2e

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestCapacity: what the backend takes of a resource is shared by all keys, and those of a low
// priority are shed first, with the contract's 429 and at no charge. Other resources are not
// concerned.
func TestCapacity(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		for _, store := range []string{"memory", "redis"} {
			t.Run(store, func(t *testing.T) {
				t.Parallel()
				config, _ := ownConfig(t)
				merge(t, config, "capacity: {chat: {limits: [{metric: requests, per: minute, max: 20}]}}")
				s := up(t, devstack.Options{Chain: chain, Store: store, Config: config})
				freshMinute(t, 20*time.Second)
				low := http.Header{"X-Request-Priority": {"low"}}
				used := 0
				for _, c := range []struct {
					call              call
					passes            int
					limit             int // of the key, per minute; 0: unlimited
					priority, earlier string
				}{
					{call{key: "sk-demo-basic", header: low}, 10, 50, "1", "0"},
					{call{key: "sk-demo-free"}, 0, 10, "1", "0"},
					{call{key: "sk-demo-basic"}, 5, 50, "2", "10"},
					{call{key: "sk-demo-basic", header: low}, 0, 50, "1", "15"},
					{call{key: "sk-demo-pro"}, 3, 100, "3", "0"},
					{call{key: "sk-demo-enterprise"}, 2, 0, "4", "0"},
				} {
					of := func(passed int) (limit, remaining, all string) {
						n, err := strconv.Atoi(c.earlier)
						if err != nil {
							t.Fatal(err)
						}
						n += passed
						if c.limit == 0 {
							return "unlimited", "unlimited", strconv.Itoa(n)
						}
						return strconv.Itoa(c.limit), strconv.Itoa(c.limit - n), strconv.Itoa(n)
					}
					for i := 1; i <= c.passes; i++ {
						r := do(t, s, c.call)
						if r.StatusCode != http.StatusOK {
							t.Fatalf("%s of priority %s: call %d, when %d of the pool are used: %s: %s", c.call.key, c.priority, i, used, r.Status, r.body)
						}
						used++
						limit, remaining, all := of(i)
						checkSix(t, r, limit, remaining, "chat", all, c.priority)
					}
					for range 3 {
						before := time.Now()
						r := do(t, s, c.call)
						checkLimitedBy(t, r, before, "capacity")
						limit, remaining, all := of(c.passes)
						checkSix(t, r, limit, remaining, "chat", all, c.priority)
					}
				}
				if r := do(t, s, call{key: "sk-demo-free", path: "/v1/images/generations"}); r.StatusCode != http.StatusOK {
					t.Errorf("another resource: %s", r.Status)
				}
				if n := metric(t, s, "tiergate_capacity_used", `resource="chat"`, `metric="requests"`, `per="minute"`); n != 20 {
					t.Errorf("%v of the pool are said to be used: want 20", n)
				}
				if n := metric(t, s, "tiergate_capacity_limit", `resource="chat"`, `priority="3"`); n != 18 {
					t.Errorf("%v of the pool are said to be for high: want 18", n)
				}
				if n := metric(t, s, "tiergate_decisions_total", `limit="capacity"`, `priority="1"`, `tier="basic"`); n != 6 {
					t.Errorf("%v of a low priority were shed: want 6", n)
				}
			})
		}
	})
}

// TestCapacityOfTokens: a pool of tokens gets back what answers did not use, also those of keys
// that have no limit on tokens themselves.
func TestCapacityOfTokens(t *testing.T) {
	eachChain(t, func(t *testing.T, chain string) {
		config, _ := ownConfig(t)
		merge(t, config, "capacity: {chat: {limits: [{metric: tokens, per: minute, max: 1000}]}}")
		s := up(t, devstack.Options{Chain: chain, Store: "redis", Config: config})
		freshMinute(t, 20*time.Second)
		ask := func(header http.Header) reply {
			header.Set("X-Mock-Usage", "20,30")
			return do(t, s, call{key: "sk-demo-enterprise", body: `{"max_tokens": 700}`, header: header})
		}
		slow := make(chan reply, 1)
		go func() { slow <- ask(http.Header{"X-Mock-Delay": {"2s"}}) }()
		if !trueWithin(time.Second, func() bool { return metric(t, s, "tiergate_decisions_total", `outcome="allowed"`) == 1 }) {
			t.Fatal("the first request is not admitted")
		}
		before := time.Now()
		checkLimitedBy(t, ask(http.Header{}), before, "capacity") // the first has reserved most of the pool
		if r := <-slow; r.StatusCode != http.StatusOK {
			t.Fatalf("the first: %s: %s", r.Status, r.body)
		}
		passed := 0
		for range 5 {
			var last reply
			if trueWithin(5*time.Second, func() bool { last = ask(http.Header{}); return last.StatusCode == http.StatusOK }) {
				passed++
			}
		}
		if passed != 5 {
			t.Errorf("%d of 5 have passed, one after the other, which used 50 of 1,000 each", passed)
		}
	})
}

// TestCapacityOnThePage: the holder of a key sees what was shed and what helps, and nothing of
// how large the pool is.
func TestCapacityOnThePage(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	merge(t, config, `capacity:
  chat: {limits: [{metric: tokens, per: month, max: 9000}]}
  images: {limits: [{metric: requests, per: month, max: 100}], shares: {low: 0}}`)
	s := up(t, devstack.Options{Config: config})
	b := browse(t)
	b.do("open the dashboard", chromedp.Navigate("http://"+s.API+"/dashboard"), chromedp.WaitVisible("input[name=key]"))
	b.signIn(s, "sk-demo-free")
	for i, want := range []int{http.StatusOK, http.StatusTooManyRequests} {
		r := do(t, s, call{key: "sk-demo-free", body: `{"max_tokens": 6000}`, header: http.Header{"X-Mock-Usage": {"2000,4000"}}})
		if r.StatusCode != want {
			t.Fatalf("request %d: %s: %s", i, r.Status, r.body)
		}
	}
	rows := func() string {
		return evaluate[string](b, `[...document.querySelectorAll("#refusals tbody tr")].map((r) => [...r.cells].slice(1).map((c) => c.innerText).join("|")).join("\n")`)
	}
	b.view("refused")
	b.awaitText("#advice", "All keys together use as much of this resource as there is")
	if got := rows(); !regexp.MustCompile(`^chat\|Capacity \(429\)\|–\|–\|.* later$`).MatchString(got) {
		t.Errorf("what was shed is listed as\n%s", got)
	}
	if r := do(t, s, call{key: "sk-demo-free", path: "/v1/images/generations"}); r.StatusCode != http.StatusTooManyRequests || r.Header.Get("X-Should-Retry") != "false" {
		t.Errorf("of a share of 0: %s, %v", r.Status, r.Header)
	}
	b.awaitText("#advice", "The key's tier leaves no room for this at all")
	if got := rows(); !strings.HasPrefix(got, "images|Capacity (429)|–|–|Never\n") {
		t.Errorf("what a share of 0 shed is listed as\n%s", got)
	}
	out, err := tiergate(t, "usage", "key_demo_free", "--refused", "--server", "http://"+s.Options.Operator, "--token-file", s.AdminTokenFile())
	if err != nil || strings.Count(out, "capacity  -     -    -  ") != 2 {
		t.Errorf("on the command line: %v:\n%s", err, out)
	}
}
