// Package mockai is an AI API that answers at once and from nothing, in the
// shapes of OpenAI and Anthropic: chat, completions, responses, messages,
// images, audio, embeddings, models. It exists to try TierGate with. Request
// headers choose the answer:
//
//	x-mock-usage: PROMPT,COMPLETION  the token counts reported; none: no usage; a third
//	                                 number is how many of the prompt's came from a cache
//	x-mock-status: 500               fail with this status
//	x-mock-delay: 200ms              wait before answering
//	x-mock-chunks: 20                events of a stream
//	x-mock-chunk-delay: 50ms         wait between them
//	x-mock-bytes: 20000000           length of the generated text
//	x-mock-break: length             break a JSON answer off: before it begins (start), before
//	                                 the length that it has said (length), within its chunks
//	                                 (chunks), or send a part and no more (stall)
//	x-mock-charset: 1                say that JSON is in UTF-8
//	x-mock-echo: 1                   answer with the request's headers as JSON
//
// A stream reports its usage in its last event, and in every one where the body
// has "stream_options": {"continuous_usage_stats": true}. Answers are compressed
// where the client accepts gzip.
//
// Like a real provider it sends rate limit headers of its own, which must not
// reach the client.
package mockai

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxText is the longest text that x-mock-bytes can ask for.
const maxText = 100 << 20

// A request is what the mock understands of an HTTP request.
type request struct {
	Model   string `json:"model"`
	Stream  bool   `json:"stream"`
	Options struct {
		Continuous bool `json:"continuous_usage_stats"`
	} `json:"stream_options"`

	usage      *usage // nil: none is reported
	status     int
	delay      time.Duration
	chunks     int
	chunkDelay time.Duration
	text       string
	breakOff   string // how; "": the answer is whole
	both       bool   // the usage has the names of two APIs, those of the other with 0, and no total
}

type usage struct{ prompt, completion, cached int }

// Handler returns the API.
func Handler() http.Handler {
	mux := http.NewServeMux()
	for path, shape := range shapes() {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { serve(w, r, shape) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, http.StatusNotFound, "no such path: "+r.URL.Path)
	})
	return mux
}

func serve(w http.ResponseWriter, r *http.Request, s shape) {
	w.Header().Set("X-RateLimit-Limit", "999")
	w.Header().Set("X-RateLimit-Limit-Requests", "999")
	w.Header().Set("X-RateLimit-Remaining-Tokens", "149984")
	w.Header().Set("RateLimit-Limit", "999")
	w.Header().Set("Anthropic-RateLimit-Requests-Limit", "999")
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		compressed := gzip.NewWriter(w)
		defer func() { _ = compressed.Close() }() // nobody to tell if the caller is gone
		w = &compressing{w, compressed}
	}
	if r.Header.Get("X-Mock-Echo") != "" {
		writeJSON(w, http.StatusOK, r.Header)
		return
	}
	q, err := read(r)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	select {
	case <-time.After(q.delay):
	case <-r.Context().Done():
		return
	}
	switch {
	case q.breakOff != "":
		breakOff(w, r, q.breakOff)
	case q.status != http.StatusOK:
		fail(w, q.status, "as x-mock-status asked")
	case q.Stream && s.events != nil:
		stream(w, r, s.events(q), q.chunkDelay)
	case s.media != "":
		w.Header().Set("Content-Type", s.media)
		_, _ = io.WriteString(w, q.text) // nobody to tell if the caller is gone
	default:
		if r.Header.Get("X-Mock-Charset") != "" {
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
		}
		writeJSON(w, http.StatusOK, s.answer(q))
	}
}

// read understands a request. A body that is no JSON, such as an audio upload,
// asks for nothing.
func read(r *http.Request) (request, error) {
	q := request{Model: "mock-1", usage: &usage{prompt: 12, completion: 24}, status: http.StatusOK, chunks: 4, text: "Hello from the mock."}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return q, fmt.Errorf("read the body: %w", err)
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") && len(body) > 0 {
		if err := json.Unmarshal(body, &q); err != nil {
			return q, fmt.Errorf("the body is no JSON object: %w", err)
		}
	}
	return q, q.obey(r.Header)
}

