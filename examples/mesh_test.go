package examples

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tiergate/tiergate/internal/devstack"
	yamlv3 "go.yaml.in/yaml/v3"
)

const (
	root = ".."
	chat = "/v1/chat/completions"
)

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

// A meshGateway is what a mesh makes of the examples, in one file, and its names of clusters with those of
// devstack.
type meshGateway struct {
	bootstrap func(*testing.T) object
	clusters  map[string]string
}

// meshGateways are the ways that the examples show.
var meshGateways = map[string]meshGateway{
	"istio": {
		func(t *testing.T) object {
			b := fromIstio(t)
			applyEnvoyFilter(t, b, documents(t, "istio/envoy-filter.yaml")[0])
			return b
		},
		map[string]string{"outbound|9001||tiergate.tiergate.svc.cluster.local": "tiergate", "outbound|8080||upstream.default.svc.cluster.local": "upstream"},
	},
	"envoy-gateway": {
		func(t *testing.T) object {
			b := fromEnvoyGateway(t)
			applyPatchPolicy(t, b, documents(t, "envoy-gateway/edge.yaml")[0])
			withoutCluster(b, "tiergate") // to the same address as Envoy Gateway's own, which stands for both
			return b
		},
		map[string]string{"securitypolicy/default/tiergate/extauth/0": "tiergate", "httproute/default/ai/rule/0": "upstream"},
	},
	"envoy-gateway-ratelimit": {
		func(t *testing.T) object {
			b := fromEnvoyGateway(t)
			withoutExtAuthz(b)
			applyPatchPolicy(t, b, documents(t, "envoy-gateway/ratelimit.yaml")[0])
			return b
		},
		map[string]string{"httproute/default/ai/rule/0": "upstream"},
	},
}

// eachMesh runs a test for each of them.
func eachMesh(t *testing.T, test func(*testing.T, meshGateway)) {
	t.Parallel()
	for name, m := range meshGateways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, m)
		})
	}
}

// TestMeshes runs what a mesh makes of the examples in the real Envoy: the six
// headers on every answer, the contract's 429, tokens settled, nothing forged, closed
// when TierGate is away.
func TestMeshes(t *testing.T) {
	eachMesh(t, func(t *testing.T, m meshGateway) { probe(t, meshUp(t, m.bootstrap(t), m.clusters)) })
}

// TestMeshesWaitForSlowReaders, before they close a connection, for as long as the shipped file does:
// the buffers are as large.
func TestMeshesWaitForSlowReaders(t *testing.T) {
	eachMesh(t, func(t *testing.T, m meshGateway) {
		shipped := managers(documents(t, filepath.Join(root, "envoy/envoy.yaml"))[0])
		if len(shipped) != 1 || shipped[0]["delayed_close_timeout"] == nil {
			t.Fatalf("the shipped file has no delayed_close_timeout in %d connection managers", len(shipped))
		}
		ours := managers(m.bootstrap(t))
		if len(ours) == 0 {
			t.Error("there is no connection manager")
		}
		for _, manager := range ours {
			if have, want := manager["delayed_close_timeout"], shipped[0]["delayed_close_timeout"]; have != want {
				t.Errorf("%v: delayed_close_timeout is %v, and shipped is %v", manager["stat_prefix"], have, want)
			}
		}
	})
}

// managers are the connection managers of an Envoy file.
func managers(file object) []object {
	filters := map[string][]any{}
	gather(file, filters)
	var found []object
	for _, f := range filters["envoy.filters.network.http_connection_manager"] {
		found = append(found, f.(object)["typed_config"].(object))
	}
	return found
}

