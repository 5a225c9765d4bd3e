package config

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/tiergate/tiergate/internal/quota"
)

// openAIPaths are the resources of an API laid out like OpenAI's, and Anthropic's messages.
func openAIPaths() map[string]resourceSection {
	paths := func(paths ...string) resourceSection { return resourceSection{Paths: paths} }
	return map[string]resourceSection{
		"chat":        paths("/v1/chat", "/v1/completions", "/v1/responses", "/v1/messages"),
		"counting":    paths("/v1/messages/count_tokens", "/v1/responses/input_tokens"),
		"images":      paths("/v1/images"),
		"audio":       paths("/v1/audio"),
		"embeddings":  paths("/v1/embeddings"),
		"moderations": paths("/v1/moderations"),
		"files":       paths("/v1/files", "/v1/uploads"),
		"models":      paths("/v1/models"),
	}
}

func (c *checker) resources(sections map[string]resourceSection) []quota.Resource {
	if sections == nil {
		sections = openAIPaths()
	}
	owner := map[string]string{}
	var resources []quota.Resource
	for _, n := range slices.Sorted(maps.Keys(sections)) {
		at := "resources." + n
		c.named(at, n)
		r := quota.Resource{Name: n}
		for i, p := range sections[n].Paths {
			at := fmt.Sprintf("%s.paths[%d]", at, i)
			clean := strings.ToLower(path.Clean(p))
			if unescaped, err := url.PathUnescape(p); err != nil || unescaped != p || !strings.HasPrefix(p, "/") || strings.ContainsAny(p, "?#;") {
				c.fault(at, "path %q: want a plain path that begins with /, as in /v1/chat", p)
			} else if strings.Contains(p, "*") {
				c.fault(at, "path %q: want a plain prefix, without *: it stands for all paths below it", p)
			} else if other, taken := owner[clean]; taken {
				c.fault(at, "path %q belongs to %s already", p, other)
			}
			owner[clean] = n
			r.PathPrefixes = append(r.PathPrefixes, clean)
		}
		resources = append(resources, r)
	}
	return resources
}
