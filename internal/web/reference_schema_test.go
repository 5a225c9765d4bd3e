package web

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const problemURN = "urn:tiergate:problem:"

// schemas reads the schemas of openapi.yaml in their order.
type schemas struct{ root *yaml.Node }

// child returns a field of a mapping, or nil.
func child(n *yaml.Node, name string) (found *yaml.Node) {
	each(n, func(have string, value *yaml.Node) {
		if have == name {
			found = value
		}
	})
	return found
}

func text(n *yaml.Node, name string) string {
	if c := child(n, name); c != nil {
		return c.Value
	}
	return ""
}

// each visits the fields of a mapping in their order; those of nil are none.
func each(n *yaml.Node, visit func(name string, value *yaml.Node)) {
	if n == nil || n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i < len(n.Content); i += 2 {
		visit(n.Content[i].Value, n.Content[i+1])
	}
}

// at returns what a reference is of.
func (s schemas) at(ref string) *yaml.Node {
	n := s.root
	for step := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		n = child(n, step)
	}
	return n
}

// rows describes the fields of an object, with those of the one that it builds on, and
// those of objects within that have no name.
func (s schemas) rows(prefix string, schema *yaml.Node) []row {
	var rows []row
	if ref := text(schema, "$ref"); ref != "" {
		rows = s.rows(prefix, s.at(ref))
	}
	each(child(schema, "properties"), func(name string, field *yaml.Node) {
		needed := child(schema, "required") != nil && slices.ContainsFunc(child(schema, "required").Content, func(n *yaml.Node) bool { return n.Value == name })
		rows = append(rows, row{prefix + name, s.kind(field), s.description(field), needed})
		within, inner := prefix+name+".", field
		if items := child(field, "items"); items != nil {
			within, inner = prefix+name+"[].", items
		}
		if child(inner, "properties") != nil {
			rows = append(rows, s.rows(within, inner)...)
		}
	})
	return rows
}

// description is what a schema says of itself, and what the one says that it refers to.
func (s schemas) description(schema *yaml.Node) string {
	about := text(schema, "description")
	if ref := text(schema, "$ref"); ref != "" {
		if target := s.at(ref); child(target, "properties") == nil {
			about += " " + s.description(target)
		}
	}
	if value := text(schema, "default"); value != "" {
		about += " By default `" + value + "`."
	}
	return strings.TrimSpace(about)
}

// kind says what values a schema allows.
func (s schemas) kind(schema *yaml.Node) string {
	if ref := text(schema, "$ref"); ref != "" {
		name := ref[strings.LastIndexByte(ref, '/')+1:]
		if child(schema, "properties") != nil {
			return "object"
		}
		if target := s.at(ref); child(target, "properties") == nil {
			return s.kind(target)
		}
		return "[" + name + "](#" + strings.ToLower(name) + ")"
	}
	if either := child(schema, "oneOf"); either != nil && child(schema, "properties") == nil {
		var kinds []string
		for _, one := range either.Content {
			kinds = append(kinds, s.kind(one))
		}
		return strings.Join(kinds, " or ")
	}
	if values := child(schema, "enum"); values != nil {
		if strings.HasPrefix(values.Content[0].Value, problemURN) {
			return "one of the [problems](#problems)"
		}
		var names []string
		for _, v := range values.Content {
			names = append(names, "`"+v.Value+"`")
		}
		return strings.Join(names, ", ")
	}
	types := []string{text(schema, "type")}
	if list := child(schema, "type"); list != nil && list.Kind == yaml.SequenceNode {
		types = nil
		for _, t := range list.Content {
			types = append(types, t.Value)
		}
	}
	types[0] = s.plain(types[0], schema)
	return strings.Join(types, " or ")
}

// plain says what values a type allows that is not null.
func (s schemas) plain(name string, schema *yaml.Node) string {
	switch name {
	case "array":
		kind := s.kind(child(schema, "items"))
		return "list of " + kind + between(text(schema, "minItems"), text(schema, "maxItems"))
	case "object":
		if values := child(schema, "additionalProperties"); values != nil && values.Kind == yaml.MappingNode {
			return "map to " + strings.TrimSuffix(s.kind(values), " or null")
		}
		return name
	case "string":
		if text(schema, "format") == "date-time" {
			return "time, RFC 3339"
		}
		return name + between(text(schema, "minLength"), text(schema, "maxLength"))
	default:
		return name + between(text(schema, "minimum"), text(schema, "maximum"))
	}
}
