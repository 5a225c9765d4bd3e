package examples

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/ohler55/ojg/jp"
)

// An envoyPatch is one of an EnvoyFilter, as far as the examples use them: what
// matches listeners or virtual hosts matches all of them.
type envoyPatch struct {
	ApplyTo string `json:"applyTo"`
	Match   struct {
		Context  string `json:"context"`
		Listener struct {
			FilterChain struct {
				Filter struct {
					Name      string `json:"name"`
					SubFilter struct {
						Name string `json:"name"`
					} `json:"subFilter"`
				} `json:"filter"`
			} `json:"filterChain"`
		} `json:"listener"`
		Cluster struct {
			Service    string `json:"service"`
			PortNumber int    `json:"portNumber"`
		} `json:"cluster"`
	} `json:"match"`
	Patch struct {
		Operation string `json:"operation"`
		Value     object `json:"value"`
	} `json:"patch"`
}

// applyEnvoyFilter patches a configuration as istiod does: listeners, clusters,
// virtual hosts, the connection manager, or its HTTP filters.
func applyEnvoyFilter(t *testing.T, bootstrap, filter object) {
	t.Helper()
	var patches []envoyPatch
	convert(t, filter["spec"].(object)["configPatches"], &patches)
	resources := bootstrap["static_resources"].(object)
	listeners := list(resources, "listeners")
	managers := list(list(listeners[0], "filter_chains")[0], "filters")
	config := managers[0].(object)["typed_config"].(object)
	targets := map[string][]any{
		"LISTENER": listeners, "CLUSTER": list(resources, "clusters"), "VIRTUAL_HOST": list(config, "route_config", "virtual_hosts"), "NETWORK_FILTER": managers,
	}
	for _, p := range patches {
		switch {
		case p.ApplyTo == "HTTP_FILTER":
			config["http_filters"] = patchFilters(t, list(config, "http_filters"), p)
		case targets[p.ApplyTo] != nil && p.Patch.Operation == "MERGE":
			for _, target := range targets[p.ApplyTo] {
				if target := target.(object); p.matches(target["name"]) {
					merge(target, p.Patch.Value)
				}
			}
		default:
			t.Fatalf("the test does not know how %s %s is applied", p.Patch.Operation, p.ApplyTo)
		}
	}
}

// matches says whether a patch is for what has this name: for all, or for one cluster.
func (p envoyPatch) matches(name any) bool {
	c := p.Match.Cluster
	return c.Service == "" || name == fmt.Sprintf("outbound|%d||%s", c.PortNumber, c.Service)
}

