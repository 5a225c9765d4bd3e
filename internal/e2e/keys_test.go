package e2e

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/tiergate/tiergate/internal/devstack"
)

// admin runs a command of the command line against a stack's admin API, and returns
// what it prints as JSON.
func admin(t *testing.T, s *devstack.Stack, args ...string) map[string]any {
	t.Helper()
	out, err := tryAdmin(t, s, args...)
	if err != nil {
		t.Fatalf("tiergate %q: %v: %s", args, err, out)
	}
	var answer map[string]any
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("tiergate %q: %v: %s", args, err, out)
	}
	return answer
}

func tryAdmin(t *testing.T, s *devstack.Stack, args ...string) (string, error) {
	t.Helper()
	return tiergate(t, append(args, "--json", "--server", "http://"+s.Options.Operator, "--token-file", s.AdminTokenFile())...)
}

// createKey makes a key and returns its secret and its ID.
func createKey(t *testing.T, s *devstack.Stack, flags ...string) (secret, id string) {
	t.Helper()
	answer := admin(t, s, append([]string{"keys", "create"}, flags...)...)
	secret, _ = answer["key"].(string)
	record, _ := answer["record"].(map[string]any)
	id, _ = record["id"].(string)
	if secret == "" || id == "" {
		t.Fatalf("no key: %v", answer)
	}
	return secret, id
}

// fleet starts two TierGates, each behind its own Envoy, on one Redis.
func fleet(t *testing.T, o devstack.Options) (one, two *devstack.Stack) {
	t.Helper()
	o.Store = "redis"
	one = up(t, o)
	o.Dir, o.RedisRunning, o.RedisAddress, o.Chain = "", true, one.Options.RedisAddress, "ratelimit"
	o.Sets = append([]string{"customer.session_secret_file=" + one.SessionSecretFile()}, o.Sets...)
	return one, up(t, o)
}

// inForce measures how long it takes until a key's requests are answered so.
func inForce(t *testing.T, s *devstack.Stack, key string, status int) time.Duration {
	t.Helper()
	began := time.Now()
	var r reply
	if !trueWithin(10*time.Second, func() bool { r = do(t, s, call{key: key}); return r.StatusCode == status }) {
		t.Fatalf("still %s %s, want %d", r.Status, r.body, status)
	}
	return time.Since(began)
}

// TestKeysAreInForceEverywhere: a key that is made at one instance works at the other
// within a second, and is refused there within a second once it is revoked; also when
// Redis was killed and started again in between.
func TestKeysAreInForceEverywhere(t *testing.T) {
	t.Parallel()
	one, two := fleet(t, devstack.Options{Keep: true})
	pass := func(when string) {
		t.Helper()
		secret, id := createKey(t, one, "--tier", "pro")
		works := inForce(t, two, secret, http.StatusOK)
		admin(t, one, "keys", "revoke", id)
		ends := inForce(t, two, secret, http.StatusUnauthorized)
		t.Logf("%s: works at the other instance after %s, is refused after %s", when, works, ends)
		if works > time.Second || ends > time.Second {
			t.Errorf("%s: works after %s, refused after %s: want less than a second", when, works, ends)
		}
		if r := do(t, two, call{key: secret}); errorCode(t, r) != "revoked_api_key" {
			t.Errorf("%s: %s", when, r.body)
		}
	}
	pass("at first")
	kept, _ := createKey(t, one, "--tier", "pro")
	inForce(t, two, kept, http.StatusOK)

	kill(t, one.Redis)
	if out, err := tryAdmin(t, one, "keys", "create", "--tier", "pro"); err == nil {
		t.Errorf("made a key without Redis: %s", out)
	}
	if err := one.StartRedis(t.Context()); err != nil {
		t.Fatal(err)
	}
	pass("after Redis was killed and started again")
	inForce(t, one, kept, http.StatusOK)
	inForce(t, two, kept, http.StatusOK)

	// The instance that was away when the key was revoked learns of it when it starts.
	secret, id := createKey(t, one, "--tier", "pro")
	kill(t, two.Server)
	admin(t, one, "keys", "revoke", id)
	if err := two.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy reaches the new TierGate", func() bool { return do(t, two, call{key: kept}).StatusCode == http.StatusOK })
	if r := do(t, two, call{key: secret}); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("after a start: %s", r.Status)
	}
}

