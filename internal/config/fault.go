package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/tiergate/tiergate/internal/apikey"
)

// A Fault is one thing that is wrong with the configuration.
type Fault struct {
	Source  string `json:"source"` // the file, or the --set
	Line    int    `json:"line"`   // from 1; 0: no single line
	Path    string `json:"path"`   // such as tiers.free.limits[0].max; may be empty
	Problem string `json:"problem"`
}

// String returns "source:line: path: problem".
func (f Fault) String() string { return f.Place() + ": " + f.Problem }

// Place returns "source:line: path", as far as they are known.
func (f Fault) Place() string {
	s := f.Source
	if f.Line > 0 {
		s += ":" + strconv.Itoa(f.Line)
	}
	if f.Path != "" {
		s += ": " + f.Path
	}
	return s
}

// Faults is everything that is wrong, in the order of the lines.
type Faults []Fault

// Error returns a line for each fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// redact takes out the keys that were given in the place of something else.
func (fs Faults) redact() {
	for i, f := range fs {
		fs[i] = Fault{Source: apikey.Redact(f.Source), Line: f.Line, Path: apikey.Redact(f.Path), Problem: apikey.Redact(f.Problem)}
	}
}

// A document is one YAML source.
type document struct {
	source  string
	content []byte
	faults  Faults

	// readable says that the source is YAML, so that its values can be checked in spite
	// of other faults.
	readable bool
	tree     *yaml.Node // of the source; nil: see root
}

// root returns the place of everything in a readable source. Only where there are faults
// is it of use, so it is read when it is first asked for.
func (d *document) root() *yaml.Node {
	if d.tree == nil {
		d.tree = &yaml.Node{}
		_ = yaml.Unmarshal(d.content, d.tree) // fails nowhere that decode did not
	}
	return d.tree
}

// decode reads a source strictly into a struct. Unknown fields, values of a
// wrong type, keys given twice and a second document are faults.
func decode(source string, content []byte, into any) *document {
	d := &document{source: source, content: content}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	err := decoder.Decode(into)
	if errors.Is(err, io.EOF) {
		d.add(0, "", "the file is empty: want settings, or keys: [] in a file of keys")
		return d
	}
	if typeErr := (*yaml.TypeError)(nil); errors.As(err, &typeErr) {
		for _, text := range typeErr.Errors {
			d.addYAML(text)
		}
	} else if err != nil {
		d.addSyntax(err)
		return d
	}
	var second yaml.Node
	if err == nil && !errors.Is(decoder.Decode(&second), io.EOF) {
		d.add(second.Line, "", "a second YAML document: keep one")
	}
	d.readable = true
	if perhapsNothing(content) {
		d.addNothings(d.root(), "")
	}
	return d
}

// perhapsNothing reports whether an entry of a list may say nothing: a dash alone, null, a tag or an
// anchor. The place of everything, which tells, takes as long to read as the values, and of many keys so would a
// regular expression.
func perhapsNothing(content []byte) bool {
	if bytes.ContainsAny(content, "~&!") || bytes.Contains(content, []byte("null")) || bytes.Contains(content, []byte("Null")) || bytes.Contains(content, []byte("NULL")) {
		return true
	}
	// The last and the first bytes of blanks and line ends, of which YAML has U+0085, U+2028 and U+2029 too.
	const before, after = " \t\n\r\x85\xa8\xa9", "#\n\r\xc2\xe2"
	for at := 0; ; at++ {
		i := bytes.IndexByte(content[at:], '-')
		if i < 0 {
			return false
		}
		at += i
		rest := bytes.TrimLeft(content[at+1:], " \t")
		if (at == 0 || strings.IndexByte(before, content[at-1]) >= 0) && (len(rest) == 0 || strings.IndexByte(after, rest[0]) >= 0) {
			return true
		}
	}
}

// addNothings adds a fault for each entry of a list that says nothing. The YAML library
// leaves them out, and an empty list may stand for all there are.
func (d *document) addNothings(node *yaml.Node, path string) {
	for i, inner := range node.Content {
		at := path
		switch node.Kind {
		case yaml.SequenceNode:
			if at += "[" + strconv.Itoa(i) + "]"; inner.ShortTag() == "!!null" {
				d.add(inner.Line, at, "says nothing: fill it in, or take it away")
			}
		case yaml.MappingNode:
			if i%2 == 0 {
				continue
			}
			at = strings.TrimPrefix(at+"."+node.Content[i-1].Value, ".")
		case yaml.DocumentNode, yaml.ScalarNode, yaml.AliasNode:
		}
		d.addNothings(inner, at)
	}
}

// A whole is a number without a fraction. Read into an int64, one with a fraction would
// lose it without a fault.
type whole int64

