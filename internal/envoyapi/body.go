package envoyapi

import (
	"math"
	"net/http"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tiergate/tiergate/internal/quota"
)

// RequestNamespace is where Envoy puts what it read in a request's body: read ("yes",
// or "no" where the body was not read, or not whole), model, max_tokens,
// max_completion_tokens, max_output_tokens, n, best_of, background. Where nothing is there,
// nobody reads bodies.
const RequestNamespace = "tiergate.request"

// facts look up by name what is known of a request's body; "" is not known.
type facts func(name string) string

// readBody puts the facts in order. method, path and contentLength are as the client
// sent them.
func readBody(method, path, contentLength string, f facts) (b quota.Body, model string) {
	b = quota.Body{Bytes: length(method, contentLength), Read: f("read") != "no", Declared: quota.Unknown, Choices: 1}
	if b.Bytes == quota.Unknown && f("read") == "" {
		b.Bytes = 1 // nobody reads bodies, nor says how long they are: there is nothing to go by
	}
	for _, name := range []string{"max_tokens", "max_completion_tokens", "max_output_tokens"} {
		if n := tokens(f(name)); n > 0 && knows(path, name) { // some upstreams take 0 for no declaration
			b.Declared = max(b.Declared, n)
		}
	}
	for _, name := range []string{"n", "best_of"} {
		b.Choices = max(b.Choices, tokens(f(name)))
	}
	background := f("background")
	b.Background = background != "" && background != "0" && background != "false"
	model = f("model")
	return b, model[:min(len(model), maxModel)]
}

// knows reports whether the endpoint at a path may know this name of the most tokens. Many
// upstreams ignore what they do not know: so it is no declaration there, or a client would
// declare little and get much.
func knows(path, name string) bool {
	path = normalize(path)
	switch {
	case strings.HasSuffix(path, "/chat/completions"):
		return name != "max_output_tokens"
	case strings.HasSuffix(path, "/completions"), strings.HasSuffix(path, "/messages"):
		return name == "max_tokens"
	case strings.HasSuffix(path, "/responses"):
		return name == "max_output_tokens"
	case strings.HasSuffix(path, "/count_tokens"), strings.HasSuffix(path, "/input_tokens"): // no answer is made
		return false
	default:
		return !strings.Contains(path, "/images/") && !strings.Contains(path, "/audio/")
	}
}

// maxModel is how much of a model's name is looked at, in bytes.
const maxModel = 256

// length returns the length of a body in bytes, or quota.Unknown. Without a
// content-length there may be any, unless the method has no use for a body.
func length(method, contentLength string) int64 {
	if contentLength == "" {
		switch method {
		case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete:
			return 0
		}
		return quota.Unknown
	}
	n, err := strconv.ParseInt(contentLength, 10, 64)
	if err != nil || n < 0 {
		return quota.Unknown
	}
	return n
}

// tokens reads a number of tokens; what is none is quota.Unknown. JSON knows only
// one kind of number, so 2e4 and 20000.0 are fine; fractions are rounded up. More than
// quota.MaxCost is never charged, and so it is cut to that.
func tokens(text string) int64 {
	text = strings.TrimSpace(text)
	if text == "" {
		return quota.Unknown
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return min(max(n, quota.Unknown), quota.MaxCost)
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || x < 0 || math.IsNaN(x) {
		return quota.Unknown
	}
	return int64(min(math.Ceil(x), float64(quota.MaxCost)))
}

// metadataFacts are those of an external authorization call.
func metadataFacts(m *corev3.Metadata) facts {
	fields := m.GetFilterMetadata()[RequestNamespace].GetFields()
	return func(name string) string { return text(fields[name]) }
}

// text returns a metadata value as text; what is neither text nor number is "".
func text(v *structpb.Value) string {
	switch v := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return v.StringValue
	case *structpb.Value_NumberValue:
		return formatNumber(v.NumberValue)
	default:
		return ""
	}
}

func formatNumber(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }

// factTexts are facts by their index.
type factTexts [10]string

// factIndex returns the index of a fact, from 0; -1: there is none of that name. The first
// two are known to the rate limit service only.
func factIndex(name string) int {
	switch name {
	case "method":
		return 0
	case "content_length":
		return 1
	case "read":
		return 2
	case "model":
		return 3
	case "max_tokens":
		return 4
	case "max_completion_tokens":
		return 5
	case "max_output_tokens":
		return 6
	case "n":
		return 7
	case "best_of":
		return 8
	case "background":
		return 9
	default:
		return -1
	}
}

// of implements facts.
func (t *factTexts) of(name string) string {
	if i := factIndex(name); i >= 0 {
		return t[i]
	}
	return ""
}

// set notes a fact; one with another name is none.
func (t *factTexts) set(name, text string) {
	if i := factIndex(name); i >= 0 {
		t[i] = text
	}
}

// ModelWeights say what a token of a model counts: by the model's name, or by the
// beginning of names where it ends in *. A model without a weight counts 1.
type ModelWeights struct {
	byName   map[string]float64
	byPrefix map[string]float64
	most     float64 // the largest weight
}

// NewModelWeights takes names in any case.
func NewModelWeights(weights map[string]float64) ModelWeights {
	w := ModelWeights{byName: map[string]float64{}, byPrefix: map[string]float64{}}
	for name, weight := range weights {
		w.most = max(w.most, weight)
		name = strings.ToLower(name)
		if prefix, ok := strings.CutSuffix(name, "*"); ok {
			w.byPrefix[prefix] = weight
		} else {
			w.byName[name] = weight
		}
	}
	return w
}

// Of returns the weight of a model; the longest prefix that matches holds. Where the
// body was not read the model may be any, so it is that with the largest weight.
func (w ModelWeights) Of(model string, read bool) float64 {
	if !read {
		return max(w.most, 1)
	}
	if len(w.byName)+len(w.byPrefix) == 0 || model == "" {
		return 1
	}
	model = strings.ToLower(model)
	if weight, ok := w.byName[model]; ok {
		return weight
	}
	best, found := 1.0, -1
	for prefix, weight := range w.byPrefix {
		if strings.HasPrefix(model, prefix) && len(prefix) > found {
			best, found = weight, len(prefix)
		}
	}
	return best
}