// TestRotation: 500 calls with the old and the new key, across the rotation and at two
// instances: none is refused, and all count as one key's.
func TestRotation(t *testing.T) {
	t.Parallel()
	config, _ := ownConfig(t)
	edit(t, config, "per: minute, max: 100}", "per: minute, max: 100000}")
	one, two := fleet(t, devstack.Options{Config: config})
	old, id := createKey(t, one, "--tier", "pro")
	inForce(t, two, old, http.StatusOK)
	freshMinute(t, 30*time.Second)
	used := func() int {
		return int(admin(t, one, "usage", id, "--limits")["limits"].([]any)[0].(map[string]any)["used"].(float64))
	}
	before := used()

	var fresh atomic.Value
	fresh.Store(old)
	var asked, refused atomic.Int64
	const callers, calls = 10, 50
	rotated := make(chan struct{})
	go func() {
		defer close(rotated)
		if !trueWithin(20*time.Second, func() bool { return asked.Load() >= callers*calls/4 }) {
			return
		}
		answer := admin(t, two, "keys", "rotate", id, "--grace", "1h")
		// The instance that was not asked has a second to learn of it.
		secret, _ := answer["key"].(string)
		inForce(t, one, secret, http.StatusOK)
		asked.Add(1)
		fresh.Store(secret)
	}()
	together(callers, func(i int) {
		for n := range calls {
			if n == calls/2 {
				<-rotated
			}
			key := old
			if n%2 == 0 {
				key, _ = fresh.Load().(string)
			}
			s := []*devstack.Stack{one, two}[(i+n)%2]
			if r := do(t, s, call{key: key}); r.StatusCode != http.StatusOK {
				refused.Add(1)
				t.Errorf("%s %s", r.Status, r.body)
			}
			asked.Add(1)
		}
	})
	if have := used() - before; refused.Load() != 0 || have != int(asked.Load()) {
		t.Errorf("%d asked, %d refused, %d counted", asked.Load(), refused.Load(), have)
	}
	t.Logf("%d calls with both keys at both instances, %d refused, %d counted as one key's", asked.Load(), refused.Load(), used()-before)

	// The end of the grace, at once.
	admin(t, one, "keys", "rotate", id, "--grace", "0s")
	inForce(t, two, old, http.StatusUnauthorized)
	secret, _ := fresh.Load().(string)
	inForce(t, two, secret, http.StatusUnauthorized)
}

// TestRevokedWhileDraining: an instance that ends, and still answers, learns of a key
// that is revoked elsewhere.
func TestRevokedWhileDraining(t *testing.T) {
	t.Parallel()
	one, two := fleet(t, devstack.Options{Sets: []string{"shutdown.delay=5s"}})
	secret, id := createKey(t, one, "--tier", "pro")
	inForce(t, two, secret, http.StatusOK)
	conn := dial(t, two)
	if err := two.Server.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "health says NOT_SERVING", func() bool {
		response, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		return err == nil && response.GetStatus() == healthpb.HealthCheckResponse_NOT_SERVING
	})
	check := func() (*authv3.CheckResponse, error) {
		return authv3.NewAuthorizationClient(conn).Check(t.Context(), checkRequest(secret))
	}
	if response, err := check(); err != nil || response.GetOkResponse() == nil {
		t.Fatalf("before it is revoked: %v, %v", response, err)
	}
	admin(t, one, "keys", "revoke", id)
	eventuallyWithin(t, time.Second, "the instance that ends refuses the key", func() bool {
		response, err := check()
		return err == nil && response.GetDeniedResponse().GetStatus().GetCode() == http.StatusUnauthorized
	})
}