// meshUp starts a stack with a mesh's gateway in it.
func meshUp(t *testing.T, bootstrap object, clusters map[string]string) *devstack.Stack {
	t.Helper()
	content, err := yamlv3.Marshal(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for from, to := range clusters {
		text = strings.ReplaceAll(text, from, to)
	}
	return up(t, devstack.Options{EditEnvoy: func([]byte) []byte { return []byte(text) }})
}

// withoutExtAuthz is the gateway without the SecurityPolicy.
func withoutExtAuthz(bootstrap object) {
	chain := list(bootstrap["static_resources"], "listeners")[0].(object)["default_filter_chain"]
	config := list(chain, "filters")[0].(object)["typed_config"].(object)
	config["http_filters"] = without(list(config, "http_filters"), "envoy.filters.http.ext_authz/")
	host := list(config, "route_config", "virtual_hosts")[0]
	delete(list(host, "routes")[0].(object), "typed_per_filter_config")
	withoutCluster(bootstrap, "securitypolicy/")
}

func withoutCluster(bootstrap object, prefix string) {
	resources := bootstrap["static_resources"].(object)
	resources["clusters"] = without(list(resources, "clusters"), prefix)
}

// without is a list without the one whose name begins so.
func without(all []any, prefix string) []any {
	return slices.DeleteFunc(all, func(one any) bool { return strings.HasPrefix(one.(object)["name"].(string), prefix) })
}

func up(t *testing.T, o devstack.Options) *devstack.Stack {
	t.Helper()
	o.Root, o.TierGate, o.Envoy, o.Dir = root, binary, envoy, t.TempDir()
	o.Sets = []string{"headers.per_metric=true"} // tells how many tokens remain
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
	probeTokens(t, s, chat)
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

	ask(t, s, chat, "sk-demo-pro", http.StatusBadGateway, "100 chat 3", "X-Mock-Break: length")

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

// probeTokens sees that what is declared is refused, or reserved and settled, whatever
// shape the answer has; and that what is not read reserves the most.
func probeTokens(t *testing.T, s *devstack.Stack, path string) {
	t.Helper()
	const declares = `{"model": "m", "max_tokens": 1000}`                // 34 bytes: a prompt of 9 tokens
	const streams = `{"model": "m", "max_tokens": 1000, "stream": true}` // 50 bytes: 13 tokens
	padded := func(n int) string {
		return `{"model": "m", "max_tokens": 1000, "padding": "` + strings.Repeat("x", n) + `"}`
	}
	for _, c := range []struct {
		name, body, usage, size string
		reserved, want          int
	}{
		{"JSON", declares, "120,340", "100", 9 + 1000, 460},
		{"a stream", streams, "120,340", "100", 13 + 1000, 460},
		{"longer than Envoy Gateway holds back by itself", padded(900_000), "120,340", "900000", 128_000 + 1000, 460},
		{"longer than is read", padded(2_000_000), "120,340", "2000000", 128_000 + 16_000, 460},
		{"no usage", declares, "none", "100", 9 + 1000, 9 + 1000},
	} {
		before := tokensUsed(t, s)
		a := send(t, s, call{path, "sk-demo-pro", c.body, []string{"X-Mock-Usage: " + c.usage, "X-Mock-Bytes: " + c.size, "Accept-Encoding: gzip"}})
		if a.status != http.StatusOK {
			t.Errorf("%s: %d %s", c.name, a.status, a.body)
		}
		if have := a.tokensUsed(t) - before; have != c.reserved {
			t.Errorf("%s: %d tokens reserved, want %d", c.name, have, c.reserved)
		}
		awaitTokens(t, s, c.name, before+c.want)
	}
	a := send(t, s, call{path: path, key: "sk-demo-pro", body: `{"max_tokens": 1000001}`})
	a.check(t, http.StatusRequestEntityTooLarge, "100 chat 3")
	if !strings.Contains(a.body, `"code": "request_too_large"`) || a.header.Get("X-Should-Retry") != "false" {
		t.Errorf("the 413: %v %s", a.header, a.body)
	}
}

// awaitTokens waits until so many tokens are used.
func awaitTokens(t *testing.T, s *devstack.Stack, name string, want int) {
	t.Helper()
	await(t, 5*time.Second, name+": tokens used", want, func() int { return tokensUsed(t, s) })
}

// await waits until there are so many of something.
func await(t *testing.T, within time.Duration, what string, want int, count func() int) {
	t.Helper()
	end := time.After(within)
	tick := time.NewTicker(100 * time.Millisecond) // a look may be one of 100 requests a minute
	defer tick.Stop()
	for {
		have := count()
		if have == want {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: %d in the end, want %d", what, have, want)
		}
	}
}

// tokensUsed returns how many tokens the pro key has used in this minute, by a
// request that takes none.
func tokensUsed(t *testing.T, s *devstack.Stack) int {
	t.Helper()
	a := send(t, s, call{path: "/v1/models", key: "sk-demo-pro"})
	if a.status != http.StatusOK {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	return a.tokensUsed(t)
}

// A call is a request to send; without a body it is a GET.
type call struct {
	path, key, body string
	headers         []string
}

type answer struct {
	call   call
	status int
	header http.Header
	body   string
}

// tokensUsed returns how many tokens of the minute the answer says are used.
func (a answer) tokensUsed(t *testing.T) int {
	t.Helper()
	limit, err := strconv.Atoi(a.header.Get("X-RateLimit-Limit-Tokens"))
	remaining, err2 := strconv.Atoi(a.header.Get("X-RateLimit-Remaining-Tokens"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatalf("%d %v: %v", a.status, err, a.header)
	}
	return limit - remaining
}

// ask sends a small request and checks the answer.
func ask(t *testing.T, s *devstack.Stack, path, key string, status int, want string, headers ...string) answer {
	t.Helper()
	a := send(t, s, call{path, key, `{"model": "m"}`, headers})
	a.check(t, status, want)
	return a
}

func send(t *testing.T, s *devstack.Stack, c call) answer {
	t.Helper()
	method := http.MethodPost
	if c.body == "" {
		method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.API+c.path, strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if c.key != "" {
		r.Header.Set("Authorization", "Bearer "+c.key)
	}
	for _, h := range c.headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	status, header, body := exchange(t, r)
	return answer{c, status, header, body}
}

// exchange sends a request and reads the whole answer.
func exchange(t *testing.T, r *http.Request) (status int, header http.Header, body string) {
	t.Helper()
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(content)
}

// check checks the status and the six headers, each there once; want is Limit,
// Resource and Priority.
func (a answer) check(t *testing.T, status int, want string) {
	t.Helper()
	if a.status != status {
		t.Errorf("%s %v: %d %s, want %d", a.call.path, a.call.headers, a.status, a.body, status)
	}
	for _, name := range []string{
		"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Resource", "X-RateLimit-Used", "X-Request-Priority",
	} {
		if n := len(a.header.Values(name)); n != 1 {
			t.Errorf("%s %d: %s is there %d times", a.call.path, a.status, name, n)
		}
	}
	have := strings.Join([]string{a.header.Get("X-RateLimit-Limit"), a.header.Get("X-RateLimit-Resource"), a.header.Get("X-Request-Priority")}, " ")
	if have != want {
		t.Errorf("%s %d: limit, resource and priority are %s, want %s", a.call.path, a.status, have, want)
	}
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
	edge, ratelimit := lastPatch(t, "envoy-gateway/edge.yaml"), lastPatch(t, "envoy-gateway/ratelimit.yaml")
	if edge["name"] != "tiergate" || !reflect.DeepEqual(edge, ratelimit) {
		t.Errorf("the two ways in Envoy Gateway add another cluster of TierGate: %v and %v", edge, ratelimit)
	}
	for _, file := range []string{"envoy.yaml", "ratelimit.yaml", "ai-protocol.yaml"} {
		for _, name := range []string{"tiergate", "tiergate_customers"} {
			if have, want := shippedCluster(t, file, name), shippedCluster(t, "envoy.yaml", name); !reflect.DeepEqual(have, want) {
				t.Errorf("envoy/%s: the cluster %s is %v, and in envoy.yaml %v", file, name, have, want)
			}
		}
	}
	own := edge["operation"].(object)["value"].(object)
	delete(own, "load_assignment")
	if want := shippedCluster(t, "envoy.yaml", "tiergate"); !reflect.DeepEqual(own, want) {
		t.Errorf("Envoy Gateway's cluster of TierGate is %v, and shipped is %v", own, want)
	}
	settings := shippedCluster(t, "envoy.yaml", "tiergate")
	for _, istiods := range []string{"name", "type", "circuit_breakers"} {
		delete(settings, istiods)
	}
	filters := map[string][]any{}
	gather(documents(t, filepath.Join(root, "envoy/envoy.yaml"))[0], filters)
	retries := filters["envoy.filters.http.ext_authz"][0].(object)["typed_config"].(object)["grpc_service"].(object)["retry_policy"]
	for what, c := range map[string]struct {
		example string
		part    any
	}{
		"Istio's cluster of TierGate":      {"istio/envoy-filter.yaml", settings},
		"how Istio repeats a call":         {"istio/envoy-filter.yaml", retries},
		"how Envoy Gateway repeats a call": {"envoy-gateway/edge.yaml", retries},
	} {
		if c.part == nil || !holds(documents(t, c.example)[0], c.part) {
			t.Errorf("%s is not as shipped, %v", what, c.part)
		}
	}
	for example, shipped := range map[string]string{
		"istio/envoy-filter.yaml": "envoy/envoy.yaml", "envoy-gateway/edge.yaml": "envoy/envoy.yaml", "envoy-gateway/ratelimit.yaml": "envoy/ratelimit.yaml",
	} {
		ours, theirs := map[string][]any{}, map[string][]any{}
		gather(documents(t, filepath.Join(root, shipped))[0], ours)
		gather(documents(t, example)[0], theirs)
		for name, count := range map[string]int{
			"mappers": 1, "envoy.filters.http.header_mutation": 2, "envoy.filters.http.local_ratelimit": 1, "envoy.filters.http.set_metadata": 1,
			"tiergate.read_request": 1, "envoy.filters.http.json_to_metadata": 2, // one in what reads the request
			"envoy.filters.http.header_to_metadata": 1, "envoy.filters.http.sse_to_metadata": 1, "envoy.access_loggers.http_grpc": 1, "envoy.filters.http.ratelimit": len(theirs["envoy.filters.http.ratelimit"]),
		} {
			if len(ours[name]) != count {
				t.Errorf("%s: %s is there %d times, want %d", shipped, name, len(ours[name]), count)
			}
			if !reflect.DeepEqual(ours[name], theirs[name]) {
				t.Errorf("%s: %s differs from %s", example, name, shipped)
			}
		}
	}
}

// lastPatch is the last patch of a policy, which adds the cluster of TierGate.
func lastPatch(t *testing.T, file string) object {
	t.Helper()
	patches := list(documents(t, file)[0]["spec"], "jsonPatches")
	return patches[len(patches)-1].(object)
}

// shippedCluster is one of a shipped Envoy file, but for its address.
func shippedCluster(t *testing.T, file, name string) object {
	t.Helper()
	for _, c := range list(documents(t, filepath.Join(root, "envoy", file))[0], "static_resources", "clusters") {
		if c := c.(object); c["name"] == name {
			delete(c, "load_assignment")
			return c
		}
	}
	t.Fatalf("envoy/%s has no cluster %s", file, name)
	return nil
}

// holds says whether something is, or has somewhere in it, a part.
func holds(node, part any) bool {
	if reflect.DeepEqual(node, part) {
		return true
	}
	switch node := node.(type) {
	case object:
		return slices.ContainsFunc(slices.Collect(maps.Values(node)), func(inner any) bool { return holds(inner, part) })
	case []any:
		return slices.ContainsFunc(node, func(inner any) bool { return holds(inner, part) })
	}
	return false
}

// gather collects filters and access loggers by their names, and the mappers, in the
// order in which they stand. Where an example inserts one filter before another it
// names them in the other order; so lists of filters are sorted by what they say. The
// cluster of an access logger is left out, since each mesh has a name of its own for it.
func gather(node any, into map[string][]any) {
	switch node := node.(type) {
	case object:
		if common, ok := node["common_config"].(object); ok {
			delete(common, "grpc_service")
		}
		for name, value := range node {
			if name == "mappers" {
				into[name] = append(into[name], value)
			}
			gather(value, into)
		}
		if name, ok := node["name"].(string); ok && node["typed_config"] != nil {
			into[name] = append(into[name], node)
			slices.SortFunc(into[name], func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		}
	case []any:
		for _, value := range node {
			gather(value, into)
		}
	}
}

// TestKubernetesConfiguration runs the configuration in the ConfigMap through
// "tiergate config check". Its tiers and resources are the shipped ones, so that what the
// guides say of them holds.
func TestKubernetesConfiguration(t *testing.T) {
	t.Parallel()
	var fleet []any
	for _, d := range documents(t, "kubernetes/tiergate.yaml") {
		if d["kind"] == "Deployment" {
			fleet = append(fleet, d["spec"].(object)["replicas"])
		}
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
		check.Env = append(os.Environ(), "REDIS_PASSWORD=any", "SESSION_SECRET=a-secret-of-at-least-thirty-two-bytes", "TIERGATE_ADMIN_TOKEN=a-token-of-sixteen-bytes")
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		shipped, example := documents(t, filepath.Join(root, "config", "tiergate.yaml"))[0], documents(t, filepath.Join(dir, "tiergate.yaml"))[0]
		for _, name := range []string{"tiers", "resources"} {
			if !reflect.DeepEqual(shipped[name], example[name]) {
				t.Errorf("%s: %v, and shipped are %v", name, example[name], shipped[name])
			}
		}
		fleet = append(fleet, example["store"].(object)["redis"].(object)["assumed_instances"])
	}
	if len(fleet) != 2 || fleet[0] != fleet[1] {
		t.Errorf("%v: want the configuration to assume as many instances as the deployment has", fleet)
	}
}

// TestHeadless: the cluster that the patches for Envoy Gateway add finds each instance, by the
// name of a Service that is no address of its own, and at the port of the pods.
func TestHeadless(t *testing.T) {
	t.Parallel()
	var names, ports []any
	for _, d := range documents(t, "kubernetes/tiergate.yaml") {
		spec, _ := d["spec"].(object)
		if d["kind"] == "Service" && spec["clusterIP"] == "None" {
			metadata := d["metadata"].(object)
			names = append(names, fmt.Sprintf("%s.%s.svc.cluster.local", metadata["name"], metadata["namespace"]))
		}
		if d["kind"] == "Deployment" {
			for _, p := range list(list(spec["template"].(object)["spec"], "containers")[0], "ports") {
				ports = append(ports, p.(object)["containerPort"])
			}
		}
	}
	for _, file := range []string{"envoy-gateway/edge.yaml", "envoy-gateway/ratelimit.yaml"} {
		patch := lastPatch(t, file)
		cluster := patch["operation"].(object)["value"].(object)
		endpoint := list(list(cluster["load_assignment"], "endpoints")[0], "lb_endpoints")[0].(object)["endpoint"].(object)
		at := endpoint["address"].(object)["socket_address"].(object)
		if patch["name"] != "tiergate" || cluster["type"] != "STRICT_DNS" || !slices.Contains(names, at["address"]) || !slices.Contains(ports, at["port_value"]) {
			t.Errorf("%s: the cluster %v of type %v has the address %v, port %v: want tiergate, STRICT_DNS, one of %v, one of %v",
				file, patch["name"], cluster["type"], at["address"], at["port_value"], names, ports)
		}
	}
}