// UnmarshalYAML implements yaml.Unmarshaler.
func (w *whole) UnmarshalYAML(node *yaml.Node) error {
	var exact float64
	if node.Decode(&exact) == nil && exact != math.Trunc(exact) {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: want a whole number, have %q", node.Line, node.Value)}}
	}
	return node.Decode((*int64)(w)) //nolint:wrapcheck // the library adds its faults to the others
}

var (
	yamlLine    = regexp.MustCompile(`^line (\d+): (.*)$`)
	yamlUnknown = regexp.MustCompile(`^field (.+) not found in type .+$`)
	yamlType    = regexp.MustCompile("^cannot unmarshal (\\S+)(?: `(.*)`)? into (.+)$")
	yamlQuoted  = regexp.MustCompile("^cannot unmarshal !!str `([-+]?[0-9.]+` into (int|float)64|(?i:true|false)` into bool)$")
)

// addYAML adds a fault that the YAML library reports, in words that say
// nothing of Go.
func (d *document) addYAML(text string) {
	line := 0
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits only
		text = m[2]
	}
	if m := yamlUnknown.FindStringSubmatch(text); m != nil {
		text = fmt.Sprintf("unknown field %q", m[1])
	} else if m := yamlType.FindStringSubmatch(text); m != nil {
		told := "want " + wanted(m[3]) + ", have " + had(m[1], m[2])
		if yamlQuoted.MatchString(text) {
			told += ": take the quotes away"
		}
		text = told
	}
	d.add(line, "", text)
}

// searched is how many bytes of a source are searched for where it is no YAML. The search reads
// them some twenty times, which takes a second.
const searched = 1 << 20

// addSyntax adds the fault by which a source is no YAML. The library names the line before that in
// which what it was reading begins, which may be a whole section before the fault, or none. So
// the line is the first with which the library finds the same fault as in the whole. A fault that it
// does not find without the values, such as an anchor within itself, is one of YAML that has no line.
func (d *document) addSyntax(fault error) {
	text := strings.TrimPrefix(fault.Error(), "yaml: ")
	faulty := func(part []byte) bool {
		err := yaml.Unmarshal(part, &yaml.Node{})
		return err != nil && err.Error() == fault.Error()
	}
	if len(d.content) > searched || !faulty(d.content) {
		d.addYAML(text)
		return
	}
	lines := bytes.SplitAfter(d.content, []byte("\n"))
	at := sort.Search(len(lines)-1, func(n int) bool { return faulty(bytes.Join(lines[:n+1], nil)) })
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = m[2]
	}
	if tab := bytes.HasPrefix(bytes.TrimLeft(lines[at], " "), []byte("\t")); tab && text == "found character that cannot start any token" {
		d.add(at+1, "", "a tab at the beginning of the line: indent by blanks")
		return
	}
	d.add(at+1, "", "no YAML here or just above: "+text+": see to indentation, colons, quotes and brackets")
}

func wanted(goType string) string {
	switch {
	case goType == "bool":
		return "true or false"
	case goType == "string":
		return "a text"
	case goType == "int64":
		return "a whole number"
	case goType == "float64":
		return "a number"
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	default:
		return "a mapping"
	}
}

func had(tag, value string) string {
	switch tag {
	case "!!seq":
		return "a list"
	case "!!map":
		return "a mapping"
	default:
		return strconv.Quote(value)
	}
}

// unread reports whether a section may be missing only because the source could
// not be read in full: it stands there, or nothing can.
func (d *document) unread(section string) bool {
	top := d.root().Content[0]
	node, _ := child(top, section)
	return len(d.faults) > 0 && (node != nil || top.Kind != yaml.MappingNode)
}

func (d *document) add(line int, path, problem string) {
	d.faults = append(d.faults, Fault{Source: d.source, Line: line, Path: path, Problem: problem})
}

// sorted returns the faults in the order of their lines.
func (d *document) sorted() Faults {
	slices.SortStableFunc(d.faults, func(a, b Fault) int { return a.Line - b.Line })
	return d.faults
}

// line finds where a path stands, or the nearest part of it that is there.
func (d *document) line(path string) int {
	node := d.root()
	if node.Kind == yaml.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
	}
	line := node.Line
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next, at := child(node, step)
		if next == nil {
			return line
		}
		node, line = next, at
	}
	return line
}

// child returns a mapping's value or a list's element, and the line it is named
// on.
func child(node *yaml.Node, step string) (*yaml.Node, int) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if i, err := strconv.Atoi(step); err == nil && node.Kind == yaml.SequenceNode && i < len(node.Content) {
		return node.Content[i], node.Content[i].Line
	}
	if node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == step {
				return node.Content[i+1], node.Content[i].Line
			}
		}
	}
	return nil, 0
}
