package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/tiergate/tiergate/internal/apikey"
)

// TestOverridesAlgorithm: one that says nothing of it counts as the limit that it replaces.
func TestOverridesAlgorithm(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "tiergate.yaml")
	for name, content := range map[string]string{
		file: shortTiers,
		filepath.Join(dir, "keys.yaml"): `keys: [{id: a, tier: free, hash: "` + apikey.New().Hash().String() + `", overrides: [{metric: requests, per: minute, max: 20},
  {metric: requests, per: hour, max: 1, algorithm: sliding}, {metric: requests, per: day, max: 1, algorithm: fixed}]}]`,
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, _, err := Load(Options{File: file})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "sliding", "fixed"} {
		if o := c.Reload.Directory.ByID("a").Overrides[i]; o.Algorithm() != want {
			t.Errorf("%s: %q, want %q", o.Limit.Name(), o.Algorithm(), want)
		}
	}
}

// TestManyKeys: a file of keys without faults is read once, and its keys have the text of
// their tier in common.
func TestManyKeys(t *testing.T) { // alone: it counts what the process allocates
	const keys, most = 2000, 55
	dir := t.TempDir()
	entries := strings.Builder{}
	entries.WriteString("keys:\n")
	for i := range keys {
		fmt.Fprintf(&entries, "  - {id: key_%d, hash: %q, tier: free}\n", i, apikey.New().Hash())
	}
	file := filepath.Join(dir, "tiergate.yaml")
	for name, content := range map[string]string{
		file:                            "tiers: {free: {priority: low, limits: [{metric: requests, per: minute, max: 10}]}}\n",
		filepath.Join(dir, "keys.yaml"): entries.String(),
	} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var c *Config
	allocations := testing.AllocsPerRun(1, func() {
		var err error
		if c, _, err = Load(Options{File: file}); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%.0f allocations for a key", allocations/keys)
	if allocations > most*keys {
		t.Errorf("%.0f allocations for a key: want %d at most", allocations/keys, most)
	}
	texts := map[*byte]bool{}
	for r := range c.Reload.Directory.All {
		texts[unsafe.StringData(r.Tier)] = true
	}
	if len(texts) != 1 || c.Reload.Directory.Len() != keys {
		t.Errorf("%d keys have the tier in %d texts: want %d in one", c.Reload.Directory.Len(), len(texts), keys)
	}
}
