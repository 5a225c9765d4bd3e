package config

import (
	"fmt"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/tiergate/tiergate/internal/apikey"
)

// FormatKey returns a record as an entry of the file of hashed keys, indented so
// that it can be put under "keys:". Overrides are not written.
func FormatKey(r apikey.Record) (string, error) {
	s := keySection{ID: r.ID, Name: r.Name, Hash: r.Hash.String(), Tier: r.Tier, Resources: r.Resources}
	if !r.Expires.IsZero() {
		s.Expires = r.Expires.UTC().Format(time.RFC3339)
	}
	if r.Priority != 0 {
		s.Priority = r.Priority.String()
	}
	var text strings.Builder
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2) // as in the shipped file
	if err := encoder.Encode(keysFile{Keys: []keySection{s}}); err != nil {
		return "", fmt.Errorf("write the key %s as YAML: %w", r.ID, err)
	}
	return strings.TrimPrefix(text.String(), "keys:\n"), nil
}
