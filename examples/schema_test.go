// Package examples checks the alerts in the engine of Prometheus, and the examples for
// meshes: every YAML file strictly by the schemas that the meshes publish, and the Envoy
// configuration inside them by running it in the real Envoy with the built TierGate.
package examples

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	_ "github.com/envoyproxy/gateway/api/v1alpha1" // its module holds the CRDs of Envoy Gateway and the Gateway API
	"github.com/santhosh-tekuri/jsonschema/v6"
	yamlv3 "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	mesh "istio.io/api/mesh/v1alpha1" // its module holds the CRDs of Istio
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	kubejson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

type object = map[string]any

// documents returns the YAML documents of a file.
func documents(t *testing.T, file string) []object {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []object
	decoder := yamlv3.NewDecoder(bytes.NewReader(content))
	for {
		var d object
		err := decoder.Decode(&d)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, d)
	}
}

// TestSchemas accepts every document of the examples, and refuses each when a
// field of it is misspelt, at the top or where its substance is.
func TestSchemas(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		if filepath.Dir(file) == "prometheus" { // see alerts_test.go
			continue
		}
		for _, d := range documents(t, file) {
			kind, _ := d["kind"].(string)
			seen[kind] = true
			if err := validate(t, d); err != nil {
				t.Errorf("%s: %s: %v", file, kind, err)
			}
			for _, at := range []string{"", "spec", "metadata"} {
				part := d
				if at != "" {
					part, _ = d[at].(object)
				}
				if part == nil {
					continue
				}
				part["misspelt"] = true
				if validate(t, d) == nil {
					t.Errorf("%s: %s: a misspelt field in %q is accepted", file, kind, at)
				}
				delete(part, "misspelt")
			}
		}
	}
	want := []string{
		"", "AuthorizationPolicy", "BackendTrafficPolicy", "ClientTrafficPolicy", "ConfigMap", "Deployment", "EnvoyFilter",
		"EnvoyPatchPolicy", "Gateway", "HTTPRoute", "Namespace", "PodDisruptionBudget", "ReferenceGrant", "SecurityPolicy", "Service",
	}
	if have := slices.Sorted(maps.Keys(seen)); !slices.Equal(have, want) {
		t.Errorf("kinds %v, want %v", have, want)
	}
}

// TestSchemasBite: what is wrong deep inside is found, too.
func TestSchemasBite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file, old, bad string
	}{
		"mesh config":           {"istio/mesh-config.yaml", "failOpen: false", "failOpened: false"},
		"policy":                {"istio/authorization-policy.yaml", "action: CUSTOM", "action: ASK"},
		"filter":                {"istio/envoy-filter.yaml", "operation: INSERT_FIRST", "operation: INSERT_FRONT"},
		"filter match":          {"istio/envoy-filter.yaml", "context: GATEWAY", "contxt: GATEWAY"},
		"security policy":       {"envoy-gateway/security-policy.yaml", "headersToExtAuth", "headersToExtAuthz"},
		"security policy value": {"envoy-gateway/security-policy.yaml", "statusOnError: 503", "statusOnError: 299"},
		"health of its service": {"envoy-gateway/security-policy.yaml", "panicThreshold", "panicTreshold"},
		"patch":                 {"envoy-gateway/edge.yaml", "op: add", "op: append"},
		"patch type":            {"envoy-gateway/ratelimit.yaml", "envoy.config.cluster.v3.Cluster", "envoy.config.cluster.v2.Cluster"},
		"gateway":               {"envoy-gateway/gateway.yaml", "protocol: HTTP", "protocoll: HTTP"},
		"deployment":            {"kubernetes/tiergate.yaml", "readOnlyRootFilesystem", "readonlyRootFilesystem"},
		"service":               {"kubernetes/tiergate.yaml", "targetPort", "target"},
	} {
		content, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.ReplaceAll(string(content), c.old, c.bad)
		if changed == string(content) {
			t.Errorf("%s: %s has no %q", name, c.file, c.old)
		}
		copied := filepath.Join(t.TempDir(), "file.yaml")
		if err := os.WriteFile(copied, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		var faults error
		for _, d := range documents(t, copied) {
			faults = errors.Join(faults, validate(t, d))
		}
		if faults == nil {
			t.Errorf("%s: %s is accepted", name, c.bad)
		}
	}
}

