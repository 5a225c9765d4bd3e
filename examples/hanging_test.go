package examples

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// TestHungInstancesAreNotAsked: of three instances one hangs, then two. What TierGate refuses, or
// cannot read, is no failure of its before.
func TestHungInstancesAreNotAsked(t *testing.T) {
	eachMesh(t, func(t *testing.T, m meshGateway) {
		s, others := fleet(t, m, nil)
		for range 40 {
			status(t, s, "sk-nobody")
		}
		for range 40 {
			status(t, s, "sk-demo-enterprise", "X-Request-Priority: \xff")
		}
		if n := stat(t, s, "outlier_detection.ejections_enforced_total"); n != 0 {
			t.Errorf("401, and what is no UTF-8, ejected an instance, %d times", n)
		}
		for i, o := range others {
			freeze(t, o)
			awaitStat(t, s, "membership_healthy", 2-i)
			await(t, 20*time.Second, fmt.Sprintf("requests that fail while %d of 3 hang", i+1), 0, func() int { return failed(t, s) })
		}
		resume(t, others...)
		awaitStat(t, s, "membership_healthy", 3)
	})
}

// TestHungInstanceIsLeft as soon as 50 calls in a row have run out of time there, before any health
// check has failed twice. Of three that hang, two are asked.
func TestHungInstanceIsLeft(t *testing.T) {
	eachMesh(t, func(t *testing.T, m meshGateway) {
		s, others := fleet(t, m, object{"unhealthy_threshold": 1000})
		freeze(t, others[0])
		together(60, func() { status(t, s, "sk-demo-enterprise") })
		if n := stat(t, s, "outlier_detection.ejections_enforced_total"); n != 0 {
			t.Errorf("some 20 calls that ran out of time ejected an instance, %d times", n)
		}
		var sent, lost atomic.Int64
		end := time.Now().Add(20 * time.Second)
		together(30, func() {
			for stat(t, s, "membership_healthy") == 3 && time.Now().Before(end) {
				sent.Add(1)
				if status(t, s, "sk-demo-enterprise") != http.StatusOK {
					lost.Add(1)
				}
			}
		})
		t.Logf("until it was left %d of %d requests failed", lost.Load(), sent.Load())
		if n := stat(t, s, "outlier_detection.ejections_enforced_total"); n != 1 || lost.Load() > 200 {
			t.Errorf("ejected %d times after %d failed requests: want once, after few more than 50", n, lost.Load())
		}
		await(t, 20*time.Second, "requests that fail", 0, func() int { return failed(t, s) })
		freeze(t, others[1])
		freeze(t, s)
		together(150, func() { status(t, s, "sk-demo-enterprise") })
		if n := stat(t, s, "membership_healthy"); n != 2 {
			t.Errorf("%d of 3 that hang are asked, want 2", n)
		}
	})
}

// TestTheOnlyInstanceIsNotEjected, whatever it refuses and though it hangs: it may go on at once.
func TestTheOnlyInstanceIsNotEjected(t *testing.T) {
	eachMesh(t, func(t *testing.T, m meshGateway) {
		s := meshUp(t, m.bootstrap(t), m.clusters)
		together(4, func() {
			for range 20 {
				status(t, s, "sk-nobody")
				status(t, s, "sk-demo-free")
			}
		})
		if n := stat(t, s, "outlier_detection.ejections_overflow"); n != 0 {
			t.Errorf("401 and 429 are taken for failures, %d times", n)
		}
		freeze(t, s)
		together(120, func() { status(t, s, "sk-demo-enterprise") })
		resume(t, s)
		await(t, 20*time.Second, "the status when it goes on", http.StatusOK, func() int { return status(t, s, "sk-demo-enterprise") })
		found, ejected := stat(t, s, "outlier_detection.ejections_overflow"), stat(t, s, "outlier_detection.ejections_enforced_total")
		if found == 0 || ejected != 0 {
			t.Errorf("found out %d times, ejected %d times: want some, and none", found, ejected)
		}
	})
}

