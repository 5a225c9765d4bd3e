package mockai

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// ask sends a request to the mock; headers are "Name: value".
func ask(t *testing.T, method, path, body string, headers ...string) (w *httptest.ResponseRecorder, text string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	w = httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w, w.Body.String()
}

// TestShapes: each endpoint answers in its shape, with the usage that was asked
// for, where the shape has one.
func TestShapes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, path string
		want         []string
	}{
		{"POST", "/v1/chat/completions", []string{`"object":"chat.completion"`, `"prompt_tokens":7`, `"completion_tokens":5`, `"total_tokens":12`}},
		{"POST", "/v1/completions", []string{`"object":"text_completion"`, `"total_tokens":12`}},
		{"POST", "/v1/responses", []string{`"object":"response"`, `"input_tokens":7`, `"output_tokens":5`}},
		{"POST", "/v1/messages", []string{`"type":"message"`, `"input_tokens":7`, `"output_tokens":5`}},
		{"POST", "/v1/embeddings", []string{`"object":"list"`, `"embedding":[`}},
		{"POST", "/v1/moderations", []string{`"results":[`}},
		{"POST", "/v1/images/generations", []string{`"data":[`, `"input_tokens":7`}},
		{"POST", "/v1/audio/transcriptions", []string{`"text":`}},
		{"GET", "/v1/models", []string{`"object":"list"`}},
	} {
		response, body := ask(t, c.method, c.path, `{"model": "m"}`, "X-Mock-Usage: 7,5")
		if response.Code != http.StatusOK || response.Header().Get("Content-Type") != "application/json" || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d %v %s", c.path, response.Code, response.Header(), body)
		}
		for _, part := range c.want {
			if !strings.Contains(body, part) {
				t.Errorf("%s: no %s in %s", c.path, part, body)
			}
		}
		if _, body := ask(t, c.method, c.path, `{"model": "m"}`, "X-Mock-Usage: none"); strings.Contains(body, `"usage"`) {
			t.Errorf("%s: usage none: %s", c.path, body)
		}
	}
	if response, body := ask(t, "POST", "/v1/audio/speech", "{}", "X-Mock-Bytes: 1000"); response.Header().Get("Content-Type") != "audio/mpeg" || len(body) != 1000 {
		t.Errorf("speech: %v, %d bytes", response.Header(), len(body))
	}
}

// TestStreams: server-sent events, as many as asked for, and the usage at the
// end.
func TestStreams(t *testing.T) {
	t.Parallel()
	response, body := ask(t, "POST", "/v1/chat/completions", `{"model": "m", "stream": true}`, "X-Mock-Chunks: 20", "X-Mock-Usage: 7,5")
	if response.Header().Get("Content-Type") != "text/event-stream" || strings.Count(body, `"content":`) != 20 ||
		!strings.Contains(body, `"total_tokens":12`) || !strings.HasSuffix(body, "data: [DONE]\n\n") {
		t.Errorf("%v\n%s", response.Header(), body)
	}
	_, body = ask(t, "POST", "/v1/messages", `{"model": "m", "stream": true}`, "X-Mock-Chunks: 3", "X-Mock-Usage: 7,5")
	if strings.Count(body, "event: content_block_delta\n") != 3 || !strings.Contains(body, `"output_tokens":5`) || !strings.Contains(body, "event: message_stop\n") {
		t.Errorf("%s", body)
	}
}

// TestOtherAnswers: failures, long texts, an echo, and clear errors for what is
// not understood.
func TestOtherAnswers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		method, path, body, header string
		status                     int
		want                       string
	}{
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Status: 500", 500, `"code":"500"`},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Delay: 1ms", 200, "Hello from the mock."},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Bytes: 30", 200, strings.Repeat("x", 30) + `"`},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Echo: 1", 200, `"X-Mock-Echo":["1"]`},
		{"POST", "/v1/chat/completions", "{", "", 400, "the body is no JSON object"},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Status: teapot", 400, "want a number from 200 to 599"},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Usage: lots", 400, "want PROMPT,COMPLETION or PROMPT,COMPLETION,CACHED or none"},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Delay: 5", 400, "want a duration such as 200ms"},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Bytes: 999999999999", 400, "want a number from 1 to 104857600"},
		{"POST", "/v1/chat/completions", "{}", "X-Mock-Break: a leg", 400, "want start, length, chunks or stall"},
		{"GET", "/v1/nothing", "", "", 404, "no such path: /v1/nothing"},
	} {
		response, body := ask(t, c.method, c.path, c.body, c.header)
		if response.Code != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %.200s, want %d %s", c.path, c.header, response.Code, body, c.status, c.want)
		}
	}
}

// TestBrokenAnswers: each begins as it should, and none is whole.
func TestBrokenAnswers(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(Handler())
	defer server.Close()
	for how, length := range map[string]int64{"start": 0, "length": 100, "chunks": -1, "stall": -1} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/v1/chat/completions", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Mock-Break", how)
		r.Header.Set("Accept-Encoding", "identity") // else the client makes a length of its own
		response, err := http.DefaultClient.Do(r)
		if how == "start" {
			if !errors.Is(err, io.EOF) {
				t.Errorf("start: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		begun := make([]byte, len(`{"id": `))
		_, err = io.ReadFull(response.Body, begun)
		if err != nil || string(begun) != `{"id": ` || response.ContentLength != length || response.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v, %q, %v", how, err, begun, response)
		}
		want := io.ErrUnexpectedEOF
		if how == "stall" {
			cancel() // else it waits for ever
			want = context.Canceled
		}
		if _, err := io.ReadAll(response.Body); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", how, err, want)
		}
		response.Body.Close()
	}
}
