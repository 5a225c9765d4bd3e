package examples

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	yamlv3 "go.yaml.in/yaml/v3"
)

const root = ".."

var (
	binary string         // the built tiergate
	envoy  devstack.Envoy // the Envoy to use
)

func TestMain(m *testing.M) {
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "examples: set-up:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(filepath.Dir(binary))
	os.Exit(code)
}

func setUp() error {
	dir, err := os.MkdirTemp("", "tiergate-examples-")
	if err != nil {
		return err
	}
	binary = filepath.Join(dir, "tiergate")
	build := exec.Command("go", "build", "-o", binary, "./cmd/tiergate")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build tiergate: %w: %s", err, out)
	}
	cache, err := filepath.Abs(filepath.Join(root, ".cache"))
	if err != nil {
		return err
	}
	envoy, err = devstack.FindEnvoy(context.Background(), os.Getenv, cache, os.Stderr)
	return err
}

// TestMeshes runs what a mesh makes of the examples in the real Envoy: the six
// headers on every answer, the contract's 429, nothing forged, closed when
// TierGate is away.
func TestMeshes(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		base     string
		patch    func(*testing.T, object)
		clusters map[string]string // the mesh's name → that of devstack
	}{
		"istio": {
			"testdata/istio.yaml",
			func(t *testing.T, b object) { applyEnvoyFilter(t, b, documents(t, "istio/envoy-filter.yaml")[0]) },
			map[string]string{
				"outbound|9001||tiergate.tiergate.svc.cluster.local": "tiergate", "outbound|8080||upstream.default.svc.cluster.local": "upstream",
			},
		},
		"envoy-gateway": {
			"testdata/envoy-gateway.yaml",
			func(t *testing.T, b object) { applyPatchPolicy(t, b, documents(t, "envoy-gateway/edge.yaml")[0]) },
			map[string]string{
				"securitypolicy/default/tiergate/tiergate/tiergate": "tiergate", "httproute/default/ai/rule/0": "upstream",
			},
		},
		"envoy-gateway-ratelimit": {
			"testdata/envoy-gateway.yaml",
			func(t *testing.T, b object) {
				withoutExtAuthz(b)
				applyPatchPolicy(t, b, documents(t, "envoy-gateway/ratelimit.yaml")[0])
			},
			map[string]string{"httproute/default/ai/rule/0": "upstream"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bootstrap := documents(t, c.base)[0]
			c.patch(t, bootstrap)
			s := up(t, func([]byte) []byte {
				content, err := yamlv3.Marshal(bootstrap)
				if err != nil {
					t.Error(err)
				}
				text := string(content)
				for from, to := range c.clusters {
					text = strings.ReplaceAll(text, from, to)
				}
				return []byte(text)
			})
			probe(t, s)
		})
	}
}

// withoutExtAuthz is the gateway without the SecurityPolicy.
func withoutExtAuthz(bootstrap object) {
	resources := bootstrap["static_resources"].(object)
	chain := list(resources, "listeners")[0].(object)["default_filter_chain"]
	config := list(chain, "filters")[0].(object)["typed_config"].(object)
	config["http_filters"] = config["http_filters"].([]any)[1:]
	host := list(config, "route_config", "virtual_hosts")[0]
	delete(list(host, "routes")[0].(object), "typed_per_filter_config")
	resources["clusters"] = resources["clusters"].([]any)[1:]
}

