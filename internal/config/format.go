package config

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tiergate/tiergate/internal/apikey"
)

// FormatKey returns a record as an entry of the file of hashed keys, to be put
// under "keys:". Overrides are not written.
func FormatKey(r apikey.Record) (string, error) {
	s := keySection{ID: r.ID, Name: r.Name, Hash: r.Hash.String(), Tier: r.Tier, Resources: r.Resources}
	if !r.Expires.IsZero() {
		s.Expires = r.Expires.UTC().Format(time.RFC3339)
	}
	if r.Priority != 0 {
		s.Priority = r.Priority.String()
	}
	text, err := yaml.Marshal([]keySection{s})
	if err != nil {
		return "", fmt.Errorf("write the key %s as YAML: %w", r.ID, err)
	}
	return string(text), nil
}
