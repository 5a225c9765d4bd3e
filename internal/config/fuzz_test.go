package config

import (
	"testing"

	"go.yaml.in/yaml/v3"
)

// FuzzSet looks for a --set that panics, changes tiers or resources, or has a fault that
// does not say where it comes from.
func FuzzSet(f *testing.F) {
	for _, set := range []string{
		"store.type=redis", "tokens.settle_by=[]", "=", "a=b", "<<={tiers: {free: {unlimited: true}}}", "log={level: debug}",
		"keys.headers=[x]", "tiers.free=x", "\ttiers=x", "log.level=&a [*a]", "a.b.c.=1", "grpc=!!binary x",
	} {
		f.Add(set)
	}
	f.Fuzz(func(t *testing.T, set string) {
		var f file
		if doc := decode("tiergate.yaml", []byte(shortTiers), &f); len(doc.faults) > 0 {
			t.Fatal(doc.faults)
		}
		before := text(t, &f)
		for _, fault := range apply(set, &f) {
			if fault.Problem == "" || fault.Source != "--set "+set || fault.Line != 0 {
				t.Errorf("%+v", fault)
			}
		}
		if after := text(t, &f); after != before {
			t.Errorf("%q makes %s of %s", set, after, before)
		}
	})
}

// text is what the file says of tiers and resources.
func text(t *testing.T, f *file) string {
	t.Helper()
	content, err := yaml.Marshal([]any{f.Tiers, f.Resources})
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
