package envoyapi

import (
	"encoding/hex"
	"path"
	"strings"

	"github.com/tiergate/tiergate/internal/quota"
)

// A Classifier finds the resource that a request is for. It only ever returns
// configured names.
type Classifier struct {
	names    map[string]string // to themselves: the text that is kept is not one of a request
	byPrefix map[string]string // path prefix → name
	longest  int               // prefix, in bytes
}

// NewClassifier returns a Classifier of the resources.
func NewClassifier(resources []quota.Resource) *Classifier {
	c := &Classifier{names: map[string]string{quota.DefaultResource: quota.DefaultResource}, byPrefix: map[string]string{}}
	for _, r := range resources {
		c.names[r.Name] = r.Name
		for _, prefix := range r.PathPrefixes {
			c.byPrefix[prefix] = r.Name
			c.longest = max(c.longest, len(prefix))
		}
	}
	return c
}

// Classify returns the named resource if it is configured, else that of the
// longest prefix of the path, whole segments only, else "default".
func (c *Classifier) Classify(named, requestPath string) string {
	name, _ := c.find(named, requestPath)
	return name
}

// The rules by which a resource is found, beside a path prefix.
const (
	byName    = "named"
	byDefault = "default"
)

// find does what Classify says. rule is the path prefix, which begins with a slash, or
// byName or byDefault.
func (c *Classifier) find(named, requestPath string) (name, rule string) {
	if name, ok := c.names[named]; ok {
		return name, byName
	}
	p := normalize(requestPath)
	if len(p) > c.longest { // no segment beyond is looked at, however many there are
		p = p[:strings.LastIndexByte(p[:c.longest+1], '/')]
	}
	for p != "" {
		if name, ok := c.byPrefix[p]; ok {
			return name, p
		}
		p = p[:strings.LastIndexByte(p, '/')]
	}
	if name, ok := c.byPrefix["/"]; ok {
		return name, "/"
	}
	return quota.DefaultResource, byDefault
}

// normalize returns the path as the most lenient upstream would read it:
// without query and parameters (;…), percent-decoded as often as that goes, in
// lower case, without empty and dot segments. So no spelling of a path lands in
// another resource than the path does. What is no path becomes "".
func normalize(p string) string {
	if i := strings.IndexAny(p, "?#"); i >= 0 {
		p = p[:i]
	}
	if plain(p) {
		return strings.TrimSuffix(p, "/")
	}
	p = decoded(p)
	if !strings.HasPrefix(p, "/") {
		return ""
	}
	segments := strings.Split(strings.ToLower(strings.ReplaceAll(p, `\`, "/")), "/")
	for i, s := range segments {
		if end := strings.IndexAny(s, ";?#"); end >= 0 {
			segments[i] = s[:end]
		}
	}
	return strings.TrimSuffix(path.Clean(strings.Join(segments, "/")), "/")
}

// decoded replaces percent escapes until there are none. What only looks like one
// stays. Each escape that is replaced may complete one that began before it, so it is
// looked at again.
func decoded(p string) string {
	if !strings.Contains(p, "%") {
		return p
	}
	out := make([]byte, 0, len(p))
	for i := range len(p) {
		out = append(out, p[i])
		for n := len(out) - 3; n >= 0 && out[n] == '%'; n = len(out) - 3 {
			value, err := hex.DecodeString(string(out[n+1:]))
			if err != nil {
				break
			}
			out = append(out[:n], value[0])
		}
	}
	return string(out)
}

// plain reports whether nothing but a last slash can need normalizing.
func plain(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	for i := range len(p) {
		switch c := p[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		case c == '/' && (i == 0 || p[i-1] != '/'):
		default:
			return false
		}
	}
	return true
}
