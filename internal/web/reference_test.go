package web

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const guide = "../../docs/admin-api.md"

var update = flag.Bool("update", false, "write docs/admin-api.md as openapi.yaml has it")

// TestReferenceIsUpToDate compares docs/admin-api.md with what openapi.yaml says.
func TestReferenceIsUpToDate(t *testing.T) {
	t.Parallel()
	var document yaml.Node
	if err := yaml.Unmarshal(openAPI, &document); err != nil {
		t.Fatal(err)
	}
	r := &reference{schemas: schemas{root: document.Content[0]}}
	want := []byte(r.write())
	if *update {
		if err := os.WriteFile(guide, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("docs/admin-api.md is out of date: go test ./internal/web -run TestReferenceIsUpToDate -update")
	}
}

// A reference is openapi.yaml for people, in its order.
type reference struct {
	schemas

	strings.Builder
}

func (r *reference) say(format string, args ...any) { fmt.Fprintf(r, format+"\n", args...) }

func (r *reference) write() string {
	info := child(r.root, "info")
	r.say("# Admin API\n\n<!-- Written by: go test ./internal/web -run TestReferenceIsUpToDate -update -->\n")
	r.say("%s\nThe same for programs, as OpenAPI 3.1, is at `GET %s/openapi.yaml`. [Keys](keys.md) and\n[dashboards](dashboards.md) say how to begin.\n", text(info, "description"), AdminPath)
	r.say("**Who may ask.** %s", text(r.at("#/components/securitySchemes/token"), "description"))
	tags := child(r.root, "tags")
	for _, tag := range tags.Content {
		name := text(tag, "name")
		r.say("## %s\n\n%s\n", strings.ToUpper(name[:1])+name[1:], text(tag, "description"))
		each(child(r.root, "paths"), func(path string, item *yaml.Node) {
			each(item, func(method string, operation *yaml.Node) {
				if method != "parameters" && child(operation, "tags").Content[0].Value == name {
					r.operation(strings.ToUpper(method)+" "+AdminPath+path, operation)
				}
			})
		})
	}
	r.say("## Objects\n")
	each(r.at("#/components/schemas"), func(name string, schema *yaml.Node) {
		if child(schema, "properties") != nil {
			r.say("### %s\n", name)
			r.paragraph(text(schema, "description"))
			r.table("Field", r.rows("", schema))
		}
	})
	r.problems()
	return strings.TrimRight(r.String(), "\n") + "\n"
}

// problems lists the types of errors.
func (r *reference) problems() {
	r.say("## Problems\n\n| `type`: `" + problemURN + "` and | Status | `title` |\n| --- | --- | --- |")
	for _, name := range r.at("#/components/schemas/Problem/properties/type/enum").Content {
		p := problem(kind(strings.TrimPrefix(name.Value, problemURN)), "")
		r.say("| `%s` | %d | %s |", strings.TrimPrefix(p.Type, problemURN), p.Status, p.Title)
	}
}

func (r *reference) paragraph(text string) {
	if text = strings.TrimSpace(text); text != "" {
		r.say("%s\n", text)
	}
}

// operation describes a method of a path.
func (r *reference) operation(name string, o *yaml.Node) {
	r.say("### %s\n\n%s.\n", name, text(o, "summary"))
	r.paragraph(text(o, "description"))
	var rows []row
	if parameters := child(o, "parameters"); parameters != nil {
		for _, p := range parameters.Content {
			if ref := text(p, "$ref"); ref != "" {
				p = r.at(ref)
			}
			about := strings.TrimSpace(text(p, "description") + " " + r.description(child(p, "schema")))
			rows = append(rows, row{text(p, "name"), r.kind(child(p, "schema")), about, text(p, "required") == "true"})
		}
		r.table("Parameter", rows)
	}
	each(child(child(o, "requestBody"), "content"), func(media string, content *yaml.Node) {
		if media == "application/json" {
			r.content("Body", "", child(content, "schema"))
		}
	})
	each(child(o, "responses"), func(status string, response *yaml.Node) {
		if status == "default" {
			return
		}
		if ref := text(response, "$ref"); ref != "" {
			response = r.at(ref)
		}
		each(child(response, "content"), func(_ string, content *yaml.Node) {
			r.content("Answer", status+". "+text(response, "description"), child(content, "schema"))
		})
	})
}

// content describes a body or an answer.
func (r *reference) content(what, about string, schema *yaml.Node) {
	about = strings.TrimSpace("**" + what + ":** " + about)
	if text(schema, "$ref") != "" {
		about += " " + r.kind(schema) + "."
	}
	r.say("%s\n", about)
	if child(schema, "properties") == nil {
		return
	}
	r.table("Field", r.rows("", schema))
}

// A row says something of a field or a parameter.
type row struct {
	name, kind, about string
	needed            bool
}

func (r *reference) table(first string, rows []row) {
	r.say("| %s | Type | What it is |\n| --- | --- | --- |", first)
	for _, w := range rows {
		if !w.needed {
			w.kind += ", optional"
		}
		r.say("| `%s` | %s | %s |", w.name, w.kind, strings.ReplaceAll(strings.TrimSpace(w.about), "\n", " "))
	}
	r.say("")
}

// between says the bounds of a number, a text or a list.
func between(low, high string) string {
	switch {
	case low != "" && high != "":
		return " (" + grouped(low) + " to " + grouped(high) + ")"
	case high != "":
		return " (at most " + grouped(high) + ")"
	case low != "":
		return " (at least " + grouped(low) + ")"
	}
	return ""
}

// grouped writes a whole number with commas.
func grouped(number string) string {
	if _, err := strconv.Atoi(number); err != nil {
		return number
	}
	for i := len(number) - 3; i > 0; i -= 3 {
		number = number[:i] + "," + number[i:]
	}
	return number
}
