package web

import (
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// A contract is openapi.yaml, against which requests and answers are checked.
type contract struct {
	document map[string]any
	compiler *jsonschema.Compiler
}

var theContract = sync.OnceValues(func() (*contract, error) {
	var written any
	if err := yaml.Unmarshal(openAPI, &written); err != nil {
		return nil, err
	}
	text, err := json.Marshal(written)
	if err != nil {
		return nil, err
	}
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		return nil, err
	}
	c := &contract{document: document.(map[string]any), compiler: jsonschema.NewCompiler()}
	c.compiler.DefaultDraft(jsonschema.Draft2020)
	c.compiler.AssertFormat()
	return c, c.compiler.AddResource("openapi.json", document)
})

// schema compiles the one at a place in the document. The compiler keeps what it has,
// and is not safe for concurrent use.
var compiling sync.Mutex

func (c *contract) schema(t *testing.T, pointer string) *jsonschema.Schema {
	t.Helper()
	compiling.Lock()
	defer compiling.Unlock()
	s, err := c.compiler.Compile("openapi.json#" + pointer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// at returns the part of the document at a pointer, and where it really is when it is a
// reference.
func (c *contract) at(pointer string) (map[string]any, string) {
	var part any = c.document
	for _, step := range strings.Split(pointer, "/")[1:] {
		m, _ := part.(map[string]any)
		part = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(step)]
	}
	m, _ := part.(map[string]any)
	if ref, ok := m["$ref"].(string); ok {
		return c.at(strings.TrimPrefix(ref, "#"))
	}
	return m, pointer
}

// conforms checks a call against the document: the answer always, the request where it
// was served.
func conforms(t *testing.T, pattern, body string, w *httptest.ResponseRecorder) {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	method, path, _ := strings.Cut(pattern, " ")
	operation := "/paths/" + strings.ReplaceAll(strings.TrimPrefix(path, AdminPath), "/", "~1") + "/" + strings.ToLower(method)
	answer := "/components/responses/Problem"
	if w.Code < 300 {
		if _, answer = c.at(operation + "/responses/" + jsonNumber(w.Code)); body != "" {
			c.valid(t, operation+"/requestBody/content/application~1json/schema", body)
		}
	}
	media, _, _ := strings.Cut(w.Header().Get("Content-Type"), ";")
	if content, _ := c.at(answer + "/content"); content[media] == nil {
		t.Errorf("%s: %d with %q, which openapi.yaml does not list", pattern, w.Code, media)
		return
	}
	c.valid(t, answer+"/content/"+strings.ReplaceAll(media, "/", "~1")+"/schema", w.Body.String())
}

func jsonNumber(n int) string { text, _ := json.Marshal(n); return string(text) }

func (c *contract) valid(t *testing.T, pointer, text string) {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Errorf("%s: %v: %s", pointer, err, text)
		return
	}
	if err := c.schema(t, pointer).Validate(value); err != nil {
		t.Errorf("%s: %v\n%s", pointer, err, text)
	}
}

// TestOpenAPIListsEveryEndpoint and no other, every kind of problem, and is served to
// everyone. Every schema in it is one.
func TestOpenAPIListsEveryEndpoint(t *testing.T) {
	t.Parallel()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	var documented, served []string
	paths, _ := c.at("/paths")
	for path, item := range paths {
		for method := range item.(map[string]any) {
			if method != "parameters" {
				documented = append(documented, strings.ToUpper(method)+" "+path)
			}
		}
	}
	served = append(served, "GET /openapi.yaml")
	for _, e := range (&Admin{}).endpoints() {
		served = append(served, e.method+" "+e.path)
	}
	slices.Sort(documented)
	slices.Sort(served)
	if !slices.Equal(documented, served) {
		t.Errorf("documented\n%s\nserved\n%s", strings.Join(documented, "\n"), strings.Join(served, "\n"))
	}
	schemas, _ := c.at("/components/schemas")
	for name := range schemas {
		c.schema(t, "/components/schemas/"+name)
	}
	types, _ := c.at("/components/schemas/Problem/properties/type")
	for _, k := range []kind{
		kindInvalid, kindToken, kindLocal, kindOtherSite, kindNoKey, kindNoPage, kindMethod, kindConflict, kindTaken, kindInFile, kindRevoked, kindNoTier,
		kindGrace, kindTooLarge, kindMediaType, kindTooMany, kindStoreAway, kindStoreRefuses, kindStoreEmptied,
	} {
		p := problem(k, "")
		if !slices.Contains(types["enum"].([]any), any(p.Type)) || p.Status < 400 || p.Title == string(k) {
			t.Errorf("problem %+v is not in openapi.yaml, or has no status or title", p)
		}
	}
}