// obey takes up the x-mock headers.
func (q *request) obey(h http.Header) error {
	var err error
	if v := h.Get("X-Mock-Usage"); v == "none" {
		q.usage = nil
	} else if v != "" {
		n, _ := fmt.Sscanf(v, "%d,%d,%d", &q.usage.prompt, &q.usage.completion, &q.usage.cached) // the third may be missing
		if n < 2 {
			return fmt.Errorf("x-mock-usage %q: want PROMPT,COMPLETION or PROMPT,COMPLETION,CACHED or none", v)
		}
	}
	for name, into := range map[string]*time.Duration{"x-mock-delay": &q.delay, "x-mock-chunk-delay": &q.chunkDelay} {
		if v := h.Get(name); v != "" {
			if *into, err = time.ParseDuration(v); err != nil {
				return fmt.Errorf("%s %q: want a duration such as 200ms", name, v)
			}
		}
	}
	switch q.breakOff = h.Get("X-Mock-Break"); q.breakOff {
	case "", "start", "length", "chunks", "stall":
	default:
		return fmt.Errorf("x-mock-break %q: want start, length, chunks or stall", q.breakOff)
	}
	q.both = h.Get("X-Mock-Both") != ""
	bytes := 0
	for _, f := range []struct {
		name        string
		into        *int
		least, most int
	}{
		{"X-Mock-Status", &q.status, 200, 599},
		{"X-Mock-Chunks", &q.chunks, 1, 100_000},
		{"X-Mock-Bytes", &bytes, 1, maxText},
	} {
		v := h.Get(f.name)
		if v == "" {
			continue
		}
		if *f.into, err = strconv.Atoi(v); err != nil || *f.into < f.least || *f.into > f.most {
			return fmt.Errorf("%s %q: want a number from %d to %d", strings.ToLower(f.name), v, f.least, f.most)
		}
	}
	if bytes > 0 {
		q.text = strings.Repeat("x", bytes)
	}
	return nil
}

// breakOff begins a JSON answer, and does not end it.
func breakOff(w http.ResponseWriter, r *http.Request, how string) {
	if how != "start" {
		w.Header().Set("Content-Type", "application/json")
		if how == "length" {
			w.Header().Set("Content-Length", "100")
		}
		_, _ = io.WriteString(w, `{"id": `)       // nobody to tell if the caller is gone
		_ = http.NewResponseController(w).Flush() // as before
	}
	if how == "stall" {
		<-r.Context().Done()
	}
	panic(http.ErrAbortHandler) // net/http's way to close the connection within an answer
}

// compressing is a response whose body is compressed.
type compressing struct {
	http.ResponseWriter

	body *gzip.Writer
}

func (c *compressing) Write(b []byte) (int, error) { return c.body.Write(b) }

// FlushError implements what http.ResponseController asks for.
func (c *compressing) FlushError() error {
	if err := c.body.Flush(); err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	return http.NewResponseController(c.ResponseWriter).Flush()
}

// stream sends server-sent events. An event's name is optional.
func stream(w http.ResponseWriter, r *http.Request, events []event, delay time.Duration) {
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	for i, e := range events {
		if i > 0 && delay > 0 {
			select {
			case <-time.After(delay):
			case <-r.Context().Done():
				return
			}
		}
		if e.name != "" {
			fmt.Fprintf(w, "event: %s\n", e.name)
		}
		fmt.Fprintf(w, "data: %s\n\n", e.data)
		if flush.Flush() != nil || r.Context().Err() != nil {
			return
		}
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // nobody to tell if the caller is gone
}

func fail(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, object{"error": object{"type": "mock_error", "message": message, "code": strconv.Itoa(status)}})
}
