// Package e2e tests the built program behind the real Envoy with the files we
// ship, a mock AI upstream and a real redis-server.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
)

// root is the project's directory.
const root = "../.."

var (
	binary string         // the built tiergate
	envoy  devstack.Envoy // the Envoy to use
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: set-up:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(filepath.Dir(binary))
	os.Exit(code)
}

func setUp() error {
	// Else the race detector keeps each program for another second at its end.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		return err
	}
	if err := traceEnvironment(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tiergate-e2e-")
	if err != nil {
		return err
	}
	binary = filepath.Join(dir, "tiergate")
	build := []string{"build", "-race", "-o", binary, root + "/cmd/tiergate"}
	if *wholeSuite || flag.Lookup("test.bench").Value.String() != "" {
		build = slices.Delete(build, 1, 2) // what is measured is what is shipped
	}
	if out, err := exec.Command("go", build...).CombinedOutput(); err != nil {
		return fmt.Errorf("build tiergate: %w: %s", err, out)
	}
	cache, err := filepath.Abs(filepath.Join(root, ".cache"))
	if err != nil {
		return err
	}
	envoy, err = devstack.FindEnvoy(context.Background(), os.Getenv, cache, os.Stderr)
	return err
}

// up starts a stack that ends with the test. If the test fails, the logs are
// shown. Envoy and TierGate wait longer for an answer than as shipped, so that a
// busy machine is not taken for a fault; TestDegraded has the shipped times.
func up(t *testing.T, o devstack.Options) *devstack.Stack {
	t.Helper()
	o.Sets = append([]string{"store.redis.timeout=4s"}, o.Sets...)
	change := o.EditEnvoy
	o.EditEnvoy = func(file []byte) []byte {
		file = bytes.ReplaceAll(file, []byte("timeout: 0.25s"), []byte("timeout: 5s"))
		file = bytes.ReplaceAll(file, []byte("max_interval: 0.25s"), []byte("max_interval: 5s"))
		if change != nil {
			file = change(file)
		}
		return file
	}
	return upAsShipped(t, o)
}

// upAsShipped is up with the shipped times.
func upAsShipped(t *testing.T, o devstack.Options) *devstack.Stack {
	t.Helper()
	o.Root, o.TierGate, o.Envoy = root, binary, envoy
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := devstack.Up(t.Context(), o)
	if err != nil {
		showLogs(t, o.Dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Down(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			showLogs(t, o.Dir)
		}
	})
	return s
}

func showLogs(t *testing.T, dir string) {
	t.Helper()
	logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, log := range logs {
		if content, err := os.ReadFile(log); err == nil {
			t.Logf("%s:\n%s", filepath.Base(log), content[max(0, len(content)-4000):])
		}
	}
}

// A reply is a response with its body.
type reply struct {
	*http.Response

	body string
}

// A call is a request through Envoy. Empty fields have the obvious values.
type call struct {
	method, path, key, body string
	header                  http.Header
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true}}

// do sends a request through a stack's Envoy.
func do(t *testing.T, s *devstack.Stack, c call) reply {
	t.Helper()
	if c.path == "" {
		c.path = "/v1/chat/completions"
	}
	if c.method == "" {
		c.method, c.body = http.MethodPost, cmp.Or(c.body, `{"model": "mock-1", "messages": []}`)
	}
	r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+s.API+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for name, values := range c.header {
		r.Header[http.CanonicalHeaderKey(name)] = values
	}
	if c.key != "" {
		r.Header.Set("Authorization", "Bearer "+c.key)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{response, string(body)}
}

// freshMinute returns when at least that much of the current minute is left, so
// that a test's requests fall into one window.
func freshMinute(t *testing.T, left time.Duration) {
	t.Helper()
	if rest := time.Until(time.Now().Truncate(time.Minute).Add(time.Minute)); rest < left {
		waitUntil(t, time.Now().Add(rest+50*time.Millisecond))
	}
}

// waitUntil waits for the wall clock, which the real programs go by.
func waitUntil(t *testing.T, moment time.Time) {
	t.Helper()
	select {
	case <-time.After(time.Until(moment)):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// alone runs a test that loads the machine on both chains, one after the other
// and before all tests that run side by side.
func alone(t *testing.T, test func(t *testing.T, chain string)) {
	t.Helper()
	for _, chain := range []string{"ext_authz", "ratelimit"} {
		t.Run(chain, func(t *testing.T) { test(t, chain) })
	}
}

// both runs a test on both chains, side by side.
func both(t *testing.T, test func(t *testing.T, chain string)) {
	t.Helper()
	t.Parallel()
	for _, chain := range []string{"ext_authz", "ratelimit"} {
		t.Run(chain, func(t *testing.T) {
			t.Parallel()
			test(t, chain)
		})
	}
}
