// Package generate prints what istiod makes of the examples. It is built by itself, in a module
// that has istio.io/istio: see docs/decisions/mesh-examples.md.
package generate

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
	"sigs.k8s.io/yaml"
)

// TestGenerate writes generated.yaml in the directory examples, which EXAMPLES names, or what
// comes of the EnvoyFilter too, to the file that PATCHED names.
func TestGenerate(t *testing.T) {
	examples := os.Getenv("EXAMPLES")
	read := func(name string) string {
		content, err := os.ReadFile(examples + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	meshConfig, err := mesh.ApplyMeshConfigDefaults(read("istio/mesh-config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	files := []string{read("testdata/istio/cluster.yaml"), read("istio/authorization-policy.yaml")}
	to := examples + "/testdata/istio/generated.yaml"
	if patched := os.Getenv("PATCHED"); patched != "" {
		files, to = append(files, read("istio/envoy-filter.yaml")), patched
	}
	istiod := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{ConfigString: strings.Join(files, "\n---\n"), MeshConfig: meshConfig})
	labels := map[string]string{"istio": "ingressgateway"}
	gateway := istiod.SetupProxy(&model.Proxy{
		Type: model.Router, ConfigNamespace: "istio-system", IPAddresses: []string{"127.0.0.1"}, Labels: labels,
		Metadata: &model.NodeMetadata{Labels: labels, Namespace: "istio-system"},
	})
	text := "# Printed by istiod: see docs/decisions/mesh-examples.md.\n" +
		list(t, "listeners", istiod.Listeners(gateway)) + list(t, "routes", istiod.Routes(gateway)) + list(t, "clusters", istiod.Clusters(gateway))
	if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func list[M proto.Message](t *testing.T, name string, messages []M) string {
	text := name + ":\n"
	for _, m := range messages {
		content, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if content, err = yaml.JSONToYAML(content); err != nil {
			t.Fatal(err)
		}
		text += "- " + strings.ReplaceAll(strings.TrimSpace(string(content)), "\n", "\n  ") + "\n"
	}
	return text
}