func up(t *testing.T, edit func([]byte) []byte) *devstack.Stack {
	t.Helper()
	o := devstack.Options{Root: root, TierGate: binary, Envoy: envoy, Dir: t.TempDir(), EditEnvoy: edit}
	s, err := devstack.Up(t.Context(), o)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(o.Dir, "envoy.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() {
		if err := s.Down(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// probe asks for what every mesh must answer.
func probe(t *testing.T, s *devstack.Stack) {
	t.Helper()
	freshMinute(t)
	const chat = "/v1/chat/completions"
	for range 10 {
		ask(t, s, chat, "sk-demo-free", http.StatusOK, "10 chat 1")
	}
	limited := ask(t, s, chat, "sk-demo-free", http.StatusTooManyRequests, "10 chat 1")
	if !strings.Contains(limited.body, `"code": "rate_limit_exceeded"`) || limited.header.Get("Retry-After") == "" {
		t.Errorf("the 429: %v %s", limited.header, limited.body)
	}
	missing := ask(t, s, chat, "", http.StatusUnauthorized, "0 chat 1")
	if !strings.Contains(missing.body, `"code": "missing_api_key"`) {
		t.Errorf("the 401: %s", missing.body)
	}
	ask(t, s, "/nowhere", "sk-demo-pro", http.StatusNotFound, "0 default 1")
	ask(t, s, chat, "sk-demo-enterprise", http.StatusOK, "unlimited chat 4")
	ask(t, s, chat, "sk-demo-pro", http.StatusOK, "100 chat 1", "X-Request-Priority: low")

	forged := ask(t, s, chat, "sk-demo-pro", http.StatusOK, "100 chat 3", "X-Mock-Echo: 1", "X-Tiergate-Tier: enterprise", "X-Request-Priority: 4")
	var seen http.Header
	if err := json.Unmarshal([]byte(forged.body), &seen); err != nil {
		t.Fatalf("%v: %s", err, forged.body)
	}
	for name, want := range map[string][]string{
		"X-Tiergate-Tier": {"pro"}, "X-Tiergate-Key-Id": {"key_demo_pro"}, "X-Request-Priority": {"3"}, "Authorization": nil,
	} {
		if have := seen[name]; !reflect.DeepEqual(have, want) {
			t.Errorf("the upstream sees %s: %q, want %q", name, have, want)
		}
	}
	if err := s.Server.Stop(10 * time.Second); err != nil {
		t.Error(err)
	}
	away := ask(t, s, chat, "sk-demo-pro", http.StatusServiceUnavailable, "0 default 1")
	if !strings.Contains(away.body, `"code": "limiter_unavailable"`) {
		t.Errorf("without TierGate: %s", away.body)
	}
}

type answer struct {
	header http.Header
	body   string
}

// ask sends a request and checks the status and the six headers, each there
// once; want is Limit, Resource and Priority.
func ask(t *testing.T, s *devstack.Stack, path, key string, status int, want string, headers ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.API+path, strings.NewReader(`{"model": "m"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != status {
		t.Errorf("%s %v: %s %s, want %d", path, headers, response.Status, body, status)
	}
	h := response.Header
	for _, name := range []string{
		"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Resource", "X-RateLimit-Used", "X-Request-Priority",
	} {
		if n := len(h.Values(name)); n != 1 {
			t.Errorf("%s %s: %s is there %d times", path, response.Status, name, n)
		}
	}
	if have := strings.Join([]string{h.Get("X-RateLimit-Limit"), h.Get("X-RateLimit-Resource"), h.Get("X-Request-Priority")}, " "); have != want {
		t.Errorf("%s %s: limit, resource and priority are %s, want %s", path, response.Status, have, want)
	}
	return answer{h, string(body)}
}

// freshMinute waits until enough of a minute is left for the test.
func freshMinute(t *testing.T) {
	t.Helper()
	end := time.Now().Truncate(time.Minute).Add(time.Minute)
	if time.Until(end) > 10*time.Second {
		return
	}
	select {
	case <-time.After(time.Until(end) + 50*time.Millisecond):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// TestPartsAreTheShippedOnes: what the examples have in common with the shipped
// Envoy files is the same to the letter, so that mending one mends all.
func TestPartsAreTheShippedOnes(t *testing.T) {
	t.Parallel()
	for example, shipped := range map[string]string{
		"istio/envoy-filter.yaml": "envoy/envoy.yaml", "envoy-gateway/edge.yaml": "envoy/envoy.yaml", "envoy-gateway/ratelimit.yaml": "envoy/ratelimit.yaml",
	} {
		ours, theirs := map[string][]any{}, map[string][]any{}
		gather(documents(t, filepath.Join(root, shipped))[0], ours)
		gather(documents(t, example)[0], theirs)
		for _, name := range []string{"mappers", "envoy.filters.http.header_mutation", "envoy.filters.http.local_ratelimit", "envoy.filters.http.ratelimit"} {
			if len(ours[name]) > 0 && !reflect.DeepEqual(ours[name], theirs[name]) {
				t.Errorf("%s: %s differs from %s", example, name, shipped)
			}
		}
		if len(ours["mappers"]) != 1 || len(ours["envoy.filters.http.header_mutation"]) != 2 {
			t.Errorf("%s: the parts are not found: %d mappers, %d mutations", shipped, len(ours["mappers"]), len(ours["envoy.filters.http.header_mutation"]))
		}
	}
}

// gather collects the filters by their names, and the mappers, in the order in
// which they stand. Where an example inserts one filter before another it names
// them in the other order; so lists of filters are sorted by what they say.
func gather(node any, into map[string][]any) {
	switch node := node.(type) {
	case object:
		if name, ok := node["name"].(string); ok && node["typed_config"] != nil {
			into[name] = append(into[name], node["typed_config"])
			slices.SortFunc(into[name], func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
		for name, value := range node {
			if name == "mappers" {
				into[name] = append(into[name], value)
			}
			gather(value, into)
		}
	case []any:
		for _, value := range node {
			gather(value, into)
		}
	}
}

// TestKubernetesConfiguration runs the configuration in the ConfigMap through
// "tiergate config check".
func TestKubernetesConfiguration(t *testing.T) {
	t.Parallel()
	for _, d := range documents(t, "kubernetes/tiergate.yaml") {
		if d["kind"] != "ConfigMap" {
			continue
		}
		dir := t.TempDir()
		for name, content := range map[string]string{"tiergate.yaml": d["data"].(object)["tiergate.yaml"].(string), "keys.yaml": "keys: []\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		check := exec.CommandContext(t.Context(), binary, "config", "check", "--config", filepath.Join(dir, "tiergate.yaml"))
		check.Env = append(os.Environ(), "REDIS_PASSWORD=any")
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	t.Error("there is no ConfigMap")
}