func patchFilters(t *testing.T, filters []any, p envoyPatch) []any {
	t.Helper()
	if p.Patch.Operation == "INSERT_FIRST" {
		return append([]any{p.Patch.Value}, filters...)
	}
	name := p.Match.Listener.FilterChain.Filter.SubFilter.Name
	named := func(f any) bool { return f.(object)["name"] == name }
	i := slices.IndexFunc(filters, named)
	if i < 0 || slices.ContainsFunc(filters[i+1:], named) {
		t.Fatalf("not one filter is named %q", name)
	}
	switch p.Patch.Operation {
	case "INSERT_BEFORE":
		return slices.Insert(filters, i, any(p.Patch.Value))
	case "MERGE":
		merge(filters[i].(object), p.Patch.Value)
		return filters
	default:
		t.Fatalf("the test does not know how %s HTTP_FILTER is applied", p.Patch.Operation)
		return nil
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

// fromIstio is the configuration that istiod makes of authorization-policy.yaml, mesh-config.yaml, a
// gateway and a route, in one file, without what Istio's own Envoy alone has: two filters
// and the mesh's TLS.
func fromIstio(t *testing.T) object {
	t.Helper()
	generated := documents(t, "testdata/istio/generated.yaml")[0]
	listener := list(generated, "listeners")[0].(object)
	listener["address"] = address("0.0.0.0", 10000)
	config := list(list(listener, "filter_chains")[0], "filters")[0].(object)["typed_config"].(object)
	config["http_filters"] = without(list(config, "http_filters"), "istio.")
	delete(config, "rds")
	config["route_config"] = list(generated, "routes")[0]
	clusters := without(list(generated, "clusters"), "BlackHoleCluster")
	for _, c := range clusters {
		delete(c.(object), "transport_socket_matches")
		delete(c.(object), "filters")
	}
	return static(listener, clusters)
}

// fromEnvoyGateway is the configuration that Envoy Gateway makes of gateway.yaml and
// security-policy.yaml, in one file and with the names of fields that the patches have: it sends
// the parts of it one by one.
func fromEnvoyGateway(t *testing.T) object {
	t.Helper()
	parts := map[string][]any{}
	for _, dump := range list(documents(t, "testdata/envoy-gateway/translated.yaml")[0]["xds"].(object)["default/ai"], "configs") {
		for field, of := range dump.(object) {
			if all, ok := of.([]any); ok {
				parts[field] = protoNames(all).([]any)
			}
		}
	}
	var listener object
	for _, l := range parts["dynamicListeners"] {
		l := l.(object)["active_state"].(object)["listener"].(object)
		delete(l, "@type")
		if l["name"] != "default/ai/http" { // it tells whether Envoy is ready
			continue
		}
		config := list(l["default_filter_chain"], "filters")[0].(object)["typed_config"].(object)
		delete(config, "rds")
		config["route_config"] = parts["dynamicRouteConfigs"][0].(object)["route_config"]
		delete(config["route_config"].(object), "@type")
		l["address"] = address("0.0.0.0", 10000)
		listener = l
	}
	endpoints := map[any]object{}
	for _, e := range parts["dynamicEndpointConfigs"] {
		e := e.(object)["endpoint_config"].(object)
		delete(e, "@type")
		endpoints[e["cluster_name"]] = e
	}
	var clusters []any
	for _, c := range parts["dynamicActiveClusters"] {
		c := c.(object)["cluster"].(object)
		delete(c, "@type")
		delete(c, "eds_cluster_config")
		c["type"] = "STRICT_DNS"
		c["load_assignment"] = endpoints[c["name"]]
		clusters = append(clusters, c)
	}
	return static(listener, clusters)
}

// static is a configuration that no control plane sends.
func static(listener object, clusters []any) object {
	return object{
		"admin":            object{"address": address("127.0.0.1", 9901)},
		"static_resources": object{"listeners": []any{listener}, "clusters": clusters},
	}
}

func address(host string, port int) object {
	return object{"socket_address": object{"address": host, "port_value": port}}
}

var upper = regexp.MustCompile("[A-Z]")

// protoNames names the fields of a configuration as protobuf does, where JSON names them in
// its own way: perTryTimeout, per_try_timeout. What is no field has no plain name.
func protoNames(node any) any {
	switch node := node.(type) {
	case object:
		renamed := object{}
		for name, value := range node {
			if !strings.ContainsAny(name, "./@:-") {
				name = upper.ReplaceAllStringFunc(name, func(letter string) string { return "_" + strings.ToLower(letter) })
			}
			renamed[name] = protoNames(value)
		}
		return renamed
	case []any:
		for i, value := range node {
			node[i] = protoNames(value)
		}
	}
	return node
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
// places to which the path is appended, if there is one.
func applyPatchPolicy(t *testing.T, bootstrap, policy object) {
	t.Helper()
	var patches []jsonPatch
	convert(t, policy["spec"].(object)["jsonPatches"], &patches)
	resources := bootstrap["static_resources"].(object)
	for _, p := range patches {
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
			path := pointer(t, place)
			if p.Operation.Path != "" {
				path += "/" + p.Operation.Path
			}
			paths = append(paths, path)
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
	options := jsonpatch.NewApplyOptions()
	options.EnsurePathExistsOnAdd = true
	if document, err = patch.ApplyWithOptions(document, options); err != nil {
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

// convert reads what is given into a type that knows every field of it.
func convert(t *testing.T, from, into any) {
	t.Helper()
	content, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatal(err)
	}
}
