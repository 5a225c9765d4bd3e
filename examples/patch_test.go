package examples

import (
	"encoding/json"
	"fmt"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/ohler55/ojg/jp"
)

// An envoyPatch is one of an EnvoyFilter, as far as the examples use them.
type envoyPatch struct {
	ApplyTo string `json:"applyTo"`
	Match   struct {
		Listener struct {
			FilterChain struct {
				Filter struct {
					SubFilter struct {
						Name string `json:"name"`
					} `json:"subFilter"`
				} `json:"filter"`
			} `json:"filterChain"`
		} `json:"listener"`
	} `json:"match"`
	Patch struct {
		Operation string `json:"operation"`
		Value     object `json:"value"`
	} `json:"patch"`
}

// applyEnvoyFilter patches a configuration as istiod does: the connection
// manager, or its HTTP filters.
func applyEnvoyFilter(t *testing.T, bootstrap, filter object) {
	t.Helper()
	var spec struct {
		Patches []envoyPatch `json:"configPatches"`
	}
	convert(t, filter["spec"], &spec)
	chain := list(list(bootstrap, "static_resources", "listeners")[0], "filter_chains")[0]
	manager := list(chain, "filters")[0].(object)
	config := manager["typed_config"].(object)
	for _, p := range spec.Patches {
		sub := p.Match.Listener.FilterChain.Filter.SubFilter.Name
		filters := config["http_filters"].([]any)
		switch {
		case p.ApplyTo == "NETWORK_FILTER" && p.Patch.Operation == "MERGE":
			merge(manager, p.Patch.Value)
		case p.ApplyTo == "HTTP_FILTER" && p.Patch.Operation == "INSERT_FIRST":
			config["http_filters"] = append([]any{p.Patch.Value}, filters...)
		case p.ApplyTo == "HTTP_FILTER" && p.Patch.Operation == "MERGE":
			merged := 0
			for _, f := range filters {
				if f.(object)["name"] == sub {
					merge(f.(object), p.Patch.Value)
					merged++
				}
			}
			if merged != 1 {
				t.Fatalf("%d filters are named %q", merged, sub)
			}
		default:
			t.Fatalf("the test does not know how %s %s is applied", p.Patch.Operation, p.ApplyTo)
		}
	}
}

// merge does what merging protobufs does: messages field by field, lists one
// after the other.
func merge(into, from object) {
	for name, value := range from {
		switch value := value.(type) {
		case object:
			if inner, ok := into[name].(object); ok {
				merge(inner, value)
				continue
			}
		case []any:
			if inner, ok := into[name].([]any); ok {
				into[name] = append(inner, value...)
				continue
			}
		}
		into[name] = value
	}
}

// A jsonPatch is one of an EnvoyPatchPolicy.
type jsonPatch struct {
	Type      string `json:"type"`
	Name      string `json:"name"`
	Operation struct {
		Op       string  `json:"op"`
		JSONPath string  `json:"jsonPath,omitempty"`
		Path     string  `json:"path"`
		Value    any     `json:"value"`
		From     *string `json:"from,omitempty"`
	} `json:"operation"`
}

// applyPatchPolicy patches a configuration as Envoy Gateway does: each resource
// by its type and name; an "add" without a path adds a resource; a JSONPath finds
// places to which the path is appended.
func applyPatchPolicy(t *testing.T, bootstrap, policy object) {
	t.Helper()
	var spec struct {
		Patches []jsonPatch `json:"jsonPatches"`
	}
	convert(t, policy["spec"], &spec)
	resources := bootstrap["static_resources"].(object)
	for _, p := range spec.Patches {
		field := map[string]string{
			"type.googleapis.com/envoy.config.listener.v3.Listener": "listeners",
			"type.googleapis.com/envoy.config.cluster.v3.Cluster":   "clusters",
		}[p.Type]
		all := resources[field].([]any)
		o := p.Operation
		if o.Op == "add" && o.Path == "" && o.JSONPath == "" {
			resources[field] = append(all, o.Value)
			continue
		}
		patched := 0
		for i, r := range all {
			if r.(object)["name"] == p.Name {
				all[i] = patchResource(t, r, p)
				patched++
			}
		}
		if patched != 1 {
			t.Fatalf("%d %s are named %s", patched, field, p.Name)
		}
	}
}

func patchResource(t *testing.T, resource any, p jsonPatch) any {
	t.Helper()
	paths := []string{p.Operation.Path}
	if p.Operation.JSONPath != "" {
		expression, err := jp.ParseString(p.Operation.JSONPath)
		if err != nil {
			t.Fatal(err)
		}
		paths = nil
		for _, place := range expression.Locate(resource, 0) {
			paths = append(paths, pointer(t, place)+"/"+p.Operation.Path)
		}
		if len(paths) != 1 {
			t.Fatalf("%s finds %d places, want 1", p.Operation.JSONPath, len(paths))
		}
	}
	operations := []object{{"op": p.Operation.Op, "path": paths[0], "value": p.Operation.Value}}
	encoded, err := json.Marshal(operations)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(encoded)
	if err != nil {
		t.Fatal(err)
	}
	document, err := json.Marshal(resource)
	if err != nil {
		t.Fatal(err)
	}
	if document, err = patch.Apply(document); err != nil {
		t.Fatalf("%s: %v", paths[0], err)
	}
	var result any
	if err := json.Unmarshal(document, &result); err != nil {
		t.Fatal(err)
	}
	return result
}

// pointer turns a located place into a JSON pointer (RFC 6901).
func pointer(t *testing.T, place jp.Expr) string {
	t.Helper()
	text := ""
	for _, step := range place {
		switch step := step.(type) {
		case jp.Root:
		case jp.Child:
			text += "/" + string(step)
		case jp.Nth:
			text += fmt.Sprintf("/%d", int(step))
		default:
			t.Fatalf("a step of kind %T", step)
		}
	}
	return text
}

// list follows names of mappings to a list.
func list(node any, names ...string) []any {
	for _, name := range names {
		node = node.(object)[name]
	}
	return node.([]any)
}

func convert(t *testing.T, from, into any) {
	t.Helper()
	content, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatal(err)
	}
}
