package devstack

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Addresses are what an Envoy file of ours is set to. Each is host:port; that of
// TierGate may be unix: and a path.
type Addresses struct {
	API      string // where Envoy listens for clients
	Admin    string // Envoy's own admin interface
	TierGate string
	Customer string // TierGate's listener for the holders of keys
	Upstream string
}

// setAddresses returns the Envoy file with other addresses, and nothing else
// changed. The shipped files have those of docker-compose.yaml.
func setAddresses(content []byte, a Addresses) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(content, &doc); err != nil {
		return nil, fmt.Errorf("read the Envoy file: %w", err)
	}
	if len(doc.Content) != 1 {
		return nil, errors.New("read the Envoy file: want one YAML document")
	}
	root := doc.Content[0]
	targets := map[*yaml.Node]string{
		at(root, "admin", "address"):                              a.Admin,
		at(root, "static_resources", "listeners", "0", "address"): a.API,
		clusterAddress(root, "tiergate"):                          a.TierGate,
		clusterAddress(root, "upstream"):                          a.Upstream,
	}
	if len(targets) != 4 || targets[nil] != "" {
		return nil, errors.New("the Envoy file has no admin address, no listener, or no cluster called tiergate or upstream")
	}
	// A file of somebody's own may leave the customers' API out.
	if customers := clusterAddress(root, "tiergate_customers"); customers != nil {
		targets[customers] = a.Customer
	}
	for node, address := range targets {
		if err := setAddress(node, address); err != nil {
			return nil, err
		}
	}
	out, err := yaml.Marshal(&doc)
	if err != nil {
		return nil, fmt.Errorf("write the Envoy file: %w", err)
	}
	return out, nil
}

// at follows names of mappings and numbers of lists; nil: nothing is there.
func at(node *yaml.Node, steps ...string) *yaml.Node {
	for _, step := range steps {
		node = child(node, step)
		if node == nil {
			return nil
		}
	}
	return node
}

func child(node *yaml.Node, step string) *yaml.Node {
	if i, err := strconv.Atoi(step); err == nil && node.Kind == yaml.SequenceNode && i < len(node.Content) {
		return node.Content[i]
	}
	if node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == step {
				return node.Content[i+1]
			}
		}
	}
	return nil
}

// clusterAddress returns the address of a cluster's one endpoint.
func clusterAddress(root *yaml.Node, name string) *yaml.Node {
	clusters := at(root, "static_resources", "clusters")
	if clusters == nil {
		return nil
	}
	for _, c := range clusters.Content {
		if n := child(c, "name"); n != nil && n.Value == name {
			return at(c, "load_assignment", "endpoints", "0", "lb_endpoints", "0", "endpoint", "address")
		}
	}
	return nil
}

// setAddress writes an address in Envoy's form.
func setAddress(node *yaml.Node, address string) error {
	var form map[string]any
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		form = map[string]any{"pipe": map[string]any{"path": path}}
	} else {
		host, portText, err := net.SplitHostPort(address)
		if err != nil {
			return fmt.Errorf("set the address %q: %w", address, err)
		}
		port, err := strconv.Atoi(portText)
		if err != nil {
			return fmt.Errorf("set the address %q: the port is no number", address)
		}
		form = map[string]any{"socket_address": map[string]any{"address": host, "port_value": port}}
	}
	if err := node.Encode(form); err != nil {
		return fmt.Errorf("set the address %q: %w", address, err)
	}
	return nil
}