// TestCallsOfADeadInstanceAreRepeated at another, where external authorization decides: the rate limit
// filter never repeats a call.
func TestCallsOfADeadInstanceAreRepeated(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"istio", "envoy-gateway"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, others := fleet(t, meshGateways[name], nil)
			if err := others[0].Server.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-others[0].Server.Done()
			// The least busy is the dead one, so that at times no other is found: some two in a thousand.
			if n := failed(t, s); n > 2 {
				t.Errorf("%d of 40 requests failed, want two at most", n)
			}
		})
	}
}

// fleet is a mesh's gateway with three instances, the one of the stack and two others. Some of how
// their health is checked may be changed.
func fleet(t *testing.T, m meshGateway, check object) (*devstack.Stack, []*devstack.Stack) {
	t.Helper()
	bootstrap := m.bootstrap(t)
	var cluster object
	for _, c := range list(bootstrap["static_resources"], "clusters") {
		if c := c.(object); c["name"] == "tiergate" || m.clusters[c["name"].(string)] == "tiergate" {
			cluster = c
		}
	}
	// Envoy Gateway leaves the window at a second, and the interval until the first request at a minute.
	merge(cluster, object{"common_lb_config": object{"update_merge_window": "0s"}})
	checks := list(cluster, "health_checks")[0].(object)
	merge(checks, object{"interval": "0.5s", "no_traffic_interval": "0.5s"})
	merge(checks, check)
	others := []*devstack.Stack{up(t, devstack.Options{ServerOnly: true}), up(t, devstack.Options{ServerOnly: true})}
	locality := list(cluster["load_assignment"], "endpoints")[0].(object)
	for _, o := range others {
		host, text, _ := strings.Cut(o.TierGate, ":")
		port, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		locality["lb_endpoints"] = append(list(locality, "lb_endpoints"), object{"endpoint": object{"address": address(host, port)}})
	}
	s := meshUp(t, bootstrap, m.clusters)
	awaitStat(t, s, "membership_healthy", 3)
	return s, others
}

// failed sends 40 requests and counts those that are not answered by 200.
func failed(t *testing.T, s *devstack.Stack) int {
	t.Helper()
	var n atomic.Int64
	together(4, func() {
		for range 10 {
			if status(t, s, "sk-demo-enterprise") != http.StatusOK {
				n.Add(1)
			}
		}
	})
	return int(n.Load())
}

// status sends a small request and returns the status of its answer.
func status(t *testing.T, s *devstack.Stack, key string, headers ...string) int {
	t.Helper()
	return send(t, s, call{chat, key, `{"model": "m"}`, headers}).status
}

// freeze stops a TierGate as a frozen machine would, until resume, or the end of the test.
func freeze(t *testing.T, s *devstack.Stack) {
	t.Helper()
	if err := s.Server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resume(t, s) })
}

func resume(t *testing.T, stacks ...*devstack.Stack) {
	t.Helper()
	for _, s := range stacks {
		if err := s.Server.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
}

// together calls f so many times at once.
func together(n int, f func()) {
	var all sync.WaitGroup
	for range n {
		all.Go(f)
	}
	all.Wait()
}

// stat is a number that Envoy has of the cluster of TierGate; 0 where it has none yet. Istio's name for it
// ends in a semicolon.
func stat(t *testing.T, s *devstack.Stack, name string) int {
	t.Helper()
	filter := url.QueryEscape("^cluster[.]tiergate;?[.]" + name + "$")
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Admin+"/stats?filter="+filter, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, body := exchange(t, r)
	_, value, _ := strings.Cut(strings.TrimSpace(body), ": ")
	n, _ := strconv.Atoi(value)
	return n
}

func awaitStat(t *testing.T, s *devstack.Stack, name string, want int) {
	t.Helper()
	await(t, 20*time.Second, name, want, func() int { return stat(t, s, name) })
}
