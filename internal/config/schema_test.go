package config

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"

	generator "github.com/invopop/jsonschema"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// schemas are the published JSON Schemas and what each describes.
func schemas() map[string]any {
	return map[string]any{"tiergate.schema.json": file{}, "keys.schema.json": keysFile{}}
}

// TestSchemasAreUpToDate compares the published schemas with the structs that
// the files are read into.
func TestSchemasAreUpToDate(t *testing.T) {
	t.Parallel()
	for name, v := range schemas() {
		path := "../../config/" + name
		want := generate(t, v)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is out of date (%v): go test ./internal/config -update", name, err)
		}
	}
}

func generate(t *testing.T, v any) []byte {
	t.Helper()
	r := &generator.Reflector{
		FieldNameTag: "yaml", ExpandedStruct: true, RequiredFromJSONSchemaTags: true, Anonymous: true,
		CommentMap: fieldComments(t),
	}
	content, err := json.MarshalIndent(r.Reflect(v), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(content, '\n')
}

// fieldComments reads the comments of the fields in file.go, by the names that
// the generator asks for. It reads those of exported types only by itself.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), "file.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	comments := map[string]string{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if s, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range s.Fields.List {
				for _, name := range field.Names {
					key := reflect.TypeFor[file]().PkgPath() + "." + spec.Name.Name + "." + name.Name
					comments[key] = strings.TrimSpace(field.Doc.Text())
				}
			}
		}
		return false
	})
	return comments
}

// TestSchemas accept the shipped files and refuse what the program refuses for
// its form.
func TestSchemas(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]struct{ good, bad []string }{
		"tiergate.schema.json": {
			good: []string{"@../../config/tiergate.yaml", shortTiers, shortTiers + "headers: {unlimited: 1000}", "tiers: {free: {limits: [{metric: requests, per: minute, max: 1, algorithm: sliding}]}}"},
			bad: []string{
				"stores: {}", "store: {type: sqlite}", "allow_demo_keys: perhaps", "log: {format: xml}",
				"tiers: {free: {limits: [{metric: requests, per: minute}]}}",
				"tiers: {free: {limits: [{metric: calls, per: minute, max: 1}]}}",
				"tiers: {free: {limits: [{metric: requests, per: minute, max: -1}]}}",
				"tiers: {free: {limits: [{metric: requests, per: minute, max: 1, algorithm: leaky}]}}",
			},
		},
		"keys.schema.json": {
			good: []string{"@../../config/keys.yaml", shortKeys},
			bad:  []string{"keys: [{id: a}]", "keys: [{id: a, hash: b, tier: c, secret: d}]", "keys: [{id: a, hash: b, tier: c, overrides: [{per: day}]}]"},
		},
	} {
		schema, err := jsonschema.NewCompiler().Compile("../../config/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range files.good {
			if err := schema.Validate(asJSON(t, text)); err != nil {
				t.Errorf("%s refuses %.60s: %v", name, text, err)
			}
		}
		for _, text := range files.bad {
			if schema.Validate(asJSON(t, text)) == nil {
				t.Errorf("%s accepts %s", name, text)
			}
		}
	}
}

// asJSON reads YAML, or the file named after an @, as JSON values.
func asJSON(t *testing.T, text string) any {
	t.Helper()
	content := []byte(text)
	if name, ok := strings.CutPrefix(text, "@"); ok {
		var err error
		if content, err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	var v any
	if err := yaml.Unmarshal(content, &v); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	return value
}
