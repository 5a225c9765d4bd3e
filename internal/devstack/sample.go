package devstack

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
)

// A sample is one request.
type sample struct {
	customer     string // whose it is
	method, path string
	header       map[string]string
	body         string
	leave        int64 // bytes of the answer after which the client goes; 0: it reads all
}

// A wish makes a sample. Chance decides its size and how long it takes.
type wish func(chance *rand.Rand) sample

// members are those of a JSON object.
type members map[string]any

func chat(chance *rand.Rand) sample {
	input, output := between(chance, 20, 900), between(chance, 20, 600)
	body := members{"messages": said(input), "max_completion_tokens": output + between(chance, 0, 400)}
	return ask(chance, "/v1/chat/completions", body, input, output)
}

// stream is a chat whose answer comes in pieces, with its usage in the last one.
func stream(chance *rand.Rand) sample { return inPieces(chance, between(chance, 4, 24)) }

// leftStream is a stream that the client leaves early.
func leftStream(chance *rand.Rand) sample {
	s := inPieces(chance, 60)
	s.leave = int64(between(chance, 200, 2000)) // of some 9,000
	return s
}

func inPieces(chance *rand.Rand, pieces int) sample {
	input, output := between(chance, 20, 900), between(chance, 100, 900)
	body := members{
		"messages": said(input), "max_tokens": output + between(chance, 0, 400),
		"stream": true, "stream_options": members{"include_usage": true},
	}
	s := ask(chance, "/v1/chat/completions", body, input, output)
	s.header["X-Mock-Chunks"] = strconv.Itoa(pieces)
	s.header["X-Mock-Chunk-Delay"] = milliseconds(between(chance, 5, 40))
	return s
}

// long is a chat whose answer takes most of so many tokens.
func long(tokens int) wish {
	return func(chance *rand.Rand) sample {
		output := between(chance, tokens*7/10, tokens*9/10)
		return ask(chance, "/v1/chat/completions", members{"messages": said(2000), "max_tokens": tokens}, 2000, output)
	}
}

// tooLong is a chat that asks for more tokens than the whole of a tier's limit.
func tooLong(tokens int) wish {
	return func(chance *rand.Rand) sample {
		return ask(chance, "/v1/chat/completions", members{"messages": said(100), "max_tokens": tokens}, 100, 100)
	}
}

// failing is a chat in which the AI API fails.
func failing(chance *rand.Rand) sample {
	s := chat(chance)
	s.header["X-Mock-Status"] = "500"
	return s
}

// completion does not say how long its answer may be.
func completion(chance *rand.Rand) sample {
	input := between(chance, 20, 300)
	return ask(chance, "/v1/completions", members{"prompt": words(input)}, input, between(chance, 20, 200))
}

func responses(chance *rand.Rand) sample {
	input, output := between(chance, 20, 900), between(chance, 20, 600)
	return ask(chance, "/v1/responses", members{"input": words(input), "max_output_tokens": 800, "stream": true}, input, output)
}

// messages are in the form of Anthropic.
func messages(chance *rand.Rand) sample {
	input, output := between(chance, 20, 900), between(chance, 20, 600)
	s := ask(chance, "/v1/messages", members{"messages": said(input), "max_tokens": 800}, input, output)
	s.header["Anthropic-Version"] = "2023-06-01"
	return s
}

func embeddings(chance *rand.Rand) sample {
	input := between(chance, 10, 1500)
	return ask(chance, "/v1/embeddings", members{"input": words(input)}, input, 0)
}

func moderation(chance *rand.Rand) sample {
	return ask(chance, "/v1/moderations", members{"input": words(between(chance, 10, 300))}, 0, 0)
}

func images(chance *rand.Rand) sample {
	input := between(chance, 10, 100)
	body := members{"prompt": words(input), "n": 1, "size": "1024x1024"}
	return ask(chance, "/v1/images/generations", body, input, between(chance, 300, 4000))
}

func speech(chance *rand.Rand) sample {
	s := ask(chance, "/v1/audio/speech", members{"input": words(between(chance, 10, 200)), "voice": "alloy"}, 0, 0)
	s.header["X-Mock-Bytes"] = strconv.Itoa(between(chance, 10_000, 60_000))
	return s
}

func transcription(chance *rand.Rand) sample {
	return attach(ask(chance, "/v1/audio/transcriptions", members{}, between(chance, 50, 500), between(chance, 20, 200)))
}

func upload(chance *rand.Rand) sample { return attach(ask(chance, "/v1/files", members{}, 0, 0)) }

// attach makes an upload of a sample.
func attach(s sample) sample {
	const boundary = "sample"
	s.header["Content-Type"] = "multipart/form-data; boundary=" + boundary
	s.body = "--" + boundary + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"sample.bin\"\r\n\r\n" +
		words(200) + "\r\n--" + boundary + "--\r\n"
	return s
}

func listFiles(*rand.Rand) sample { return get("/v1/files") }

func models(*rand.Rand) sample { return get("/v1/models") }

func get(path string) sample {
	return sample{method: http.MethodGet, path: path, header: map[string]string{}}
}

// ask makes a POST of JSON. The mock is to report these tokens, after a while.
func ask(chance *rand.Rand, path string, body members, input, output int) sample {
	body["model"] = []string{"mock-1", "mock-1", "mock-mini", "mock-large"}[chance.IntN(4)]
	text, _ := json.Marshal(body) // texts and numbers always encode
	return sample{method: http.MethodPost, path: path, body: string(text), header: map[string]string{
		"Content-Type": "application/json",
		"X-Mock-Usage": fmt.Sprintf("%d,%d", input, output),
		"X-Mock-Delay": milliseconds(between(chance, 20, 250)),
	}}
}

// said is a conversation of one message.
func said(tokens int) []members {
	return []members{{"role": "user", "content": words(tokens)}}
}

// words returns a text of about so many tokens.
func words(tokens int) string { return strings.Repeat("word ", tokens) }

func milliseconds(n int) string { return strconv.Itoa(n) + "ms" }

// between returns a number from least to most.
func between(chance *rand.Rand, least, most int) int { return least + chance.IntN(most-least+1) }
