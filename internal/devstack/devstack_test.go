package devstack

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestSetAddressesChangesNothingElse: the shipped Envoy files differ from what
// is made of them in the five addresses alone.
func TestSetAddressesChangesNothingElse(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../envoy/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		out, err := setAddresses(content, Addresses{
			API: "127.0.0.1:1", Admin: "127.0.0.1:2", TierGate: "unix:/run/tiergate.sock", Customer: "127.0.0.1:3", Upstream: "127.0.0.1:4",
		})
		if err != nil {
			t.Fatal(err)
		}
		before, after := addressesOf(t, content), addressesOf(t, out)
		want := []any{
			object{"socket_address": object{"address": "127.0.0.1", "port_value": 2}},
			object{"socket_address": object{"address": "127.0.0.1", "port_value": 1}},
			object{"pipe": object{"path": "/run/tiergate.sock"}},
			object{"socket_address": object{"address": "127.0.0.1", "port_value": 3}},
			object{"socket_address": object{"address": "127.0.0.1", "port_value": 4}},
		}
		if !reflect.DeepEqual(after.taken, want) {
			t.Errorf("%s: addresses %v, want %v", file, after.taken, want)
		}
		if !reflect.DeepEqual(before.rest, after.rest) {
			t.Errorf("%s: something else has changed", file)
		}
		compose := []string{"127.0.0.1 9901", "0.0.0.0 10000", "tiergate 9001", "tiergate 9003", "upstream 8080"}
		for i, address := range before.taken {
			socket := address.(object)["socket_address"].(object)
			if have := socket["address"].(string) + " " + yamlText(t, socket["port_value"]); have != compose[i] {
				t.Errorf("%s: the shipped address %d is %s, want compose's %s", file, i, have, compose[i])
			}
		}
	}
}

type object = map[string]any

type split struct {
	taken []any  // the five addresses
	rest  object // the file without them
}

// addressesOf takes the five addresses out of an Envoy file, each by its own
// steps and not by those of setAddresses.
func addressesOf(t *testing.T, content []byte) split {
	t.Helper()
	var file object
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	static := file["static_resources"].(object)
	holders := []object{file["admin"].(object), static["listeners"].([]any)[0].(object)}
	for _, name := range []string{"tiergate", "tiergate_customers", "upstream"} {
		for _, c := range static["clusters"].([]any) {
			cluster := c.(object)
			if cluster["name"] == name {
				endpoints := cluster["load_assignment"].(object)["endpoints"].([]any)[0].(object)["lb_endpoints"].([]any)
				holders = append(holders, endpoints[0].(object)["endpoint"].(object))
			}
		}
	}
	s := split{rest: file}
	for _, h := range holders {
		s.taken = append(s.taken, h["address"])
		delete(h, "address")
	}
	return s
}

func yamlText(t *testing.T, v any) string {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func TestSetAddressesRefuses(t *testing.T) {
	t.Parallel()
	good := Addresses{API: "a:1", Admin: "a:2", TierGate: "a:3", Customer: "a:5", Upstream: "a:4"}
	shipped, err := os.ReadFile("../../envoy/envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content   string
		addresses Addresses
	}{
		"no YAML":         {"a: [", good},
		"empty":           {"", good},
		"another file":    {"admin: {address: {}}", good},
		"no port":         {string(shipped), Addresses{API: "a", Admin: "a:2", TierGate: "a:3", Customer: "a:5", Upstream: "a:4"}},
		"a port in words": {string(shipped), Addresses{API: "a:b", Admin: "a:2", TierGate: "a:3", Customer: "a:5", Upstream: "a:4"}},
	} {
		if out, err := setAddresses([]byte(c.content), c.addresses); err == nil {
			t.Errorf("%s: accepted: %s", name, out)
		}
	}
}

func TestFindEnvoyRefusesAnother(t *testing.T) {
	t.Parallel()
	none := func(string) string { return "/bin/true" }
	_, err := FindEnvoy(t.Context(), none, t.TempDir(), os.Stderr)
	if err == nil || !strings.Contains(err.Error(), "ENVOY=/bin/true cannot be used: want version 1.40") {
		t.Errorf("%v", err)
	}
}

// TestFindEnvoyWithoutPython: who has neither Envoy nor Python is told of both.
func TestFindEnvoyWithoutPython(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := FindEnvoy(t.Context(), func(string) string { return "" }, t.TempDir(), io.Discard)
	const want = "python3 is missing: install it with venv (Debian: apt-get install python3 python3-venv; macOS: brew install python)"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("have %v, want %s", err, want)
	}
}
