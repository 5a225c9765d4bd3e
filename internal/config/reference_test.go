package config

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

const guide = "../../docs/configuration.md"

// TestReferenceIsUpToDate compares the tables of the guide with the structs
// that the files are read into, their comments and their defaults.
func TestReferenceIsUpToDate(t *testing.T) {
	t.Parallel()
	have, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	comments := fieldComments(t)
	want := between(t, have, "settings", "| Setting | Default | What it is |\n| --- | --- | --- |\n"+rows(comments, "", reflect.ValueOf(written())))
	want = between(t, want, "keys", "| Field | What it is |\n| --- | --- |\n"+fields(comments, reflect.TypeFor[keySection]()))
	if *update {
		if err := os.WriteFile(guide, want, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(have, want) {
		t.Error("docs/configuration.md is out of date: go test ./internal/config -update")
	}
}

// between puts a table between its marks.
func between(t *testing.T, text []byte, mark, table string) []byte {
	t.Helper()
	begin, end := "<!-- "+mark+" -->\n", "<!-- /"+mark+" -->"
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no marks %q and %q", guide, begin, end)
	}
	return []byte(before + begin + table + end + after)
}

// rows are the table's lines for the settings below a path.
func rows(comments map[string]string, path string, section reflect.Value) string {
	var b strings.Builder
	for i := range section.NumField() {
		field := section.Type().Field(i)
		at, value := path+yamlName(field), section.Field(i)
		kind := value.Kind()
		if kind != reflect.Struct {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", at, byDefault(value), comment(comments, section.Type(), field))
		}
		inner := map[reflect.Kind]string{reflect.Map: "NAME.", reflect.Slice: "[]"}[kind]
		if inner != "" {
			value = reflect.Zero(value.Type().Elem())
		}
		if value.Kind() == reflect.Pointer {
			value = reflect.Zero(value.Type().Elem())
			if value.Kind() == reflect.Struct {
				inner = "{}"
			}
		}
		if value.Kind() == reflect.Struct {
			b.WriteString(rows(comments, strings.NewReplacer(".[]", "[].", ".{}", ".").Replace(at+"."+inner), value))
		}
	}
	return b.String()
}

// byDefault is what holds where the file says nothing; empty for what has to be
// said, or is nothing by itself.
func byDefault(v reflect.Value) string {
	switch kind := v.Kind(); {
	case kind == reflect.Bool, kind == reflect.Int64, kind == reflect.Float64, kind == reflect.String && !v.IsZero():
		return fmt.Sprintf("`%v`", v)
	case kind == reflect.Slice && v.Len() > 0:
		return fmt.Sprintf("`%v`", v)
	}
	return ""
}

// fields are the table's lines for the fields of a list's entries.
func fields(comments map[string]string, entry reflect.Type) string {
	var b strings.Builder
	for field := range entry.Fields() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", yamlName(field), comment(comments, entry, field))
	}
	return b.String()
}

func yamlName(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
	return name
}

// comment is a field's comment and the values that the schema allows, where it
// names them all.
func comment(comments map[string]string, section reflect.Type, field reflect.StructField) string {
	text := strings.ReplaceAll(comments[section.PkgPath()+"."+section.Name()+"."+field.Name], "\n", " ")
	var values []string
	for rule := range strings.SplitSeq(field.Tag.Get("jsonschema"), ",") {
		if value, ok := strings.CutPrefix(rule, "enum="); ok {
			values = append(values, "`"+value+"`")
		}
	}
	if len(values) > 0 {
		text += " One of " + strings.Join(values, ", ") + "."
	}
	return strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(text)
}