// validate checks a document by the schema of its kind; unknown fields are
// faults.
func validate(t *testing.T, d object) error {
	t.Helper()
	content, err := json.Marshal(d)
	if err != nil {
		return err
	}
	kind, _ := d["kind"].(string)
	switch kind {
	case "": // the one file without a kind is part of Istio's mesh configuration
		return protojson.Unmarshal(content, &mesh.MeshConfig{})
	case "Namespace":
		return strict(content, &corev1.Namespace{})
	case "ConfigMap":
		return strict(content, &corev1.ConfigMap{})
	case "Service":
		return strict(content, &corev1.Service{})
	case "Deployment":
		return strict(content, &appsv1.Deployment{})
	case "PodDisruptionBudget":
		return strict(content, &policyv1.PodDisruptionBudget{})
	}
	version, _ := d["apiVersion"].(string)
	schemas, err := customKinds()
	if err != nil {
		t.Fatal(err)
	}
	schema := schemas[version+" "+kind]
	if schema == nil {
		return fmt.Errorf("no schema for %s %s", version, kind)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// strict reads one of Kubernetes' own kinds as the API server does: names count
// letter by letter.
func strict(content []byte, into any) error {
	faults, err := kubejson.UnmarshalStrict(content, into)
	return errors.Join(append(faults, err)...)
}

// customKinds reads the custom resource definitions out of the modules that
// publish them: "group/version Kind" → schema.
var customKinds = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	schemas := map[string]*jsonschema.Schema{}
	for _, source := range [][2]string{
		{"istio.io/api", "kubernetes/customresourcedefinitions.gen.yaml"},
		{"github.com/envoyproxy/gateway", "charts/gateway-helm/charts/crds/crds/*.yaml"},
		{"github.com/envoyproxy/gateway", "charts/gateway-helm/charts/crds/crds/generated/*.yaml"},
	} {
		out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", source[0]).Output()
		if err != nil {
			return nil, fmt.Errorf("find the module %s: %w: run go mod download", source[0], err)
		}
		files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), source[1]))
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", source[1], err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("the module %s has no %s", source[0], source[1])
		}
		for _, file := range files {
			if err := addKinds(schemas, file); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return schemas, nil
})

// A definition is what a custom resource definition says of its schemas.
type definition struct {
	Kind string `json:"kind"`
	Spec struct {
		Group string `json:"group"`
		Names struct {
			Kind string `json:"kind"`
		} `json:"names"`
		Versions []struct {
			Name   string `json:"name"`
			Schema struct {
				OpenAPI object `json:"openAPIV3Schema"`
			} `json:"schema"`
		} `json:"versions"`
	} `json:"spec"`
}

func addKinds(schemas map[string]*jsonschema.Schema, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for text := range strings.SplitSeq("\n"+string(content), "\n---") {
		var d definition
		if err := yaml.Unmarshal([]byte(text), &d); err != nil {
			return err
		}
		if d.Kind != "CustomResourceDefinition" {
			continue
		}
		for _, v := range d.Spec.Versions {
			name := d.Spec.Group + "/" + v.Name + " " + d.Spec.Names.Kind
			closed(v.Schema.OpenAPI)
			maps.Copy(v.Schema.OpenAPI["properties"].(object), object{
				"apiVersion": object{"type": "string"}, "kind": object{"type": "string"}, "metadata": metadata(),
			})
			compiler := jsonschema.NewCompiler()
			if err := compiler.AddResource(name, any(v.Schema.OpenAPI)); err != nil {
				return err
			}
			if schemas[name], err = compiler.Compile(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// closed makes a schema refuse fields that it does not name, as the API server
// does under strict field validation, and turns what OpenAPI says otherwise into
// JSON Schema.
func closed(schema object) {
	properties, _ := schema["properties"].(object)
	if _, ok := schema["additionalProperties"]; len(properties) > 0 && !ok && schema["x-kubernetes-preserve-unknown-fields"] != true {
		schema["additionalProperties"] = false
	}
	if schema["nullable"] == true {
		schema["type"] = []any{schema["type"], "null"}
	}
	delete(schema, "format") // int32 and the like are not those of JSON Schema
	for _, p := range properties {
		closed(p.(object))
	}
	for _, name := range []string{"items", "additionalProperties"} {
		if inner, ok := schema[name].(object); ok {
			closed(inner)
		}
	}
}

// metadata is the part of Kubernetes' own that the examples need.
func metadata() object {
	text := object{"type": "string"}
	return object{
		"type": "object", "additionalProperties": false,
		"properties": object{"name": text, "namespace": text, "labels": object{"type": "object", "additionalProperties": text}},
	}
}
