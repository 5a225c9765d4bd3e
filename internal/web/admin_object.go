package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/tiergate/tiergate/internal/apikey"
)

// An object is a JSON object of a request. Whoever reads it takes fields out; all that
// is wrong with them, and what is left over, becomes faults.
type object struct {
	at     string // what its fields' paths begin with, such as "keys[3]."
	fields map[string]json.RawMessage
	faults *[]Fault
}

// newObject reads the body of a request.
func newObject(body []byte) (*object, error) {
	o := &object{faults: new([]Fault)}
	if !utf8.Valid(body) {
		return nil, invalid([]Fault{{"", "the body is not UTF-8"}})
	}
	if err := json.Unmarshal(body, &o.fields); err != nil || o.fields == nil {
		return nil, invalid([]Fault{{"", "the body is not one JSON object"}})
	}
	if field, found := twice(body); found {
		return nil, invalid([]Fault{{field, "given twice"}})
	}
	return o, nil
}

// twice finds a field that stands twice in one object of a JSON text, which must be well
// formed. Of such fields one reader takes the first and another the last: what a proxy
// has looked at is not what is done.
func twice(body []byte) (field string, found bool) {
	type level struct {
		seen map[string]bool // nil: a list
		name bool            // whether a name comes next
	}
	var levels []level
	for d := json.NewDecoder(bytes.NewReader(body)); ; {
		token, err := d.Token()
		if err != nil {
			return "", false // its end
		}
		last := len(levels) - 1
		if token == json.Delim('}') || token == json.Delim(']') {
			levels = levels[:last]
			continue
		}
		if last >= 0 && levels[last].name {
			name, _ := token.(string)
			if levels[last].seen[name] {
				return short(name), true
			}
			levels[last].seen[name], levels[last].name = true, false
			continue
		}
		if last >= 0 {
			levels[last].name = levels[last].seen != nil
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{map[string]bool{}, true})
		case json.Delim('['):
			levels = append(levels, level{})
		}
	}
}

// mostFaults is how many are told, the last of them that there are more: what has more is no
// slip, and must not cost more.
const mostFaults = 100

func (o *object) fault(field, format string, args ...any) {
	switch len(*o.faults) {
	case mostFaults:
	case mostFaults - 1:
		*o.faults = append(*o.faults, Fault{"", "these are not all: mend them, and look again"})
	default:
		*o.faults = append(*o.faults, Fault{o.at + field, fmt.Sprintf(format, args...)})
	}
}

// take takes a field out, and reports whether it is there and no fault. null gives the
// zero value. The fault does not repeat the value, which may be a secret.
func take[T any](o *object, field, want string, into *T) bool {
	value, ok := o.fields[field]
	if !ok {
		return false
	}
	delete(o.fields, field)
	var taken T
	if !isNull(value) {
		if err := json.Unmarshal(value, &taken); err != nil {
			o.fault(field, "want %s", want)
			return false
		}
	}
	*into = taken
	return true
}

// objects takes out a list of objects, at most so many.
func (o *object) objects(field string, most int) []*object {
	var values []json.RawMessage
	take(o, field, "a list of objects", &values)
	if len(values) > most {
		o.fault(field, "%d of them: want at most %d", len(values), most)
		return nil
	}
	list := make([]*object, len(values))
	for i, value := range values {
		at := field + "[" + strconv.Itoa(i) + "]"
		list[i] = &object{at: o.at + at + ".", faults: o.faults}
		if json.Unmarshal(value, &list[i].fields) != nil {
			o.fault(at, "want an object")
		}
	}
	return list
}

// end notes the fields that nobody took.
func (o *object) end() {
	for _, field := range slices.Sorted(maps.Keys(o.fields)) {
		if len(*o.faults) == mostFaults {
			break
		}
		o.fault(short(field), "unknown field")
	}
	o.fields = nil
}

// err returns what is wrong, or nil.
func (o *object) err() error {
	if len(*o.faults) > 0 {
		return invalid(*o.faults)
	}
	return nil
}

// short is a name of another's, fit to be repeated: without what is a secret in the wrong
// place.
func short(name string) string {
	const most = 64
	if len(name) > most {
		name = name[:most] + "…"
	}
	return apikey.Redact(name)
}

// A query reads the parameters of a request, as an object does the fields of a body.
type query struct {
	values url.Values
	faults []Fault
}

// query returns the request's parameters. One that cannot be read is a fault, and not left
// out: without it the others may say something else.
func (c *call) query() *query {
	values, err := url.ParseQuery(c.URL.RawQuery)
	q := &query{values: values}
	if err != nil {
		q.fault("parameters", "%v", errParameters)
	}
	return q
}

func (q *query) fault(name, format string, args ...any) {
	q.faults = append(q.faults, Fault{name, fmt.Sprintf(format, args...)})
}

// text takes out a parameter; "" is as good as none. None is a place for a key: addresses are
// kept in many.
func (q *query) text(name string) string {
	values := q.values[name]
	delete(q.values, name)
	if len(values) > 1 {
		q.fault(name, "given twice")
	}
	if len(values) == 0 {
		return ""
	}
	if err := apikey.CheckPublic(values[0]); err != nil {
		q.fault(name, "%v", err)
		return ""
	}
	return values[0]
}

// limit takes out how much one answer may hold.
func (q *query) limit() int {
	const usual, most = 100, 1000
	text := q.text("limit")
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		q.fault("limit", "want 1 to %d", most)
		return usual
	}
	return n
}

// end returns what is wrong, parameters that nobody took too.
func (q *query) end() error {
	for _, name := range slices.Sorted(maps.Keys(q.values)) {
		q.fault(short(name), "unknown parameter")
	}
	if len(q.faults) > 0 {
		return invalid(q.faults)
	}
	return nil
}

// bytesText is a size for people.
func bytesText(n int64) string { return strconv.FormatInt(n>>20, 10) + " MiB" }
